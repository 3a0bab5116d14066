"""Telling systemd how the daemon is (sd_notify(3)). Where nobody asked to be told, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send lines such as "READY=1" or "STATUS=..."; a line break inside one would start another, so none is let in."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    text = "\n".join(line.replace("\n", " ") for line in lines)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.send(text.encode())
