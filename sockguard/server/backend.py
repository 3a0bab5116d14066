"""Connecting to the private socket, without ever blocking.

A full backlog answers EAGAIN and nothing wakes anyone when room appears; trio's own connect returns such a socket
as if it were connected. A service that restarts answers ENOENT or ECONNREFUSED for a moment. Both are waited out, and
so is a want of descriptors of our own.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from sockguard.privsep import foreign

RESTART_SECONDS: Final = 1.0
"""How long a service may be down before its clients are told: long enough for a quick restart."""

MAX_ATTEMPTS_PER_SECOND: Final = 1000
"""Of all connections that wait, together: a service that hangs must not keep control busy."""

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.1
_DOWN: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The backend could not be reached: the outcome of the connection, and why."""

    outcome: str  # "backend_timeout", "backend_unavailable" or "out_of_files"
    reason: str


Attempt = Callable[[], Awaitable[socket.socket | int]]
"""One attempt to connect: a connected non-blocking socket, or the errno of connect(2)."""


def try_connect(path: str, kind: int = socket.SOCK_STREAM, *, refuse_fds: bool = False) -> socket.socket | int:
    """One attempt as this process: a connected non-blocking socket, or the errno.

    refuse_fds: have the kernel refuse what the service would pass, where it can.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    except OSError as error:  # no descriptor to be had
        return error.errno or errno.EMFILE
    if refuse_fds:
        foreign.refuse_all(sock)
    number = sock.connect_ex(path)
    if number:
        sock.close()
        return number
    return sock


class _Waiting:
    """How many connections wait for their backend, in this process."""

    count = 0


async def connect(attempt: Attempt, seconds: float) -> socket.socket | Unavailable:
    """Connect within ``seconds``; a service that is down gets min(seconds, RESTART_SECONDS) to come back."""
    _Waiting.count += 1
    try:
        return await _connect(attempt, seconds)
    finally:
        _Waiting.count -= 1


async def _connect(attempt: Attempt, seconds: float) -> socket.socket | Unavailable:
    start = trio.current_time()
    pause = _FIRST_PAUSE
    while True:
        result = await attempt()
        if isinstance(result, socket.socket):
            return result
        left = seconds - (trio.current_time() - start)
        if result in _DOWN:
            left -= max(seconds - RESTART_SECONDS, 0)
        if result == errno.EAGAIN:
            if left <= 0:
                return Unavailable("backend_timeout", f"its backlog was full for {seconds:g} s")
        elif result in _OUT_OF_FILES:
            if left <= 0:
                return Unavailable("out_of_files", os.strerror(result))
        elif result not in _DOWN or left <= 0:
            return Unavailable("backend_unavailable", os.strerror(result))
        await trio.sleep(min(pause, left))
        pause = min(2 * pause, max(_LONGEST_PAUSE, _Waiting.count / MAX_ATTEMPTS_PER_SECOND))
