"""Delivery by relay: connect to the backend, then hand both sockets over. Admission knows nothing of this."""

from __future__ import annotations

import socket
from time import perf_counter

import trio

from sockguard.config.settings import Proxy
from sockguard.errors import SockguardError
from sockguard.privsep import foreign
from sockguard.privsep.foreign import Disposer
from sockguard.server import backend
from sockguard.server.backend import Unavailable
from sockguard.server.connections import Connection, Connections
from sockguard.server.metrics import NullMetrics
from sockguard.server.privileges import Privileges
from sockguard.server.relays import RelayPool


class RelayDelivery:
    """Connects at once where the backend has room; only where it has not does a task wait for it."""

    def __init__(
        self,
        pool: RelayPool,
        connections: Connections,
        privileges: Privileges,
        metrics: NullMetrics,
        nursery: trio.Nursery,
        disposer: Disposer,
    ) -> None:
        self._pool = pool
        self._privileges = privileges
        self._connections = connections
        self._nursery = nursery
        self._metrics = metrics
        self._disposer = disposer

    def deliver(self, connection: Connection, client: socket.socket) -> None:
        proxy = connection.admission.proxy
        if proxy.identity == "proxy":
            start = perf_counter()
            connected = _try_connect(proxy)
            if isinstance(connected, socket.socket):
                self._metrics.connected(proxy.name, perf_counter() - start)
                self._pool.hand_over(connection, client, connected)
                return
        connection.connecting = trio.CancelScope()
        self._nursery.start_soon(self._connect, connection, client, connection.connecting)

    async def _connect(self, connection: Connection, client: socket.socket, scope: trio.CancelScope) -> None:
        start = trio.current_time()

        async def attempt() -> socket.socket | int:
            proxy = connection.admission.proxy  # as it is now: a reload may move its backend while the client waits
            if proxy.identity == "client":
                return await self._privileges.connect_as(proxy, client, connection.proof)
            return _try_connect(proxy)

        connected: socket.socket | Unavailable = Unavailable("stopped", "")
        try:
            with scope:
                connected = await backend.connect(attempt, connection.admission.proxy.connect_timeout)
        except SockguardError as error:
            connected = Unavailable("identity_refused", str(error))
        except BaseException:
            foreign.end(client, self._disposer)
            self._connections.ended(connection, "stopped")
            raise
        finally:
            connection.connecting = None
        if connection.ending:  # revoked or drained meanwhile
            foreign.end(client, self._disposer)
            if isinstance(connected, socket.socket):
                foreign.end(connected, self._disposer)
            self._connections.ended(connection, connection.ending)
        elif isinstance(connected, Unavailable):
            foreign.end(client, self._disposer)
            self._connections.ended(connection, connected.outcome, reason=connected.reason)
        else:
            self._metrics.connected(connection.admission.proxy.name, trio.current_time() - start)
            self._pool.hand_over(connection, client, connected)
            self._pool.flush()


def _try_connect(proxy: Proxy) -> socket.socket | int:
    kind = socket.SOCK_SEQPACKET if proxy.protocol == "seqpacket" else socket.SOCK_STREAM
    return backend.try_connect(proxy.backend, kind, refuse_fds=proxy.fds == "refuse")
