"""What is guarded now: a listener and an admission for each proxy, added, renewed and removed while others go on."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from sockguard.config.settings import ListenKind, Proxy
from sockguard.privsep import foreign, listening
from sockguard.privsep.foreign import Disposer
from sockguard.server import listener
from sockguard.server.admission import Admission
from sockguard.server.listener import Arrival
from sockguard.server.privileges import Privileges
from sockguard.server.waiting_room import WaitingRoom


@dataclass(slots=True, eq=False)
class Guard:
    """One proxy at its door. ``accepting`` ends its accept loop, ``waiting`` also those who have come in and wait
    to be judged; ``removed``: nobody is let in by it any more.
    """

    admission: Admission
    socket: socket.socket
    accepting: trio.CancelScope
    waiting: trio.CancelScope
    removed: bool = False


class Guards:
    """All guards by proxy name.

    nursery        where accept loops run
    burst_done     called after each burst of accepted connections
    wait_for_room  waits while no connection may be admitted
    disposer       closes connections that nobody accepts any more
    privileges     accepts for proxies that show their clients to the service
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        burst_done: Callable[[], None],
        wait_for_room: Callable[[], Awaitable[None]],
        disposer: Disposer,
        privileges: Privileges,
    ) -> None:
        self._privileges = privileges
        self._nursery = nursery
        self._burst_done = burst_done
        self._wait_for_room = wait_for_room
        self._disposer = disposer
        self._guards: dict[str, Guard] = {}
        self.closed = False

    def __iter__(self) -> Iterator[Guard]:
        return iter(list(self._guards.values()))

    def __len__(self) -> int:
        return len(self._guards)

    def get(self, name: str) -> Guard | None:
        return self._guards.get(name)

    def add(self, admission: Admission, sock: socket.socket) -> None:
        """Begin to accept for a proxy; takes the listening socket over."""
        guard = Guard(admission, sock, trio.CancelScope(), trio.CancelScope())
        self._guards[admission.proxy.name] = guard
        self._nursery.start_soon(self._accept, guard)

    def remove(self, name: str) -> None:
        """Accept no more for a proxy, and end what has connected to it but was not accepted yet."""
        guard = self._guards.pop(name)
        guard.removed = True
        guard.waiting.cancel()
        if guard.admission.proxy.listen.kind is ListenKind.ADOPTED:
            self._disposer.dispose((guard.socket,))  # systemd has it, and goes on listening
        else:
            foreign.end_listener(guard.socket, self._disposer)  # the copies that the monitor and systemd keep with it

    def close(self, *, restarting: bool) -> None:
        """Accept no more at all. What lives, and what has come in, goes on to be judged by the admissions.

        restarting: clients of a socket that systemd keeps wait in it for the next run. Else they are refused from now
        on: what they send would be systemd's to close, and could keep it waiting.
        """
        self.closed = True
        for guard in self._guards.values():
            guard.accepting.cancel()
            close_listener(guard.admission.proxy, guard.socket, self._disposer, restarting=restarting)

    def set_options(self, proxy: Proxy) -> None:
        """Bring what a listener's connections inherit in line with its proxy."""
        sock = self._guards[proxy.name].socket
        listening.set_options(sock, refuse_fds=proxy.fds == "refuse", credentials=proxy.sender == "same-user")

    async def _accept(self, guard: Guard) -> None:
        with guard.waiting:
            async with trio.open_nursery() as nursery:
                with guard.accepting:
                    await listener.serve(
                        guard.admission.proxy.name,
                        guard.socket,
                        WaitingRoom(guard.admission, nursery, self._burst_done).arrive,
                        guard.admission.drop,
                        self._burst_done,
                        self._wait_for_room,
                        lambda most: self._take(guard, most),
                    )

    async def _take(self, guard: Guard, most: int) -> tuple[Sequence[Arrival], bool]:
        if guard.admission.proxy.identity != "client":
            return (Arrival(guard.socket.accept()[0]),), True
        arrivals = await self._privileges.accept(guard.admission.proxy, most)
        if guard.removed:  # while the monitor was asked
            foreign.end_all((client for client, _ in arrivals), self._disposer)
            raise BlockingIOError
        return arrivals, len(arrivals) == most  # else the monitor has looked, too: that saves a question


def close_listener(proxy: Proxy, sock: socket.socket, disposer: Disposer, *, restarting: bool = True) -> None:
    """Close it; what waits in it unaccepted is ended, unless systemd keeps it, for the next run or as its own."""
    if proxy.listen.kind is ListenKind.ADOPTED or (restarting and listening.outlives_us(os.environ)):
        disposer.dispose((sock,))  # not closed here: systemd may have closed its copy, or have none yet
    else:
        foreign.end_listener(sock, disposer)
