"""Calls where some are denied by the names of whom they call: a verdict is about a peer, by all of its names.

So a call waits until it is known who owns the name that it is addressed to, and one that is allowed goes to that peer
by its unique name: a name can change its owner while a call is on its way, and a client that owns it by another
connection can have it do so at will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sockguard.protocols.base import RequestVerdict
from sockguard.protocols.dbus.gate import denies
from sockguard.protocols.dbus.header import MAX_KNOWN
from sockguard.protocols.dbus.outcome import DROP, REPLACED, WAIT
from sockguard.protocols.dbus.readdress import readdressed
from sockguard.protocols.dbus.requests import describe
from sockguard.protocols.dbus.wire import BODY_LENGTH_AT, SERIAL_AT, Fields

if TYPE_CHECKING:
    from sockguard.protocols.dbus.traffic import Traffic


class ByOwner:
    """Stands before ``Traffic.from_client`` while rules deny calls by name."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._gate = traffic.gate
        self._following = traffic.following

    def from_client(self, fields: Fields, serial: int, reply_to: int, data: memoryview, at: int, after: int) -> int:
        """As that, but a call that is allowed goes to the very peer that it was judged for."""
        new_serial = self._traffic.from_client(fields, serial, reply_to, data, at, after)
        meant = self._gate.meant
        header = meant.get(fields) if fields.length <= MAX_KNOWN else meant.pop(fields, None)
        if header is None or new_serial <= 0:
            return new_serial
        head = bytearray(header)
        head[BODY_LENGTH_AT:SERIAL_AT] = data[at + BODY_LENGTH_AT : at + SERIAL_AT]
        fields.pack(head, SERIAL_AT, new_serial)
        self._traffic.head = bytes(head)
        return REPLACED

    def prepare(self, fields: Fields, serial: int, hidden: RequestVerdict, data: memoryview, at: int) -> int | None:
        """Have it known whom this call calls. None: it is, or that changes nothing; else what comes of the call.

        hidden: what it would be denied by if its owner had another name.
        """
        gate, following = self._gate, self._following
        owner = gate.owners.owner.get(fields.destination or "")
        if owner is not None:
            if denies(hidden, enforce=gate.enforce):
                gate.mean(fields, readdressed(bytes(data[at : at + fields.length]), fields, owner))
            return None
        if following.known(fields, hidden):
            return None
        return WAIT if following.waiting else self._cannot_be_known(fields, serial)

    def _cannot_be_known(self, fields: Fields, serial: int) -> int:
        """A call to a name that nobody owns, and that nobody has come to own."""
        traffic, failure = self._traffic, self._following.failure
        if failure is not None:
            self._following.failure = None
            if failure.ours:
                verdict = RequestVerdict(False, None, failure.text)
                traffic.effects.audit("denied", describe(self._gate.request(fields)), verdict)
                traffic.refuse(fields, serial, failure.text, failure.error)
            else:
                traffic.fail(fields, serial, failure.error, failure.text)
        return DROP
