"""Protocols that sockguard reads between client and service, one folder each. Sans-I/O."""
