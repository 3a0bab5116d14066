"""Connecting to the private socket, without ever blocking.

A full backlog answers EAGAIN and nothing wakes anyone when room appears; trio's own connect returns such a socket
as if it were connected. A service that restarts answers ENOENT or ECONNREFUSED for a moment. Both are waited out.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Final

import trio

RESTART_SECONDS: Final = 1.0
"""How long a service may be down before its clients are told: long enough for a quick restart."""

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.1
_DOWN: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The backend could not be reached: the outcome of the connection, and why."""

    outcome: str  # "backend_timeout" or "backend_unavailable"
    reason: str


def try_connect(path: str) -> socket.socket | int:
    """One attempt: a connected non-blocking socket, or the errno."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    number = sock.connect_ex(path)
    if number:
        sock.close()
        return number
    return sock


async def connect(path: str, seconds: float) -> socket.socket | Unavailable:
    """Connect within ``seconds``; a service that is down gets min(seconds, RESTART_SECONDS) to come back."""
    start = trio.current_time()
    pause = _FIRST_PAUSE
    while True:
        attempt = try_connect(path)
        if isinstance(attempt, socket.socket):
            return attempt
        waited = trio.current_time() - start
        if attempt == errno.EAGAIN:
            if waited >= seconds:
                return Unavailable("backend_timeout", f"its backlog was full for {seconds:g} s")
        elif attempt not in _DOWN or waited >= min(seconds, RESTART_SECONDS):
            return Unavailable("backend_unavailable", os.strerror(attempt))
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
