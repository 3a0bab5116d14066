"""Pipes for splice(2): a few, for all connections together. One is held only while what is in it cannot be sent on."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

MAX_PIPES: Final = 64
"""Held at once, by connections whose reader is blocked; with none to be had bytes are copied."""

PIPE_BYTES: Final = 256 * 1024
"""Asked for; where a user's pipes may hold no more (pipe(7), pipe-user-pages-soft), what there is will do."""


class Pipe:
    """An empty pipe, or one with ``held`` bytes that could not be sent on."""

    __slots__ = ("held", "reading", "writing")

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Pipes:
    """The pool. Made as they are asked for."""

    def __init__(self) -> None:
        self._empty: list[Pipe] = []
        self._made = 0

    def take(self) -> Pipe | None:
        """An empty one; None when there is none to be had."""
        if self._empty:
            return self._empty.pop()
        if self._made >= MAX_PIPES:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """An empty one is kept for the next; one with bytes of a connection that has ended is closed."""
        if pipe.held:
            pipe.close()
            self._made -= 1
        else:
            self._empty.append(pipe)

    def close(self) -> None:
        for pipe in self._empty:
            pipe.close()
        self._empty.clear()
