"""What a client asks the bus itself, and what the bus says to it: names, lists of them, matches, owners.

The client sees no name that it may not call, hear or own: it is left out of lists, and asked for it does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from sockguard.protocols.base import CLIENT, RequestVerdict
from sockguard.protocols.dbus import body, match_rule, wire
from sockguard.protocols.dbus.driver import SIGNATURES, Service, service
from sockguard.protocols.dbus.following import LIMITS_EXCEEDED, NO_OWNER, read_names, read_texts
from sockguard.protocols.dbus.gate import MAX_NAMES, MAX_SUBSCRIPTIONS, TooMuch
from sockguard.protocols.dbus.match_rule import MatchRule
from sockguard.protocols.dbus.names import BUS, valid_bus_name, valid_well_known_name
from sockguard.protocols.dbus.requests import Own, describe
from sockguard.protocols.dbus.wire import ERROR, Fields, Malformed, set_reply_serial
from sockguard.protocols.order import ReplyOrder

if TYPE_CHECKING:
    from sockguard.protocols.dbus.traffic import Traffic

MAX_ASKED: Final = 8192
"""Calls to the bus itself that wait for their answer, and denials that wait behind them."""

ACCESS_DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
INVALID_ARGS: Final = "org.freedesktop.DBus.Error.InvalidArgs"
MATCH_INVALID: Final = "org.freedesktop.DBus.Error.MatchRuleInvalid"
MATCH_NOT_FOUND: Final = "org.freedesktop.DBus.Error.MatchRuleNotFound"

_NO_EAVESDROPPING: Final = RequestVerdict(False, None, "eavesdropping is not allowed")
_NOT_SEEN: Final = RequestVerdict(False, None, "this name is not to be seen")
_TO_NOBODY: Final = RequestVerdict(False, None, "a call without a destination, which a bus may give to anyone")


class _Refused(Exception):  # an answer to the client, no fault
    """A call cannot be what it says; the error that the client is answered with."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class _Question(NamedTuple):
    """A call to the bus by what it asks. name: the argument, if that is a name; rule: if it is a match rule."""

    asks: Service | None
    name: str = ""
    rule: MatchRule | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of the client's to the bus that waits for its answer. ``serial``: the client's."""

    serial: int
    asks: Service | None
    member: str
    added: MatchRule | None


class BusCalls:
    """``asked``: the client's calls to the bus under way, by the serial they have there."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._effects = traffic.effects
        self._gate = traffic.gate
        self._following = traffic.following
        self._order: ReplyOrder[int] = ReplyOrder(MAX_ASKED)
        self.asked: dict[int, Asked] = {}

    def answer(self, reply: bytes) -> None:
        """Answer a call of the client's ourselves, when the bus has answered those before it. Raises TooMuch."""
        if self._order.full:
            raise TooMuch(f"more than {MAX_ASKED} answers wait")
        due = self._order.denied(reply)
        if due:
            self._effects.send(CLIENT, due)

    # ── what the client asks the bus ──

    def from_client(self, fields: Fields, serial: int, message: memoryview) -> int:
        """Give the serial with which this call passes on to the bus, 0 when it does not."""
        gate, traffic = self._gate, self._traffic
        if not gate.unique:
            return self._hello(fields, serial)
        if fields.destination is None:
            # dbus-daemon gives it to whoever has a match for it, and would not answer.
            self._effects.audit("denied", describe(gate.request(fields)), _TO_NOBODY)
            traffic.refuse(fields, serial, _TO_NOBODY.reason)
            return 0
        try:
            question = _question(fields, message)
            text, verdict = self._judge(fields, question)
            if (traffic.tell_allowed or not verdict.allowed) and not traffic.permits(text, verdict):
                self._deny(fields, serial, question.asks, verdict)
                return 0
            return self._let_through(fields, serial, question)
        except _Refused as error:
            traffic.refuse(fields, serial, str(error), error.name)
            return 0

    def _hello(self, fields: Fields, serial: int) -> int:
        """The first message, by which the bus gives the client its name."""
        asks = service(fields.interface, fields.member)
        if asks is not Service.HELLO or fields.destination is None or not fields.wants_reply:
            raise Malformed("the first message is not Hello")
        self._following.wait()
        return self._pass(fields, serial, asks)

    def _judge(self, fields: Fields, question: _Question) -> tuple[str, RequestVerdict]:
        """The text for people, and the verdict: by the rules for calls first, then by what is asked about."""
        gate = self._gate
        asks, name, rule = question
        verdict = gate.call(fields)
        text = describe(gate.request(fields))
        if not verdict.allowed:
            return text, verdict
        if asks is Service.REQUEST_NAME or (asks is Service.RELEASE_NAME and name not in gate.requested):
            return describe(Own(name)), gate.own(name)
        if asks is Service.START:
            return f"{text} {name}", gate.start(name)
        if asks is Service.ASK and not gate.sees(name):
            return f"{text} {name}", _NOT_SEEN
        if rule is not None and rule.eavesdrop and not gate.rules.everything:
            return f"{text} eavesdrop=true", _NO_EAVESDROPPING
        return text, verdict

    def _deny(self, fields: Fields, serial: int, asks: Service | None, verdict: RequestVerdict) -> None:
        traffic = self._traffic
        if asks is not Service.ASK or verdict is not _NOT_SEEN:
            traffic.refuse(fields, serial, verdict.reason)
        elif fields.member == "NameHasOwner":
            self._answer(fields, serial, "b", [False])
        else:
            traffic.refuse(fields, serial, "the name has no owner", NO_OWNER)

    def _answer(
        self, fields: Fields, serial: int, signature: str = "", values: tuple[body.Value, ...] | list[body.Value] = ()
    ) -> None:
        """Answer a call in the bus's stead."""
        if fields.wants_reply:
            content = body.pack(signature, values)
            new_serial = next(self._traffic.serials_to_client)
            self.answer(wire.method_return(new_serial, serial, self._gate.unique, BUS, signature, content))

    def _let_through(self, fields: Fields, serial: int, question: _Question) -> int:
        gate = self._gate
        asks, name, rule = question
        if rule is not None:
            return self._match(fields, serial, asks, rule)
        if asks is Service.REQUEST_NAME:
            if len(gate.requested) >= MAX_NAMES and name not in gate.requested:
                raise _Refused(LIMITS_EXCEEDED, f"more than {MAX_NAMES} names")
            gate.requested[name] = None
        elif asks is Service.RELEASE_NAME:
            gate.requested.pop(name, None)
        return self._pass(fields, serial, asks)

    def _match(self, fields: Fields, serial: int, asks: Service | None, rule: MatchRule) -> int:
        gate = self._gate
        rule = replace(rule, eavesdrop=False)  # dbus-broker knows no difference
        ours = rule in self._following.matches
        if not _hears_of_owners(rule):
            return self._pass(fields, serial, asks)
        if asks is Service.ADD_MATCH:
            if rule not in gate.subscriptions and len(gate.subscriptions) >= MAX_SUBSCRIPTIONS:
                raise _Refused(LIMITS_EXCEEDED, f"more than {MAX_SUBSCRIPTIONS} matches of owners")
            gate.subscribe(rule, 1)
        elif rule in gate.subscriptions:
            gate.subscribe(rule, -1)
        elif ours:
            raise _Refused(MATCH_NOT_FOUND, "no such match rule")
        if ours:
            self._answer(fields, serial)
            return 0
        return self._pass(fields, serial, asks, rule if asks is Service.ADD_MATCH else None)

    def _pass(self, fields: Fields, serial: int, asks: Service | None, added: MatchRule | None = None) -> int:
        new_serial = next(self._traffic.serials_to_bus)
        if fields.wants_reply:
            if self._order.full or len(self.asked) >= MAX_ASKED:
                raise TooMuch(f"more than {MAX_ASKED} calls to the bus wait for their answer")
            self.asked[new_serial] = Asked(serial, asks, fields.member or "", added)
            if asks is not Service.START:  # the bus answers others while the service starts
                self._order.forwarded(new_serial)
        return new_serial

    # ── what the bus says ──

    def answered(self, fields: Fields, reply_to: int, content: bytes, data: memoryview, at: int) -> int:
        """The bus has answered one of ``asked``. Give the serial with which that passes on, 0 when it does not.

        Raises Malformed, Revoked.
        """
        traffic, gate = self._traffic, self._gate
        asked = self.asked.pop(reply_to)
        new_serial = next(traffic.serials_to_client)
        set_reply_serial(data, at, fields, asked.serial)
        if fields.kind == ERROR:
            if asked.added is not None:
                gate.subscribe(asked.added, -1)
            if not gate.unique:  # it was Hello, and may be tried again
                self._following.resume()
        elif not gate.unique:
            gate.unique = read_texts(fields, content, "s")[0]
            traffic.adopt_rules()
        elif asked.asks is Service.LIST and not gate.sees_all:
            seen = body.pack("as", [gate.filtered(read_names(fields, content))])
            traffic.say_then(wire.method_return(new_serial, asked.serial, gate.unique, BUS, "as", seen))
            new_serial = 0
        elif asked.member == "GetNameOwner" and fields.signature == "s":
            gate.owners.meet(read_texts(fields, content, "s")[0])
        elif asked.member == "BecomeMonitor":
            traffic.monitor()  # other rules may have come since it asked
            gate.forget()  # whatever it says from now on is looked at anew, and ends it
        traffic.say_then(self._order.answered(reply_to))
        return new_serial

    def signal(self, fields: Fields, content: bytes) -> bool:
        """May this signal of the bus reach the client? Raises Malformed, TooMuch."""
        gate = self._gate
        if fields.interface != BUS:
            return True
        if fields.member == "NameOwnerChanged":
            name, old, new = read_texts(fields, content, "sss")
            seen = gate.owner_changed(name, old, new)
            if not old and gate.follows(name):
                self._traffic.started(name, new)
            return seen and (not self._following.matches or gate.subscribed(fields.path, name, old, new))
        if fields.member in ("NameAcquired", "NameLost"):
            (name,) = read_texts(fields, content, "s")
            if fields.destination == gate.unique and not name.startswith(":"):
                (gate.acquired if fields.member == "NameAcquired" else gate.lost)(name)
        return True


def _question(fields: Fields, message: memoryview) -> _Question:
    """What a call asks of the bus. Raises _Refused for arguments with which the bus would refuse it as well."""
    asks = service(fields.interface, fields.member)
    if asks is None or asks not in SIGNATURES:
        return _Question(asks)
    if fields.signature != SIGNATURES[asks]:
        raise _Refused(INVALID_ARGS, "arguments of other types")
    try:
        argument = str(body.read(fields.signature, bytes(message[fields.length :]), fields.endian)[0])
    except Malformed as error:
        raise _Refused(INVALID_ARGS, str(error)) from None
    if asks is Service.ADD_MATCH or asks is Service.REMOVE_MATCH:
        try:
            return _Question(asks, rule=match_rule.parse(argument))
        except Malformed as error:
            raise _Refused(MATCH_INVALID, str(error)) from None
    valid = valid_bus_name if asks is Service.ASK else valid_well_known_name
    if not valid(argument):
        raise _Refused(INVALID_ARGS, "not a valid name")
    return _Question(asks, argument)


def _hears_of_owners(rule: MatchRule) -> bool:
    return (
        rule.kind in (None, wire.SIGNAL)
        and rule.sender in (None, BUS)
        and rule.interface in (None, BUS)
        and rule.member in (None, "NameOwnerChanged")
    )
