"""Live connections: counted in when they are admitted, counted out and told when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from sockguard.identity.groups import Groups
from sockguard.identity.peer import Peer
from sockguard.server.record import Record
from sockguard.server.turns import Turns

if TYPE_CHECKING:
    from sockguard.server.admission import Admission


@dataclass(slots=True, eq=False)
class Connection:
    """One admitted connection. ``user``: who it counts for; ``rule``: what admits it (None: a permissive proxy).

    peer         with those of its groups that the rules in force name
    groups       what else is kept of its groups, for rules to come; None: nothing, ``peer`` has them all
    proof        the monitor's word that it came in by the proxy's listening socket, where the monitor has accepted it
    connecting   cancels the wait for its backend, while it waits
    rules        those for its requests, as indexes among its proxy's; none where the protocol is not inspected
    ending       the outcome it is to end with, once that is decided
    """

    number: int
    admission: Admission
    peer: Peer
    user: int
    rule: str | None
    started: float
    rules: tuple[int, ...] = ()
    proof: str = ""
    groups: Groups | None = None
    connecting: trio.CancelScope | None = None
    ending: str = ""


class Connections:
    """All live connections by number. ``on_empty`` is called whenever the last one has ended.

    turns: at what takes long to find out about a client, whichever proxy it has come to
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._live: dict[int, Connection] = {}
        self._last_number = 0
        self.turns = Turns()
        self.on_empty: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def next_number(self) -> int:
        """A number for a connection that has arrived, admitted or not; never used twice."""
        self._last_number += 1
        return self._last_number

    def add(self, connection: Connection) -> None:
        """Take an admitted connection in and tell. Its limits were taken by its admission."""
        self._live[connection.number] = connection
        self._record.admitted(connection)

    def get(self, number: int) -> Connection | None:
        return self._live.get(number)

    def ended(
        self,
        connection: Connection,
        outcome: str,
        from_client: int | None = 0,
        from_backend: int | None = 0,
        reason: str | None = None,
    ) -> None:
        """Count a connection out and tell how it ended. Bytes are None where nobody can know them any more."""
        del self._live[connection.number]
        connection.admission.limits.give_back(connection.user)
        self._record.closed(connection, outcome, from_client, from_backend, reason)
        if not self._live:
            self.on_empty()
