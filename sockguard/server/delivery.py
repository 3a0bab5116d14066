"""Delivery by relay: connect to the backend, then hand both sockets over. Admission knows nothing of this."""

from __future__ import annotations

import socket

import trio

from sockguard.server import backend
from sockguard.server.backend import Unavailable
from sockguard.server.connections import Connection, Connections
from sockguard.server.relays import RelayPool


class RelayDelivery:
    """Connects at once where the backend has room; only where it has not does a task wait for it."""

    def __init__(self, pool: RelayPool, connections: Connections, nursery: trio.Nursery) -> None:
        self._pool = pool
        self._connections = connections
        self._nursery = nursery

    def deliver(self, connection: Connection, client: socket.socket) -> None:
        attempt = backend.try_connect(connection.admission.proxy.backend)
        if isinstance(attempt, socket.socket):
            self._pool.hand_over(connection, client, attempt)
        else:
            self._nursery.start_soon(self._connect, connection, client)

    async def _connect(self, connection: Connection, client: socket.socket) -> None:
        proxy = connection.admission.proxy
        try:
            connected = await backend.connect(proxy.backend, proxy.connect_timeout)
        except BaseException:
            client.close()
            self._connections.ended(connection, "stopped")
            raise
        if isinstance(connected, Unavailable):
            client.close()
            self._connections.ended(connection, connected.outcome, reason=connected.reason)
        else:
            self._pool.hand_over(connection, client, connected)
            self._pool.flush()
