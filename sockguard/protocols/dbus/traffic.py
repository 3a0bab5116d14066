"""Judges the messages of one connection, each by its header, and gives out serials. Moves no bytes.

Serials are given out anew in both directions, as each of the two sides sees one peer: the client's messages and our
own questions share one count towards the bus, the bus's messages and our own answers share another towards the
client (D-Bus specification, Message Format: a serial must be unique among a sender's).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Final

from sockguard.protocols.base import BACKEND, CLIENT, RequestRules, RequestVerdict, Start
from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.bus_calls import ACCESS_DENIED, BusCalls
from sockguard.protocols.dbus.by_owner import ByOwner
from sockguard.protocols.dbus.following import LIMITS_EXCEEDED, PATH, Following
from sockguard.protocols.dbus.gate import Gate, Revoked, TooMuch, denies, of_dbus
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.outcome import DROP, WAIT, Judge
from sockguard.protocols.dbus.requests import Call, describe
from sockguard.protocols.dbus.wire import (
    METHOD_CALL,
    SIGNAL,
    Fields,
    Malformed,
    set_reply_serial,
)

MAX_HELD: Final = 1024 * 1024
"""Bytes of one message of which the body is looked at: a list of all names of a large bus is a tenth of it."""
MAX_PENDING: Final = 8192
"""Calls in each direction that wait for their answer; dbus-daemon allows a connection 128 on a system bus."""
MAX_TOLD: Final = 256
"""Kinds of messages that did not reach the client, of which each is told once for each connection; no more are."""
MAX_TOLD_TEXT: Final = 400
"""Characters by which those kinds are told apart."""

NOT_SUPPORTED: Final = "org.freedesktop.DBus.Error.NotSupported"

_UNEXPECTED: Final = RequestVerdict(False, None, "no call waits for this reply")
_NO_FDS: Final = RequestVerdict(False, None, "the client takes no file descriptors")
_OVERHEARD: Final = RequestVerdict(False, None, "it is to somebody else")
_MONITOR: Final = Call(frozenset((BUS,)), PATH, "org.freedesktop.DBus.Monitoring", "BecomeMonitor", addressed=BUS)
_NONE: Final = (0, "", "")
_LAST_SERIAL: Final = 0xFFFFFFFF


class Traffic:
    """What a client and the bus say to each other.

    then               goes to the client behind the message that was judged last
    monitors           the client sees all of the bus from here on, and may say nothing more
    more               one of those two is new; who has done as they say takes it back
    head               of the message that was REPLACED
    judges             of messages of the client, and of the bus
    takes_fds          file descriptors were agreed on with the client
    serials_to_bus     for the messages to come, and serials_to_client
    """

    def __init__(self, start: Start) -> None:
        self.effects = start.effects
        self.gate = Gate(enforce=start.enforce)
        self.tell_allowed = start.tell_allowed
        self._rules, self._enforce = of_dbus(start.rules), start.enforce
        self._pending: dict[int, tuple[int, str, str]] = {}  # ours to the bus → (the client's, whom it called, owner)
        self._arrived: dict[int, tuple[int, str]] = {}  # ours to the client → (the caller's, the caller)
        self._told: set[str] = set()
        self.then = self.head = b""
        self.judges: list[Judge] = [self.from_client, self.from_bus]
        self.monitors = self.more = self.takes_fds = False
        self.following = Following(self)
        self.bus = BusCalls(self)
        self.by_owner = ByOwner(self)
        self.serials_to_bus = _serials(self._pending, self.bus.asked, self.following.asked)
        self.serials_to_client = _serials(self._arrived)

    @property
    def busy(self) -> bool:
        """The client waits for another peer's answer."""
        return bool(self._pending)

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        """Other rules are to hold."""
        self._rules, self._enforce = of_dbus(rules), enforce
        self.tell_allowed = tell_allowed
        if self.monitors:
            try:
                self.monitor()
            except Revoked as error:
                self.effects.end("revoked", str(error))
        elif self.gate.unique:
            self.adopt_rules()

    def monitor(self) -> None:
        """The client sees all of the bus from here on, if the rules that came last allow it. Raises Revoked."""
        verdict = self._rules.judge(_MONITOR)
        if denies(verdict, enforce=self._enforce):
            self.effects.audit("denied", describe(_MONITOR), verdict)
            raise Revoked(verdict.reason)
        self.monitors = self.more = True

    def say_then(self, data: bytes) -> None:
        """Send it, if it is anything, to the client behind the message that is judged now."""
        if data:
            self.then += data
            self.more = True

    def adopt_rules(self) -> None:
        """The client has its name, or other rules are to hold."""
        self.following.adopt(self._rules, enforce=self._enforce)

    # Each of the following gives the serial that the message is to have on the other side, or one of outcome.py.

    def from_client(self, fields: Fields, serial: int, reply_to: int, data: memoryview, at: int, after: int) -> int:
        if self.following.waiting:
            return WAIT
        gate = self.gate
        verdict = gate.calls.get(fields)  # those are calls and signals, to others than the bus itself
        if verdict is None:
            if self.monitors:
                raise Malformed("a monitor may say nothing")
            if fields.kind == METHOD_CALL and (fields.destination is None or fields.destination == BUS):
                if after - at > MAX_HELD:
                    raise Malformed("a call to the bus itself that is too long")
                return self.bus.from_client(fields, serial, data[at:after]) if after <= len(data) else WAIT
            if not gate.unique:
                raise Malformed("the first message is not Hello")
            if fields.kind != METHOD_CALL and fields.kind != SIGNAL:
                return self._answer_of_client(fields, reply_to, data, at)
            hidden = gate.hidden(fields)
            if hidden is not None:
                outcome = self.by_owner.prepare(fields, serial, hidden, data, at)
                if outcome is not None:
                    return outcome
            self.following.failure = None
            verdict = gate.call(fields)
        if (self.tell_allowed or not verdict.allowed) and not self.permits(describe(gate.request(fields)), verdict):
            if fields.kind == METHOD_CALL:
                self.refuse(fields, serial, verdict.reason)
            return DROP
        if not fields.wants_reply:
            return next(self.serials_to_bus)
        pending = self._pending
        if len(pending) >= MAX_PENDING:
            self.refuse(fields, serial, f"more than {MAX_PENDING} calls wait for their answer", LIMITS_EXCEEDED)
            return DROP
        called = fields.destination or ""
        new_serial = next(self.serials_to_bus)
        pending[new_serial] = serial, called, gate.owners.owner.get(called, called)
        return new_serial

    def renewed(self) -> None:
        """Other rules hold."""
        self.judges[CLIENT] = self.by_owner.from_client if self.gate.rules.denies_by_name else self.from_client

    def _answer_of_client(self, fields: Fields, reply_to: int, data: memoryview, at: int) -> int:
        """The client answers a call that had come to it."""
        serial, caller = self._arrived.get(reply_to, (0, ""))
        if not serial or caller != fields.destination:
            self.effects.audit("denied", f"reply {fields.destination or '-'}", _UNEXPECTED)
            return DROP
        del self._arrived[reply_to]
        set_reply_serial(data, at, fields, serial)
        return next(self.serials_to_bus)

    def permits(self, request: str, verdict: RequestVerdict) -> bool:
        """Tell of a verdict where that is wanted. True when the request passes, be it only by a permissive proxy."""
        if verdict.allowed:
            if self.tell_allowed:
                self.effects.audit("allowed", request, verdict)
            return True
        enforced = self.gate.enforce or verdict.uncertain
        self.effects.audit("denied" if enforced else "would_deny", request, verdict)
        return not enforced

    def refuse(self, fields: Fields, serial: int, reason: str, name: str = ACCESS_DENIED) -> None:
        """Answer a call of the client's ourselves, as the bus would: with an error, in its place. Raises TooMuch."""
        self.fail(fields, serial, name, f"sockguard: {reason}")

    def fail(self, fields: Fields, serial: int, name: str, text: str) -> None:
        """As ``refuse``, with a text that is somebody else's."""
        if fields.wants_reply:
            self.bus.answer(wire.error(next(self.serials_to_client), serial, name, text, self.gate.unique, BUS))

    def from_bus(self, fields: Fields, serial: int, reply_to: int, data: memoryview, at: int, after: int) -> int:
        gate, sender = self.gate, fields.sender
        if fields.destination != gate.unique and not self._for_client(fields):
            return self._overheard(fields)
        if sender == BUS and (
            fields.kind == SIGNAL
            or (fields.is_reply and (reply_to in self.bus.asked or reply_to in self.following.asked))
        ):
            if after - at > MAX_HELD:
                raise TooMuch("a message of the bus itself is too long")
            if after > len(data):
                return WAIT
            return self._from_bus_itself(fields, reply_to, data, at, after)
        if not fields.is_reply:
            return self._arrival(fields, serial)
        own, called, owner = self._pending.get(reply_to, _NONE)
        if not own or (sender != owner and not gate.may_answer(called, owner, sender or "")):
            if self.following.pinged(reply_to):
                return DROP
            self.tell_once(f"reply {sender or '-'}", _UNEXPECTED, denied=True)
            return DROP
        del self._pending[reply_to]
        if fields.unix_fds and not self.takes_fds:
            self.tell_once(f"reply {sender or '-'}", _NO_FDS, denied=True)
            text = f"sockguard: {_NO_FDS.reason}"
            self.say_then(wire.error(next(self.serials_to_client), own, NOT_SUPPORTED, text, gate.unique, BUS))
            return DROP
        pack = fields.pack
        pack(data, at + fields.reply_serial_at, own)
        return next(self.serials_to_client)

    def started(self, name: str, owner: str) -> None:
        """A name that nobody had has an owner, who gets the calls that it was started for: it may answer those even
        when it has given the name up again.
        """
        for serial, (own, called, before) in self._pending.items():
            if called == before == name:
                self._pending[serial] = own, called, owner

    def _for_client(self, fields: Fields) -> bool:
        """Is it to the client, or to all? Before Hello is answered there is nobody else that it could be to."""
        return fields.destination is None or not self.gate.unique or fields.destination in self.gate.owned

    def _overheard(self, fields: Fields) -> int:
        """A message to somebody else: the client may have asked for those while it was allowed to."""
        if self.gate.sees_all:
            return next(self.serials_to_client)
        self.tell_once(f"message {fields.sender or '-'}", _OVERHEARD, denied=True)
        return DROP

    def _from_bus_itself(self, fields: Fields, reply_to: int, data: memoryview, at: int, after: int) -> int:
        content = bytes(data[at + fields.length : after])
        if fields.kind == SIGNAL:
            return next(self.serials_to_client) if self.bus.signal(fields, content) else DROP
        if reply_to in self.following.asked:
            self.following.answered(reply_to, fields, content)
            return DROP
        return self.bus.answered(fields, reply_to, content, data, at)

    def _arrival(self, fields: Fields, serial: int) -> int:
        """A call or a signal from another peer."""
        gate = self.gate
        if fields.unix_fds and not self.takes_fds:
            return self._turn_away(fields, serial, _NO_FDS, NOT_SUPPORTED)
        if not gate.rules.everything:
            verdict = gate.arrivals.get(fields) or gate.arrival(fields)
            if not verdict.allowed:
                if gate.enforce or verdict.uncertain:
                    return self._turn_away(fields, serial, verdict, ACCESS_DENIED)
                self.tell_once(describe(gate.receive(fields)), verdict, denied=False)
            gate.owners.meet(fields.sender or "", calls=fields.kind == METHOD_CALL)
        new_serial = next(self.serials_to_client)
        if fields.wants_reply:
            if len(self._arrived) >= MAX_PENDING:
                self._forget_arrived()
            self._arrived[new_serial] = serial, fields.sender or ""
        return new_serial

    def _forget_arrived(self) -> None:
        """Make room for calls: whose are the most loses the older half of them, that no peer pushes out another's."""
        ((most, count),) = Counter(caller for _, caller in self._arrived.values()).most_common(1)
        theirs = [serial for serial, (_, caller) in self._arrived.items() if caller == most]
        for serial in theirs[: (count + 1) // 2]:
            del self._arrived[serial]

    def _turn_away(self, fields: Fields, serial: int, verdict: RequestVerdict, name: str) -> int:
        """What another peer sent does not come to the client. Answer it if it was a call."""
        self.tell_once(describe(self.gate.receive(fields)), verdict, denied=True)
        if fields.wants_reply:
            text = f"sockguard: {verdict.reason}"
            self.effects.send(BACKEND, wire.error(next(self.serials_to_bus), serial, name, text, fields.sender, None))
        return DROP

    def tell_once(self, request: str, verdict: RequestVerdict, *, denied: bool) -> None:
        """Tell of what another peer sent: once of its like, else one peer could fill the log of another."""
        like = f"{denied} {verdict.reason} {request}"[:MAX_TOLD_TEXT]
        if like not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(like)
            self.effects.audit("denied" if denied else "would_deny", request, verdict)


def _serials(*waiting: Collection[int]) -> Iterator[int]:
    """Serials without end: all that there are, then anew those that nothing waits for (there is no 0)."""
    return chain(range(1, _LAST_SERIAL + 1), _free(waiting))


def _free(waiting: Sequence[Collection[int]]) -> Iterator[int]:
    while True:
        for serial in range(1, _LAST_SERIAL + 1):
            if not any(serial in serials for serials in waiting):
                yield serial
