"""What happened to connections, told in all the places that are told: audit events, metrics, and status's totals."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio

from sockguard.audit import AuditLog, peer_fields
from sockguard.identity.peer import Peer
from sockguard.protocols.base import Kind
from sockguard.server.metrics import NullMetrics
from sockguard.server.operator import MAX_DENIALS, Denial

if TYPE_CHECKING:
    from sockguard.config.settings import Proxy
    from sockguard.server.connections import Connection

_REQUEST_EVENTS: Final[dict[Kind, str]] = {
    "denied": "request_denied",
    "would_deny": "would_deny",
    "allowed": "request_allowed",
}


@dataclass(slots=True)
class Totals:
    """Counts of one proxy since the daemon's start; bytes of connections that have ended."""

    admitted: int = 0
    denied: int = 0
    would_deny: int = 0
    requests_denied: int = 0
    requests_would_deny: int = 0
    bytes_from_client: int = 0
    bytes_from_backend: int = 0


class Record:
    """One place to say it; ``audit`` is there for events about no connection."""

    def __init__(self, audit: AuditLog, metrics: NullMetrics) -> None:
        self.audit = audit
        self.metrics = metrics
        self.totals: dict[str, Totals] = {}
        self.denials: deque[Denial] = deque(maxlen=MAX_DENIALS)

    def of(self, proxy: str) -> Totals:
        """The totals of a proxy, by its name."""
        return self.totals.setdefault(proxy, Totals())

    def admitted(self, connection: Connection) -> None:
        proxy = connection.admission.proxy
        self.audit.emit(
            "connection_admitted",
            proxy=proxy.name,
            connection=connection.number,
            **peer_fields(connection.peer),
            protocol=proxy.protocol,
            rule=connection.rule,
        )
        self.metrics.admitted(proxy.name, connection.rule)
        self.of(proxy.name).admitted += 1

    def would_deny(self, proxy: Proxy, number: int, peer: Peer, rule: str | None, reason: str) -> None:
        """A permissive proxy lets in what its rules deny; its admission is told as well."""
        self.audit.emit(
            "would_deny",
            proxy=proxy.name,
            connection=number,
            **peer_fields(peer),
            protocol=proxy.protocol,
            rule=rule,
            reason=reason,
        )
        self.metrics.would_deny(proxy.name, rule)
        self.of(proxy.name).would_deny += 1

    def denied(self, proxy: Proxy, number: int, peer: Peer | None, cause: str, rule: str | None, reason: str) -> None:
        """``peer``: None when it could not be known."""
        self.audit.emit(
            "connection_denied",
            proxy=proxy.name,
            connection=number,
            **(peer_fields(peer) if peer else {}),
            protocol=proxy.protocol,
            cause=cause,
            rule=rule,
            reason=reason,
        )
        self.metrics.denied(proxy.name, cause, rule)
        self.of(proxy.name).denied += 1
        self._remember(proxy.name, number, peer, cause, rule, reason, None)

    def request(self, connection: Connection, kind: Kind, rule: str | None, reason: str, request: str) -> None:
        """What was judged of a request. ``reason`` and ``request`` are a relay's word, and may be a client's own."""
        proxy, peer = connection.admission.proxy, connection.peer
        self.audit.emit(
            _REQUEST_EVENTS[kind],
            proxy=proxy.name,
            connection=connection.number,
            **peer_fields(peer),
            protocol=proxy.protocol,
            rule=rule,
            reason=reason,
            request=request,
        )
        self.metrics.requested(proxy.name, kind, rule)
        if kind == "denied":
            self.of(proxy.name).requests_denied += 1
            self._remember(proxy.name, connection.number, peer, "request", rule, reason, request)
        elif kind == "would_deny":
            self.of(proxy.name).requests_would_deny += 1

    def _remember(
        self,
        proxy: str,
        number: int,
        peer: Peer | None,
        cause: str,
        rule: str | None,
        reason: str,
        request: str | None,
    ) -> None:
        self.denials.appendleft(
            Denial(
                time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                proxy=proxy,
                connection=number,
                uid=peer.uid if peer else None,
                user=peer.user if peer else None,
                cause=cause,
                rule=rule,
                reason=reason,
                request=request,
            )
        )

    def closed(
        self,
        connection: Connection,
        outcome: str,
        from_client: int | None,
        from_backend: int | None,
        reason: str | None,
    ) -> None:
        """Bytes are None where nobody can know them any more; ``reason`` adds to an outcome that needs it."""
        proxy, protocol = connection.admission.proxy.name, connection.admission.proxy.protocol
        fields = {} if reason is None else {"reason": reason}
        self.audit.emit(
            "connection_closed",
            proxy=proxy,
            connection=connection.number,
            **peer_fields(connection.peer),
            protocol=protocol,
            rule=connection.rule,
            bytes_from_client=from_client,
            bytes_from_backend=from_backend,
            seconds=round(trio.current_time() - connection.started, 6),
            outcome=outcome,
            **fields,
        )
        self.metrics.closed(proxy, outcome, from_client, from_backend)
        totals = self.of(proxy)
        totals.bytes_from_client += from_client or 0
        totals.bytes_from_backend += from_backend or 0
