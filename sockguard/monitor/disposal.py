"""Closing sockets in a process that exits, where this one can fork and has no master (carriers/master.py) for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from typing import Final, NoReturn

from sockguard.privsep import rights

MAX_CHILDREN: Final = 64
"""Processes that have not ended. While there are so many, sockets are left open: better a leak than to stand still."""


class ForkDisposal:
    """See foreign.Disposer. The children do nothing but exit."""

    def __init__(self) -> None:
        self._children: set[int] = set()
        self._left_open: list[socket.socket] = []

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        self.reap()
        socks = list(socks)
        if len(self._children) >= MAX_CHILDREN:
            self._left_open += socks
            return
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC)
        except OSError:
            self._left_open += socks
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the child must not hear of them
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    _wait_and_exit(reading, {reading, *(sock.fileno() for sock in socks)})
                finally:
                    os._exit(1)  # whatever happens in it, it does not go on as the monitor
            self._children.add(pid)
            for sock in socks:
                sock.close()
        except OSError:
            self._left_open += socks
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reading)
            os.close(writing)

    def reap(self) -> None:
        """Forget those that have ended."""
        self._children = {pid for pid in self._children if not os.waitpid(pid, os.WNOHANG)[0]}


def _wait_and_exit(gate: int, kept: set[int]) -> NoReturn:
    """In the child: have nothing open but these, and end when this is the last process that has them."""
    low = 0
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, rights.open_files_limit())
    os.read(gate, 1)  # nothing comes but the end
    os._exit(0)
