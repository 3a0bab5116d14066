"""What `sockguard status` shows, put together from the parts when somebody asks. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import trio

from sockguard import __version__
from sockguard.audit import MAX_QUEUED
from sockguard.server.connections import Connections
from sockguard.server.guards import Guard, Guards
from sockguard.server.operator import (
    MAX_USERS,
    AuditStatus,
    ConnectionStatus,
    ProxyStatus,
    RelayStatus,
    ReloadStatus,
    Status,
    UserStatus,
)
from sockguard.server.record import Record
from sockguard.server.relays import RelayPool


def now() -> str:
    """The time, as status and audit events have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Overview:
    """Looks at the daemon's parts. ``last_reload`` is the daemon's to keep current."""

    def __init__(
        self,
        config_file: str,
        warnings: list[str],
        guards: Guards,
        pool: RelayPool,
        connections: Connections,
        record: Record,
    ) -> None:
        self._config_file = config_file
        self._warnings = warnings
        self._started = now()
        self.last_reload: ReloadStatus | None = None
        self._guards = guards
        self._pool = pool
        self._connections = connections
        self._record = record

    def status(self) -> Status:
        """A snapshot."""
        audit = self._record.audit
        return Status(
            version=__version__,
            started=self._started,
            generation=self._pool.generation,
            config=self._config_file,
            last_reload=self.last_reload,
            separation_warnings=self._warnings,
            proxies=[self._proxy(guard) for guard in self._guards],
            relays=[
                RelayStatus(number=relay.number, pid=None, connections=relay.load, cage=relay.cage)
                for relay in self._pool
            ],
            relay_restarts=self._pool.restarts,
            audit=AuditStatus(queued=audit.queued, max=MAX_QUEUED, seq=audit.seq),
            latest_denials=list(self._record.denials),
        )

    def connections(self) -> Iterator[ConnectionStatus]:
        """The live connections."""
        for connection in self._connections:
            peer = connection.peer
            yield ConnectionStatus(
                number=connection.number,
                proxy=connection.admission.proxy.name,
                uid=peer.uid,
                gid=peer.gid,
                user=peer.user,
                pid=peer.pid,
                rule=connection.rule,
                seconds=round(trio.current_time() - connection.started, 3),
                state="connecting" if connection.connecting is not None else "open",
            )

    def _proxy(self, guard: Guard) -> ProxyStatus:
        proxy, limits = guard.admission.proxy, guard.admission.limits
        totals = self._record.of(proxy.name)
        users = sorted(limits.by_user.items(), key=lambda item: -item[1])[:MAX_USERS]
        return ProxyStatus(
            name=proxy.name,
            listen=str(proxy.listen),
            backend=proxy.backend,
            protocol=proxy.protocol,
            enforce=proxy.enforce,
            connections=limits.total,
            max_connections=proxy.max_connections,
            users=[UserStatus(uid=uid, user=guard.admission.name_of(uid), connections=n) for uid, n in users],
            admitted=totals.admitted,
            denied=totals.denied,
            would_deny=totals.would_deny,
            requests_denied=totals.requests_denied,
            requests_would_deny=totals.requests_would_deny,
            bytes_from_client=totals.bytes_from_client,
            bytes_from_backend=totals.bytes_from_backend,
        )
