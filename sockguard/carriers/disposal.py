"""Handing sockets to the master, for a process that exits with them. What cannot be handed over now is kept open.

In a process that ends, by ``leave`` (privsep/leaving.py), what still waits here is not closed one by one either.
"""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from sockguard.carriers.jobs import DISPOSE, GO, MAX_DISPOSED

_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


_all: Final[list[deque[socket.socket]]] = []
"""So that no collection of garbage closes them."""


class Disposal:
    """See foreign.Disposer.

    disposals   the channel to the master for this
    on_waiting  called when something could not be handed over: have ``retry`` called
    """

    def __init__(self, disposals: socket.socket, on_waiting: Callable[[], object] = lambda: None) -> None:
        self._disposals = disposals
        self._on_waiting = on_waiting
        self._waiting: deque[socket.socket] = deque()
        _all.append(self._waiting)
        self._unsaid = 0  # sockets were handed over and closed, and that is not said yet

    @property
    def waiting(self) -> int:
        """How much could not be handed over or said yet: ``retry`` has to be called."""
        return len(self._waiting) + self._unsaid

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        self._waiting.extend(socks)
        self.retry()
        if self.waiting:
            self._on_waiting()

    def retry(self) -> None:
        """Hand over what waits. What cannot be done now, for want of room or since too many descriptors are on their
        way, waits again. If the master has gone it stays open for good: better a leak than a process that stands still.
        """
        try:
            self._say_go()
            while self._waiting:
                socks = [sock for sock in islice(self._waiting, MAX_DISPOSED) if sock.fileno() >= 0]
                if socks:
                    fds = array("i", [sock.fileno() for sock in socks])
                    self._disposals.sendmsg([DISPOSE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], _FLAGS)
                    self._unsaid += 1
                for _ in range(min(len(self._waiting), MAX_DISPOSED)):
                    self._waiting.popleft().close()
                self._say_go()
        except OSError:
            return

    def _say_go(self) -> None:
        while self._unsaid:
            self._disposals.send(GO, _FLAGS)
            self._unsaid -= 1
