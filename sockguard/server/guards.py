"""What is guarded now: a listener and an admission for each proxy, added, renewed and removed while others go on."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from sockguard.config.settings import ListenKind, Proxy
from sockguard.privsep import listening
from sockguard.server import listener, systemd
from sockguard.server.admission import Admission


@dataclass(slots=True, eq=False)
class Guard:
    """One proxy at its door. ``accepting`` ends its accept loop."""

    admission: Admission
    socket: socket.socket
    accepting: trio.CancelScope


class Guards:
    """All guards by proxy name.

    nursery        where accept loops run
    burst_done     called after each burst of accepted connections
    wait_for_room  waits while no connection may be admitted
    """

    def __init__(
        self, nursery: trio.Nursery, burst_done: Callable[[], None], wait_for_room: Callable[[], Awaitable[None]]
    ) -> None:
        self._nursery = nursery
        self._burst_done = burst_done
        self._wait_for_room = wait_for_room
        self._guards: dict[str, Guard] = {}
        self.closed = False

    def __iter__(self) -> Iterator[Guard]:
        return iter(list(self._guards.values()))

    def __len__(self) -> int:
        return len(self._guards)

    def get(self, name: str) -> Guard | None:
        return self._guards.get(name)

    def add(self, admission: Admission, sock: socket.socket) -> None:
        """Begin to accept for a proxy; takes the listening socket over, and has systemd keep it over a restart."""
        guard = Guard(admission, sock, trio.CancelScope())
        proxy = admission.proxy
        self._guards[proxy.name] = guard
        if proxy.listen.kind is not ListenKind.ADOPTED:  # that one is systemd's anyway
            systemd.store(listening.kept_name(proxy.name), sock.fileno())
        self._nursery.start_soon(self._accept, guard)

    def remove(self, name: str) -> None:
        """Accept no more for a proxy. What has connected to it but was not accepted yet is closed by the kernel."""
        guard = self._guards.pop(name)
        guard.accepting.cancel()
        if guard.admission.proxy.listen.kind is not ListenKind.ADOPTED:
            guard.socket.shutdown(socket.SHUT_RDWR)  # systemd's copy with it: nobody connects until that is closed
            systemd.forget(listening.kept_name(name))
        guard.socket.close()

    def close(self) -> None:
        """Accept no more at all. Clients of a socket that systemd keeps wait in it for the next run.

        What lives goes on to be judged by the admissions.
        """
        self.closed = True
        for guard in self._guards.values():
            guard.accepting.cancel()
            guard.socket.close()

    def set_options(self, proxy: Proxy) -> None:
        """Bring what a listener's connections inherit in line with its proxy."""
        sock = self._guards[proxy.name].socket
        listening.set_options(sock, refuse_fds=proxy.fds == "refuse", credentials=proxy.sender == "same-user")

    async def _accept(self, guard: Guard) -> None:
        with guard.accepting:
            await listener.serve(
                guard.admission.proxy.name,
                guard.socket,
                guard.admission.arrive,
                self._burst_done,
                self._wait_for_room,
            )
