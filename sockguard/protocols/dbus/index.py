"""The entries of a peer's rules by the names and members that they ask for: a verdict costs the same by one and by a
thousand. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sockguard.protocols.base import RequestVerdict
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.patterns import ANY, BELOW, AnyOf, name_matches, prefixes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a rule, less its names: those are keys of the index. ``order`` of its rule in the file."""

    order: int
    verdict: RequestVerdict
    path: AnyOf | None
    interface: AnyOf | None
    member: AnyOf | None

    def fits(self, path: str | None, interface: str | None, member: str, unknown: bool) -> bool:
        """``unknown``: what comes of a condition on something that is left out."""
        if self.member is not None and not self.member.matches(member):
            return False
        if self.interface is not None and not (unknown if interface is None else self.interface.matches(interface)):
            return False
        return self.path is None or (unknown if path is None else self.path.matches(path))


class Bucket:
    """The entries for one name or pattern, by member where they name theirs, each list in the order of the file."""

    __slots__ = ("by_member", "others")

    def __init__(self) -> None:
        self.by_member: dict[str, list[Entry]] = {}
        self.others: list[Entry] = []

    def add(self, entry: Entry) -> None:
        if entry.member is None or entry.member.others:
            self.others.append(entry)
        else:
            for member in entry.member.exact:
                self.by_member.setdefault(member, []).append(entry)

    def first(
        self, best: Entry | None, path: str | None, interface: str | None, member: str, unknown: bool
    ) -> Entry | None:
        """The first of the file among ``best`` and the entries here that fit."""
        for entries in (self.by_member.get(member, ()), self.others):
            for entry in entries:
                if best is not None and best.order <= entry.order:
                    break
                if entry.fits(path, interface, member, unknown):
                    best = entry
                    break
        return best


class Index:
    """The entries of one action about one kind of request, by their names."""

    def __init__(self, *, deny: bool) -> None:
        self._deny = deny
        self._exact: dict[str, Bucket] = {}
        self._below: dict[str, Bucket] = {}
        self._any = Bucket()
        self._named = Bucket()  # again those that have names of peers, less the names
        self._empty = True
        self.named = False  # some entry has names of peers
        self.foremost: Entry | None = None  # of all entries
        self.patterns: dict[str, None] = {}
        self.whole: dict[str, None] = {}  # the patterns of entries that nothing narrows

    def add(self, names: Sequence[str], entry: Entry) -> None:
        self._empty = False
        self.foremost = self.foremost or entry
        if any(name not in (ANY, BUS) for name in names):  # the bus shares its name with nobody
            self._named.add(entry)
            self.named = True
        for name in names:
            self.patterns[name] = None
            if entry.path is None and entry.interface is None and entry.member is None:
                self.whole[name] = None
            if name == ANY:
                self._any.add(entry)
            elif name.endswith(BELOW):
                self._below.setdefault(name.removesuffix(BELOW), Bucket()).add(entry)
            else:
                self._exact.setdefault(name, Bucket()).add(entry)

    def add_nameless(self, entry: Entry) -> None:
        """Of a deny: calls to anyone, whose names need not be known."""
        self._empty = False
        self._any.add(entry)

    def first(
        self, names: Iterable[str], path: str | None, interface: str | None, member: str, *, narrow: bool = False
    ) -> Entry | None:
        """The first entry of the file that fits, or None. narrow: only entries that name the bus exactly count."""
        if self._empty:
            return None
        deny, best = self._deny, None
        if narrow:
            bucket = self._exact.get(BUS)
            return None if bucket is None else bucket.first(None, path, interface, member, deny)
        known = False
        for name in names:
            known = True
            bucket = self._exact.get(name)
            if bucket is not None:
                best = bucket.first(best, path, interface, member, deny)
            if self._below:
                for prefix in prefixes(name):
                    bucket = self._below.get(prefix)
                    if bucket is not None:
                        best = bucket.first(best, path, interface, member, deny)
        if known or deny:  # a peer without a name is nobody that an allow could mean
            best = self._any.first(best, path, interface, member, deny)
        return best

    def first_by_some_name(self, path: str | None, interface: str | None, member: str) -> Entry | None:
        """As ``first`` for a peer that may have any names: of the entries that have names, the first that fits."""
        return self._named.first(None, path, interface, member, self._deny)

    def means(self, name: str) -> bool:
        return name_matches(tuple(self.patterns), name)

    def means_whole(self, name: str) -> bool:
        return name_matches(tuple(self.whole), name)
