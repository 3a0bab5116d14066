"""Who owns which name on the bus, as far as a peer's rules ask, kept true by NameOwnerChanged. Pure data.

A rule means whoever owns a name, by that name or by its unique one; and owning is not sticky: what was the owner and
is no longer is nobody. The bus tells in the order in which things happen (dbus specification, Message Bus Messages),
so the last word on a name is the true one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.patterns import ANY, BELOW

MAX_MATCHES: Final = 16
"""Match rules for one set of rules; a bus may allow a connection few (dbus-daemon(1): 512 on a system bus)."""
MAX_OWNERS: Final = 20_000
"""Names of the bus that are followed for one connection."""
MAX_SEEN: Final = 4096
"""Unique names that a client has met."""

_NONE: Final[frozenset[str]] = frozenset()
EVERY_CHANGE: Final = (
    f"type='signal',sender='{BUS}',path='/org/freedesktop/DBus',interface='{BUS}',member='NameOwnerChanged'"
)
"""The match rule by which the bus tells of every change of an owner."""


class Owners:
    """Owners of the names that are followed. ``version`` changes whenever an owner does.

    owner  the unique name of who owns each followed name; for others to read
    """

    __slots__ = ("_names", "_seen", "owner", "version")

    def __init__(self) -> None:
        self.owner: dict[str, str] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._seen: dict[str, bool] = {}  # whether it has called the client
        self.version = 0

    def changed(self, name: str, owner: str) -> bool:
        """``name`` is owned by that unique name now; "": by nobody. False when there are too many to follow."""
        before = self.owner.pop(name, "")
        if before == owner:
            if owner:
                self.owner[name] = owner
            return True
        self.version += 1
        if before:
            left = self._names[before] - {name}
            if left:
                self._names[before] = left
            else:
                del self._names[before]
        if owner:
            if len(self.owner) >= MAX_OWNERS:
                return False
            self.owner[name] = owner
            self._names[owner] = self._names.get(owner, _NONE) | {name}
        return True

    def names_of(self, unique: str) -> frozenset[str]:
        """The followed names that this peer owns."""
        return self._names.get(unique, _NONE)

    def meant_by(self, name: str) -> frozenset[str]:
        """Every followed name that is the same peer as ``name``, well-known or unique; ``name`` among them if it is
        well-known.
        """
        if name.startswith(":"):
            return self._names.get(name, _NONE)
        owner = self.owner.get(name)
        return frozenset((name,)) if owner is None else self._names[owner] | {name}

    def keep(self, followed: Iterable[str]) -> None:
        """Forget what is owned under any other name than these."""
        for name in self.owner.keys() - set(followed):
            self.changed(name, "")

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.owner))

    def meet(self, unique: str, *, calls: bool = False) -> None:
        """The client has met this peer, and may ask about it until it has gone. calls: by a call of that peer."""
        if unique not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[unique] = calls
        elif calls:
            self._seen[unique] = True

    def met(self, unique: str) -> bool:
        return unique in self._seen

    def called(self, unique: str) -> bool:
        """Has a call of this peer come to the client?"""
        return self._seen.get(unique, False)

    def gone(self, unique: str) -> None:
        """This peer has left the bus."""
        self._seen.pop(unique, None)


def match_rules(followed: Iterable[str]) -> tuple[str, ...]:
    """Match rules by which the bus tells of the owners of these patterns ("x.y", "x.y.*", "*"), MAX_MATCHES at most.

    Where there are more patterns, whole families are followed by their first element; names of connections (":1.5")
    come and go all the time, and are told only for "*".
    """
    patterns = set(followed)
    if ANY in patterns:
        return (EVERY_CHANGE,)
    if len(patterns) > MAX_MATCHES:
        patterns = {f"{pattern.removesuffix(BELOW).partition('.')[0]}{BELOW}" for pattern in patterns}
    if len(patterns) > MAX_MATCHES:
        return (EVERY_CHANGE,)
    return tuple(sorted(map(_match_rule, patterns)))


def _match_rule(pattern: str) -> str:
    if pattern.endswith(BELOW):
        return f"{EVERY_CHANGE},arg0namespace='{pattern.removesuffix(BELOW)}'"
    return f"{EVERY_CHANGE},arg0='{pattern}'"
