"""Telling systemd how the daemon is (sd_notify(3)). Where nobody asked to be told, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

_STORE_SECONDS: Final = 1.0  # for systemd to have room for one more message: a socket that it does not get is not kept


def notify(*lines: str) -> None:
    """Send lines such as "READY=1" or "STATUS=..."; a line break inside one would start another, so none is let in."""
    _send(lines, (), 0)


def store(name: str, fd: int) -> None:
    """Have systemd keep a copy of a descriptor and pass it, by that name, when the service starts again.

    It drops what it has no room for (FileDescriptorStoreMax=), and nobody is told.
    """
    _send(("FDSTORE=1", f"FDNAME={name}"), (fd,), _STORE_SECONDS)


def forget(name: str) -> None:
    """Have systemd close its copies of that name."""
    _send(("FDSTOREREMOVE=1", f"FDNAME={name}"), (), _STORE_SECONDS)


def _send(lines: Sequence[str], fds: Sequence[int], seconds: float) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    text = "\n".join(line.replace("\n", " ") for line in lines)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)  # 0: never waits
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        socket.send_fds(sock, [text.encode()], fds)
