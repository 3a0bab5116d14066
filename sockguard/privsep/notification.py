"""Telling the service manager how the daemon is (sd_notify(3)). Where nobody asked to be told, nothing happens.

The unit has NotifyAccess=main: only its main process is heard, which is the monitor, or control where there is none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping, Sequence
from typing import Final

STATES: Final = frozenset({"", "ready", "reloading", "stopping"})
"""What can be told; "": that nothing has changed but the status."""

MAX_STATUS: Final = 400
"""Characters of a status line."""

_SECONDS: Final = 1.0  # for systemd to have room for one more message: a socket that it does not get is not kept


def tell(state: str, status: str) -> None:
    """Tell one of STATES, and a line for people ("": the one before stays), whatever characters it has."""
    lines = {
        "ready": ["READY=1"],
        "reloading": ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"],  # Type=notify-reload wants both
        "stopping": ["STOPPING=1"],
    }.get(state, [])
    if status:
        lines.append(f"STATUS={_one_line(status)}")
    if lines:
        _send(lines, (), _SECONDS)


def store(name: str, fd: int) -> None:
    """Have systemd keep a copy of a descriptor and pass it, by that name, when the service starts again.

    It drops what it has no room for (FileDescriptorStoreMax=), and nobody is told.
    """
    _send(("FDSTORE=1", f"FDNAME={name}"), (fd,), _SECONDS)


def forget(name: str) -> None:
    """Have systemd close its copies of that name."""
    _send(("FDSTOREREMOVE=1", f"FDNAME={name}"), (), _SECONDS)


def feed_watchdog() -> None:
    """Say that the service is alive."""
    _send(("WATCHDOG=1",), (), 0)


def watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    """How long systemd waits for this process to be alive before it acts; None where it does not.

    The variables are removed: they are for one process only.
    """
    pid, microseconds = (environ.pop(name, "") for name in ("WATCHDOG_PID", "WATCHDOG_USEC"))
    if pid not in ("", str(os.getpid())) or not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


def _one_line(text: str) -> str:
    """A line break would begin another assignment; what is no UTF-8 would have systemd drop all."""
    shown = "".join(c if c.isprintable() else " " for c in text[: MAX_STATUS + 1])
    return shown if len(shown) <= MAX_STATUS else shown[: MAX_STATUS - 1] + "…"


def _send(lines: Sequence[str], fds: Sequence[int], seconds: float) -> None:
    """seconds: how long to wait for room; 0: not at all."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        socket.send_fds(sock, ["\n".join(lines).encode()], fds)
