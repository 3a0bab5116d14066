"""Our own questions to the bus: who owns what the rules ask about. And with the answers, the change to other rules.

While answers are due the client's messages wait: no verdict is given on half a picture. Until the picture is whole
the rules from before hold for what comes to the client, at first no rule at all; and unless those allow everything,
the new ones with as much as is known.

Our match rules are on the client's own connection, and the bus counts equal ones together: were the client's
RemoveMatch of an equal rule to reach it, it would be ours that goes. So those never do (``matches``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sockguard.protocols.base import BACKEND, CLIENT
from sockguard.protocols.dbus import body, match_rule, wire
from sockguard.protocols.dbus.gate import TooMuch, names_asked_by
from sockguard.protocols.dbus.judge import DbusRules
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.owners import EVERY_CHANGE, MAX_MATCHES, match_rules
from sockguard.protocols.dbus.patterns import ANY, BELOW
from sockguard.protocols.dbus.requests import Own, describe
from sockguard.protocols.dbus.wire import ERROR, Fields, Malformed

if TYPE_CHECKING:
    from sockguard.protocols.dbus.traffic import Traffic

PATH: Final = "/org/freedesktop/DBus"
MAX_ASKED_SINGLY: Final = 32
"""Names of which each is asked for; of more, the bus is asked first which there are."""
MAX_MATCHES_EVER: Final = 4 * MAX_MATCHES
"""Match rules of our own on one connection, over all reloads."""
ANSWER_SECONDS: Final = 30.0
"""For the bus to answer what we ask."""
NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"


class Following:
    """``waiting``: the client's messages wait. asked: member and name of our calls under way, by serial."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._effects = traffic.effects
        self._gate = traffic.gate
        self._next: tuple[DbusRules, bool] | None = None
        self.asked: dict[int, tuple[str, str]] = {}
        self.matches: set[match_rule.MatchRule] = set()
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
        self._gate.follow(rules, enforce=enforce)
        followed = names_asked_by(rules)
        self._hear_of(match_rules(followed))
        if len(followed) > MAX_ASKED_SINGLY or any(name == ANY or name.endswith(BELOW) for name in followed):
            self._ask("ListNames", "", [])
        else:
            self._ask_owners(followed)
        self._settle()

    def _hear_of(self, texts: Iterable[str]) -> None:
        """Have the bus tell of these changes. None is ever taken back: the client may have come to share it."""
        for text in texts:
            rule = match_rule.parse(text)
            if len(self.matches) >= MAX_MATCHES_EVER:
                text, rule = EVERY_CHANGE, match_rule.parse(EVERY_CHANGE)
            if rule not in self.matches:
                self.matches.add(rule)
                self._ask("AddMatch", "s", [text])

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
            raise TooMuch("the bus takes no more match rules, so owners cannot be followed")
        if member == "ListNames":
            if failed:
                raise Malformed("the bus does not list its names")
            known = [one for one in read_names(fields, content) if not one.startswith(":") and one != BUS]
            self._ask_owners(filter(self._gate.follows, known))
        elif member == "GetNameOwner":
            if failed and fields.error_name != NO_OWNER:
                raise Malformed("the bus does not say who owns a name")
            self._gate.learned(name, "" if failed else read_texts(fields, content, "s")[0])
        self._settle()

    def _settle(self) -> None:
        """Is the picture whole?"""
        if not self.asked and self._next is not None:
            rules, enforce = self._next
            self._next = None
            self._gate.renew(rules, enforce=enforce)
            self._give_back()
        if self.asked:
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
