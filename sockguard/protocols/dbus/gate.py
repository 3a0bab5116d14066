"""What one client may do and see on the bus at this moment: its rules, and who is who there. Knows no bytes.

Verdicts are remembered by the header that they are about, since most messages differ from an earlier one only in
their serial and body; whatever a verdict may rest on (the rules, an owner, a name that the client has come to own)
forgets them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sockguard.protocols.base import RequestRules, RequestVerdict
from sockguard.protocols.dbus.header import MAX_KNOWN
from sockguard.protocols.dbus.judge import DbusRules
from sockguard.protocols.dbus.match_rule import MatchRule
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.owners import Owners
from sockguard.protocols.dbus.patterns import name_matches
from sockguard.protocols.dbus.requests import Call, Own, Receive
from sockguard.protocols.dbus.wire import SIGNAL, Fields

MAX_REMEMBERED: Final = 1024
"""Verdicts in each direction, for each connection; of headers of at most MAX_KNOWN bytes."""
MAX_NAMES: Final = 1024
"""Well-known names that one client may have asked to own."""
MAX_WATCHED: Final = 256
"""Names that no rule is about and that one client has called, of which the owner is known."""
MAX_SUBSCRIPTIONS: Final = 1024
"""Match rules of one client by which it hears of owners."""

_ITSELF: Final = RequestVerdict(True, None, "it is to the client itself, or from it")
_OWNER: Final = "it owns a name that it was allowed to own"


class TooMuch(Exception):  # an outcome of the connection, no fault
    """A bound of this connection is reached, and it cannot go on. The text is ours and short."""


class Revoked(Exception):  # an outcome of the connection, no fault
    """What the client was given can be given to it no longer. The text is a verdict's reason."""


class Gate:
    """``unique``: the client's own name on the bus. owned: the well-known names that it has.

    calls          remembered verdicts on calls and signals of the client's, to others than the bus itself
    arrivals       on those of others
    meant          headers for some of ``calls``, by which they go to that owner of a name that the verdict is about
    requested      those that it asked for and may have or wait for
    subscriptions  match rules by which it hears of owners, and how often it gave each
    """

    def __init__(self, *, enforce: bool) -> None:
        self.owners = Owners()
        self.unique = ""
        self.owned: set[str] = set()
        self.requested: dict[str, None] = {}
        self.subscriptions: dict[MatchRule, int] = {}
        self._followed: tuple[str, ...] = ()
        self._watched: dict[str, None] = {}
        self._coming: DbusRules | None = None
        self.renew(DbusRules(()), enforce=enforce)

    def renew(self, rules: DbusRules, *, enforce: bool) -> None:
        """Judge by these rules from now on."""
        self.rules = rules
        self.enforce = enforce
        self.sees_all = rules.everything or not enforce
        self._coming = None
        self._followed = names_asked_by(rules)
        self._watched.clear()
        self.owners.keep(name for name in self.owners if self.follows(name))
        self.forget()

    def follow(self, rules: DbusRules, *, enforce: bool) -> None:
        """Take in who owns the names that these rules ask about too: they are about to hold."""
        self._followed = tuple({*self._followed, *names_asked_by(rules)})
        self._coming = rules if enforce and self.enforce else None
        self.forget()

    def follows(self, name: str) -> bool:
        """Does it matter who owns this name?"""
        return name in self._watched or name_matches(self._followed, name)

    def watch(self, name: str) -> None:
        """Its owner matters from now on, though no rule is about this name."""
        if len(self._watched) >= MAX_WATCHED:
            self.unwatch(next(iter(self._watched)))
        self._watched[name] = None

    def unwatch(self, name: str) -> None:
        """It matters no longer, until the client calls this name again."""
        self._watched.pop(name, None)
        self.owners.changed(name, "")
        self.forget()

    def forget(self) -> None:
        """Something that verdicts rest on has changed."""
        self.calls: dict[Fields, RequestVerdict] = {}
        self.arrivals: dict[Fields, RequestVerdict] = {}
        self.meant: dict[Fields, bytes] = {}

    # ── what the client sends ──

    def call(self, fields: Fields) -> RequestVerdict:
        """A call, or a signal, of the client's.

        Who owns a name may also send the signals of its service: to all, and to those who have called it. Anybody may
        talk to themselves.
        """
        verdict = self.rules.judge(self.request(fields))
        to = fields.destination
        if not verdict.allowed and verdict.rule is None:
            if to is not None and (to == self.unique or to in self.owned):
                verdict = _ITSELF
            elif fields.kind == SIGNAL and self.owned and (to is None or self.owners.called(to)):
                return RequestVerdict(True, None, _OWNER)  # not remembered: who has called it changes all the time
        if to == BUS:  # there is more to judge: ``calls`` are those that a verdict is all about
            return verdict
        return _remember(self.calls, fields, verdict)

    def hidden(self, fields: Fields) -> RequestVerdict | None:
        """What a call to a well-known name would be denied by if who owns that had another name; None: by nothing, or
        it is denied as it is.

        A peer may own several names, and a deny by one of them is about all of them.
        """
        rules, name = self.rules, fields.destination
        if not rules.denies_by_name or name is None or name.startswith(":") or name == BUS:
            return None
        verdict = rules.denied_by_some_name(fields.path, fields.interface, fields.member or "")
        return verdict if verdict is not None and rules.judge(self.request(fields)).allowed else None

    def mean(self, fields: Fields, header: bytes) -> None:
        """Calls like this one go to whom their verdict is about, by this header."""
        if len(self.meant) >= MAX_REMEMBERED:
            self.forget()
        self.meant[fields] = header

    def request(self, fields: Fields) -> Call:
        """What the client asks for, in the form that is judged. Without a destination it is of nobody known."""
        name = fields.destination or ""
        meant = self.owners.meant_by(name) if name else frozenset()
        return Call(meant, fields.path, fields.interface, fields.member or "", addressed=name)

    def own(self, name: str) -> RequestVerdict:
        """May the client own this name?"""
        return self.rules.judge(Own(name))

    def start(self, name: str) -> RequestVerdict:
        """May the client have the service of this name started? Who may call it may."""
        if self.rules.callable(name):
            return RequestVerdict(True, None, "some call to it is allowed")
        return RequestVerdict(False, None, "no call to it is allowed")

    # ── what comes to the client ──

    def arrival(self, fields: Fields) -> RequestVerdict:
        """A signal or a call from another peer, or of the client's own that the bus has brought back.

        Who offers a service may be called: that is what owning is for. While other rules are about to hold they must
        allow it too, for a client that stops amid a message can put off the answers that we wait for.
        """
        verdict = self._arrival_by(self.rules, fields)
        if verdict.allowed and self._coming is not None:
            verdict = self._arrival_by(self._coming, fields)
        return _remember(self.arrivals, fields, verdict)

    def _arrival_by(self, rules: DbusRules, fields: Fields) -> RequestVerdict:
        verdict = rules.judge(self.receive(fields))
        if not verdict.allowed and verdict.rule is None:
            if fields.sender == self.unique:
                return _ITSELF
            if fields.kind != SIGNAL and self.owned:
                return RequestVerdict(True, None, _OWNER)
        return verdict

    def receive(self, fields: Fields) -> Receive:
        """What comes to the client, in the form that is judged."""
        senders = self.owners.names_of(fields.sender or "")
        return Receive(senders, fields.path, fields.interface, fields.member or "")

    def may_answer(self, name: str, owner: str, sender: str) -> bool:
        """Can this peer be the one that was called by ``name``, which ``owner`` had at that time ("": not known)?

        A call may have found another owner than the one that was known of when it passed.
        """
        if sender in (owner, BUS):
            return sender != ""
        if name.startswith(":"):
            return False
        return name in self.owners.names_of(sender) or not name_matches(self._followed, name)

    # ── what it sees ──

    def sees(self, name: str) -> bool:
        """May the client know of this name, well-known or unique?"""
        if self.sees_all or name in (BUS, self.unique) or name in self.owned:
            return True
        if not name.startswith(":"):
            return self.rules.visible(name)
        if self.owners.met(name):
            return True
        names = self.owners.names_of(name)
        return any(map(self.rules.visible, names)) if names else self.rules.anyone()

    def owner_changed(self, name: str, old: str, new: str) -> bool:
        """The bus says so. May the client be told? Raises TooMuch."""
        seen = self.sees(name)
        if name.startswith(":"):
            if not new:
                self.owners.gone(name)
            return seen
        if seen and not self.sees_all:
            for unique in (old, new):
                if unique:
                    self.owners.meet(unique)
        if self.follows(name):
            self.learned(name, new)
        return seen

    def learned(self, name: str, owner: str) -> None:
        """A followed name is owned by that unique name, or by nobody. Raises TooMuch."""
        version = self.owners.version
        if not self.owners.changed(name, owner):
            raise TooMuch("too many names on the bus to follow")
        if self.owners.version != version:
            self.forget()

    def subscribed(self, path: str | None, name: str, old: str, new: str) -> bool:
        """Has the client asked for a NameOwnerChanged like this one?"""
        return any(
            rule.matches(SIGNAL, {BUS}, BUS, "NameOwnerChanged", path, None, (name, old, new))
            for rule in self.subscriptions
        )

    def subscribe(self, rule: MatchRule, more: int) -> None:
        """The client gave this rule once more (1), or takes it back (-1)."""
        count = self.subscriptions.pop(rule, 0) + more
        if count > 0:
            self.subscriptions[rule] = count

    def filtered(self, names: Sequence[str]) -> list[str]:
        """Those of the names that the client may know of."""
        return list(filter(self.sees, names))

    def acquired(self, name: str) -> None:
        self.owned.add(name)
        self.forget()

    def lost(self, name: str) -> None:
        self.owned.discard(name)
        self.forget()

    def to_release(self) -> list[str]:
        """The names that the client has, or waits for, and may have no longer."""
        held = dict.fromkeys(sorted(self.owned - self.requested.keys())) | self.requested
        return [name for name in held if denies(self.own(name), enforce=self.enforce)]


def denies(verdict: RequestVerdict, *, enforce: bool) -> bool:
    """Is that denied in effect? A permissive proxy lets through what it is certain of."""
    return not verdict.allowed and (enforce or verdict.uncertain)


def of_dbus(rules: RequestRules) -> DbusRules:
    """The same, if they are. Raises TypeError."""
    if not isinstance(rules, DbusRules):
        raise TypeError("rules of another protocol")
    return rules


def names_asked_by(rules: DbusRules) -> tuple[str, ...]:
    """Patterns of the names whose owners matter to these rules."""
    return () if rules.everything else rules.followed()


def _remember(memory: dict[Fields, RequestVerdict], fields: Fields, verdict: RequestVerdict) -> RequestVerdict:
    if fields.length <= MAX_KNOWN:
        if len(memory) >= MAX_REMEMBERED:
            memory.clear()
        memory[fields] = verdict
    return verdict
