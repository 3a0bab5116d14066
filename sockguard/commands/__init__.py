"""One short file a command of the command line."""
