"""The configuration file: read, validated as a whole, and turned into the plain data of settings.py."""
