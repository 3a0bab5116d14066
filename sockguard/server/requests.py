"""What relays tell of requests: checked, recorded with the peer that control knows, and paid for in credits.

Each row costs its relay a credit, and credits are given back only while the audit queue has room. A relay without any
reads requests only of users who have used up few, and half of MAX_OVERDRAFT below none of nobody. So none passes
unrecorded, and the queue holds at most MAX_QUEUED events, CREDITS + MAX_OVERDRAFT for each relay, and the ends of the
connections that are live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast, get_args

from sockguard.errors import ChannelError
from sockguard.privsep.messages import CREDITS, MAX_OVERDRAFT, Credits, Row, check_row
from sockguard.protocols.base import MAX_REQUEST_TEXT, Kind
from sockguard.server.record import Record
from sockguard.server.relay import Relay

_KINDS: Final = frozenset(get_args(Kind))
_LEAST_GIVEN: Final = CREDITS // 4  # fewer, larger gifts; what is left is enough to go on with


class Requests:
    """Takes rows of requests from relays that may lie about anything."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def take(self, relay: Relay, rows: Sequence[Row]) -> None:
        """Record them. Raises ChannelError for a row that this relay must not send."""
        relay.credit -= len(rows)
        if relay.credit < -MAX_OVERDRAFT:
            raise ChannelError("more requests than it has credits for")
        for row in rows:
            self._take_one(relay, row)
        self.give(relay)

    def give(self, relay: Relay) -> None:
        """Give back what it has used up, if the audit queue has room; if not, to be called again when it has."""
        used = CREDITS - relay.credit
        if used >= _LEAST_GIVEN and self._record.audit.has_room():
            relay.credit = CREDITS
            relay.send(Credits(used))

    def _take_one(self, relay: Relay, row: Row) -> None:
        number, kind, rule, reason, request = check_row(row, int, str, str, str, str)
        connection = relay.held.get(int(number))
        if connection is None:
            raise ChannelError("a request of a connection that it does not have")
        if kind not in _KINDS:
            raise ChannelError("a request of which it says what cannot be")
        if not relay.knows_rule(connection.admission.proxy.name, str(rule)):
            raise ChannelError("a request judged by a rule that its proxy does not have")
        if max(len(str(reason)), len(str(request))) > MAX_REQUEST_TEXT:
            raise ChannelError(f"a request told in more than {MAX_REQUEST_TEXT} characters")
        self._record.request(connection, cast(Kind, kind), str(rule) or None, str(reason), str(request))
