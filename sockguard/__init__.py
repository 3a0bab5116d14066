"""sockguard: an authorizing reverse proxy for UNIX sockets.

The kernel says who has connected (SO_PEERCRED and its siblings), rules in a TOML file say who may,
and permitted traffic is moved to a private socket that only sockguard can reach.

This module imports nothing: every relay process pays for what stands here.
"""

__version__ = "0.1.0"
