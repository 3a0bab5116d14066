"""Our own questions to the bus: who owns what the rules ask about. And with the answers, the change to other rules.

While answers are due the client's messages wait: no verdict is given on half a picture. Until the picture is whole
the rules from before hold for what comes to the client, at first no rule at all; and unless those allow everything,
the new ones with as much as is known.

Where a deny is by the name of a destination, it is about every name of who owns that one. So the client's calls to
other names wait, too, until it is known who owns those: each name is asked for once, and followed from then on. While
nobody owns it, and the call would have a service started, we have it started first: the bus would else hand the call
over at the first name that the service takes.

Our match rules are on the client's own connection, and the bus counts equal ones together: were the client's
RemoveMatch of an equal rule to reach it, it would be ours that goes. So those never do (``matches``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from sockguard.protocols.base import BACKEND, CLIENT, RequestVerdict
from sockguard.protocols.dbus import body, match_rule, wire
from sockguard.protocols.dbus.driver import PEER
from sockguard.protocols.dbus.gate import TooMuch, denies, names_asked_by
from sockguard.protocols.dbus.judge import DbusRules
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.owners import EVERY_CHANGE, MAX_MATCHES, match_rules
from sockguard.protocols.dbus.patterns import ANY, BELOW
from sockguard.protocols.dbus.requests import Own, describe
from sockguard.protocols.dbus.wire import ERROR, NO_AUTO_START, Fields, Malformed

if TYPE_CHECKING:
    from sockguard.protocols.dbus.traffic import Traffic

PATH: Final = "/org/freedesktop/DBus"
MAX_ASKED_SINGLY: Final = 32
"""Names of which each is asked for; of more, the bus is asked first which there are."""
MAX_MATCHES_EVER: Final = 4 * MAX_MATCHES
"""Match rules of our own on one connection, over all reloads."""
ANSWER_SECONDS: Final = 30.0
"""For the bus to answer what we ask, and for a service to start."""
_EVERY: Final = match_rule.parse(EVERY_CHANGE)
NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
TIMED_OUT: Final = "org.freedesktop.DBus.Error.TimedOut"
LIMITS_EXCEEDED: Final = "org.freedesktop.DBus.Error.LimitsExceeded"

# Members of calls for the sake of a service that starts; and instead of those, when the answer is waited for no longer.
_START: Final = "StartServiceByName"
_PING: Final = "Ping"
_GIVEN_UP: Final = {_START: "start given up", _PING: "ping given up"}
_OF_STARTS: Final = frozenset({*_GIVEN_UP, *_GIVEN_UP.values()})
_PINGED: Final = (_PING, _GIVEN_UP[_PING])


class Failure(NamedTuple):
    """Why a call to ``name`` cannot be passed on, and is answered with this error. ours: it is no answer of the bus."""

    name: str
    error: str
    text: str
    ours: bool = False


class Following:
    """``waiting``: the client's messages wait. asked: member and name of our calls under way, by serial.

    failure  of the client's message that is shown next
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._effects = traffic.effects
        self._gate = traffic.gate
        self._next: tuple[DbusRules, bool] | None = None
        self.asked: dict[int, tuple[str, str]] = {}
        self.matches: set[match_rule.MatchRule] = set()
        self.failure: Failure | None = None
        self.waiting = False

    def wait(self) -> None:
        """Leave the client's messages until ``_settle``: after Hello, and while answers are due."""
        if not self.waiting:
            self.waiting = True
            self._effects.pause(CLIENT)
            self._effects.timer(ANSWER_SECONDS, BACKEND)

    def resume(self) -> None:
        """Go on with the client's messages."""
        if self.waiting:
            self.waiting = False
            self._effects.timer(0)
            self._effects.resume(CLIENT)

    def adopt(self, rules: DbusRules, *, enforce: bool) -> None:
        """Go by these rules as soon as is known what they ask about."""
        self._next = rules, enforce
        self.failure = None
        self._give_up_starts()  # what waits for one is judged anew
        self._gate.follow(rules, enforce=enforce)
        followed = names_asked_by(rules)
        self._hear_of(match_rules(followed))
        if len(followed) > MAX_ASKED_SINGLY or any(name == ANY or name.endswith(BELOW) for name in followed):
            self._ask("ListNames", "", [])
        else:
            self._ask_owners(followed)
        self._settle()

    def known(self, fields: Fields, hidden: RequestVerdict) -> bool:
        """Can this call of the client's, to a name of which no owner is known, be judged by the name alone?

        False: it cannot be as yet, and the client's messages wait; or it never will, and there is a ``failure``.
        hidden: what it may turn out to be denied by.
        """
        name, failure = fields.destination or "", self.failure
        if failure is not None and failure.name == name:
            return False
        if not self._gate.follows(name):
            self._gate.watch(name)
            self._hear_of(match_rules((name,)), name)
            self._ask_owners((name,))
        elif fields.flags & NO_AUTO_START or not denies(hidden, enforce=self._gate.enforce):
            return True
        else:
            self._ask(_START, "su", [name, 0], name)
        self.wait()
        return False

    def start_timed_out(self) -> bool:
        """The time for what we wait for is over. Was it for a service to start? Then go on without."""
        if not self._due() or any(member not in _OF_STARTS for member, _ in self.asked.values()):
            return False
        name = self._give_up_starts()
        self.failure = Failure(name, TIMED_OUT, f"the service did not start within {ANSWER_SECONDS:g} s", ours=True)
        self._settle()
        return True

    def _give_up_starts(self) -> str:
        """Wait no longer for the service that starts; its name."""
        name = ""
        for serial, (member, called) in self.asked.items():
            if member in _GIVEN_UP:
                name = called
                self.asked[serial] = _GIVEN_UP[member], called
        return name

    def pinged(self, reply_to: int) -> bool:
        """A peer has answered a call that is none of the client's. Was it the service that we had started?"""
        if self.asked.get(reply_to, ("", ""))[0] not in _PINGED:
            return False
        del self.asked[reply_to]
        self._settle()
        return True

    def _hear_of(self, texts: Iterable[str], name: str = "") -> None:
        """Have the bus tell of these changes. None is ever taken back: the client may have come to share it.

        name: that it is for, where only one call of the client's needs it.
        """
        for text in texts:
            rule = match_rule.parse(text)
            if len(self.matches) >= MAX_MATCHES_EVER or (name and _EVERY in self.matches):
                text, rule = EVERY_CHANGE, _EVERY
            if rule not in self.matches:
                self.matches.add(rule)
                self._ask("AddMatch", "s", [text], name)

    def _ask_owners(self, names: Iterable[str]) -> None:
        for name in names:
            self._ask("GetNameOwner", "s", [name], name)

    def _ask(self, member: str, signature: str, arguments: list[body.Value], name: str = "") -> None:
        serial = next(self._traffic.serials_to_bus)
        self.asked[serial] = member, name
        content = body.pack(signature, arguments)
        self._effects.send(BACKEND, wire.method_call(serial, PATH, BUS, member, BUS, signature, content))

    def answered(self, reply_to: int, fields: Fields, content: bytes) -> None:
        """The bus has answered one of ``asked``. Raises Malformed, TooMuch."""
        member, name = self.asked.pop(reply_to)
        failed = fields.kind == ERROR
        if member == "AddMatch" and failed:
            self._not_heard_of(name)
        if member == "ListNames":
            if failed:
                raise Malformed("the bus does not list its names")
            known = [one for one in read_names(fields, content) if not one.startswith(":") and one != BUS]
            self._ask_owners(filter(self._gate.follows, known))
        elif member == "GetNameOwner":
            if failed and fields.error_name != NO_OWNER:
                raise Malformed("the bus does not say who owns a name")
            if self._gate.follows(name):
                self._gate.learned(name, "" if failed else read_texts(fields, content, "s")[0])
        elif member == _START:
            self._started(name, _failure(name, fields, content) if failed else None)
        self._settle()

    def _not_heard_of(self, name: str) -> None:
        """The bus does not take a match rule of ours. Raises TooMuch."""
        text = "the bus takes no more match rules, so owners cannot be followed"
        if not name or self._next is not None:
            raise TooMuch(text)
        self.matches.discard(match_rule.parse(match_rules((name,))[0]))
        self.matches.discard(_EVERY)
        self._gate.unwatch(name)
        self.failure = Failure(name, LIMITS_EXCEEDED, text, ours=True)

    def _started(self, name: str, failure: Failure | None) -> None:
        """A service has been started for a call, or could not be.

        What it owns counts when it has got round to answering: few services do before they have all their names.
        """
        self.failure = failure or Failure(name, NO_OWNER, "the service that was started for it is gone")
        if failure is None:
            self._effects.timer(ANSWER_SECONDS, BACKEND)
            self._ask_owners((name,))
            serial = next(self._traffic.serials_to_bus)
            self.asked[serial] = _PING, name
            self._effects.send(BACKEND, wire.method_call(serial, "/", PEER, _PING, name, "", b"", NO_AUTO_START))

    def _due(self) -> bool:
        """Is any answer waited for?"""
        return any(member not in _GIVEN_UP.values() for member, _ in self.asked.values())

    def _settle(self) -> None:
        """Is the picture whole?"""
        if not self._due() and self._next is not None:
            rules, enforce = self._next
            self._next = None
            self._gate.renew(rules, enforce=enforce)
            self._traffic.renewed()
            self._give_back()
        if self._due():
            self.wait()
        else:
            self.resume()

    def _give_back(self) -> None:
        """Have the names released that the client may have no longer."""
        gate = self._gate
        for name in gate.to_release():
            gate.requested.pop(name, None)
            self._effects.audit("denied", describe(Own(name)), gate.own(name))
            self._ask("ReleaseName", "s", [name])


def _failure(name: str, fields: Fields, content: bytes) -> Failure:
    """What the bus has answered to a start that failed, for the call that it was for: that fails in the same way."""
    text = read_texts(fields, content, "s")[0] if fields.signature == "s" else ""
    return Failure(name, fields.error_name or NO_OWNER, text)


def read_texts(fields: Fields, content: bytes, signature: str) -> list[str]:
    """The arguments of a message of the bus, all of them strings. Raises Malformed."""
    if fields.signature != signature:
        raise Malformed("a message of the bus itself with arguments of other types")
    return [str(value) for value in body.read(signature, content, fields.endian)]


def read_names(fields: Fields, content: bytes) -> list[str]:
    """The argument of a message of the bus, an array of strings. Raises Malformed."""
    if fields.signature != "as":
        raise Malformed("a message of the bus itself with arguments of other types")
    (found,) = body.read("as", content, fields.endian)
    return found if isinstance(found, list) else []
