"""What an operator may ask of the daemon, and the shapes of the answers. No socket and no HTTP: see control.py.

The answers are JSON on the wire, so they are typed dicts of plain JSON values, read by the commands as they are written
by the daemon. Times are UTC, ISO 8601 with a final Z, as in audit events. Text may come from a client or an account: it
is plain here, and whoever prints it escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypedDict

from sockguard.errors import Mistake

MAX_USERS: Final = 100
"""Users listed for each proxy: those with the most connections."""

MAX_DENIALS: Final = 20
"""Denials that are remembered, the newest first."""


class UserStatus(TypedDict):
    """Connections of one user, who also counts for its sub-uids. ``user``: the account's name, None without one."""

    uid: int
    user: str | None
    connections: int


class ProxyStatus(TypedDict):
    """One proxy. Counts are since the daemon's start, so that rates can be had from differences.

    connections      open now; max_connections: as in the file
    users            at most MAX_USERS, most connections first
    would_deny       admitted connections that the rules of a permissive proxy would have denied
    requests_...     denied, and let through though the rules would deny them; 0 where the protocol is not inspected
    bytes_from_...   of connections that have ended
    """

    name: str
    listen: str
    backend: str
    protocol: str
    enforce: bool
    connections: int
    max_connections: int
    users: list[UserStatus]
    admitted: int
    denied: int
    would_deny: int
    requests_denied: int
    requests_would_deny: int
    bytes_from_client: int
    bytes_from_backend: int


class RelayStatus(TypedDict):
    """One live relay. pid: None where the monitor alone knows it. cage: in words, what holds it ("seccomp", "none")."""

    number: int
    pid: int | None
    connections: int
    cage: str


class ReloadStatus(TypedDict):
    """The last reload. errors: one line each, as ``check`` prints them; empty when it succeeded."""

    time: str
    ok: bool
    errors: list[str]


class AuditStatus(TypedDict):
    """The audit log. queued: not written yet; max: when that many are, admission stops; seq: of the last event."""

    queued: int
    max: int
    seq: int


class Denial(TypedDict):
    """One connection_denied or request_denied event.

    uid, user: None where the peer could not be known; rule: None when none matched; cause: as the event has it, or
    "request"; request: None where a whole connection was denied, else in words that may be the client's.
    """

    time: str
    proxy: str
    connection: int
    uid: int | None
    user: str | None
    cause: str
    rule: str | None
    reason: str
    request: str | None


class Status(TypedDict):
    """The daemon as a whole. separation_warnings: server/separation.py; relay_restarts: relays replaced since start."""

    version: str
    started: str
    generation: int
    config: str
    last_reload: ReloadStatus | None
    separation_warnings: list[str]
    proxies: list[ProxyStatus]
    relays: list[RelayStatus]
    relay_restarts: int
    audit: AuditStatus
    latest_denials: list[Denial]


class ConnectionStatus(TypedDict):
    """One live connection. ``number``: what ``close`` takes; seconds: since it was admitted; rule: None if permissive.

    uid, gid, pid, user are the peer's at connect(); state is "connecting" (to the backend) or "open".
    """

    number: int
    proxy: str
    uid: int
    gid: int
    user: str | None
    pid: int
    rule: str | None
    seconds: float
    state: str


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of a reload. Refused (``ok`` false), the old generation goes on and ``mistakes`` say why."""

    ok: bool
    mistakes: tuple[Mistake, ...]
    generation: int


class Operator(Protocol):
    """The daemon, as far as an operator may ask. Called in the trio thread; only reload may wait.

    A call may raise: the one who asked is told of a fault, and the daemon goes on.
    """

    def status(self) -> Status:
        """A snapshot, made anew for each call."""
        ...

    def connections(self) -> Iterable[ConnectionStatus]:
        """The live ones as of now. Read lazily while others end: what it yields must not need them to be alive."""
        ...

    async def reload(self) -> ReloadResult:
        """Read the file again. Waits for every relay, within a bound of its own; one at a time, others wait."""
        ...

    def close(self, number: int) -> bool:
        """Begin to close a live connection. False: there is none of that number."""
        ...
