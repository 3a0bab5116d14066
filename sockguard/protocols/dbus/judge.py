"""A peer's reduced D-Bus rules, indexed so that a verdict costs the same by one rule and by a thousand. Pure.

A request that leaves something open (no interface, a path that is not known) is matched by no allow entry that asks
for it, and by every deny entry that does: any reading of it is denied. The bus itself takes calls on any path (facts of
dbus-daemon and dbus-broker), so for a deny their path is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias, cast

from sockguard.protocols.base import Json, RequestRule, RequestVerdict
from sockguard.protocols.dbus.driver import service
from sockguard.protocols.dbus.index import Entry, Index
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.patterns import (
    ANY,
    any_of,
    below,
    glob,
    name_matches,
    name_pattern,
    path_glob,
)
from sockguard.protocols.dbus.requests import Call, Own, Receive

PRIVILEGED_INTERFACES: Final = ("org.freedesktop.DBus.Monitoring", "org.freedesktop.DBus.Verbose")
PRIVILEGED_BELOW: Final = "org.freedesktop.DBus.Debug"
MONITOR: Final = "BecomeMonitor"
PRIVILEGED_MEMBERS: Final = frozenset({MONITOR, "UpdateActivationEnvironment", "ReloadConfig"})
"""What sees or changes the whole bus: never let through by a pattern, only by an entry that names the bus."""
PLAIN_MEMBERS: Final = frozenset(
    {
        *("Hello", "RequestName", "ReleaseName", "ListQueuedOwners", "ListNames", "ListActivatableNames"),
        *("NameHasOwner", "StartServiceByName", "GetNameOwner", "GetConnectionUnixUser", "GetConnectionUnixProcessID"),
        *("GetConnectionCredentials", "GetAdtAuditSessionData", "GetConnectionSELinuxSecurityContext", "AddMatch"),
        *("RemoveMatch", "GetId", "Ping", "GetMachineId", "Introspect", "Get", "GetAll", "Set"),
    }
)
"""Members of the bus's other interfaces (dbus specification, Message Bus Messages and Standard Interfaces): a call
without an interface that is none of these may be to a privileged one."""

_TO_EVERYONE: Final = RequestVerdict(True, None, "the bus answers it to everyone, about names that they may see or own")
_NO_RULE: Final = RequestVerdict(False, None, "no allow rule matches")
_Kind: TypeAlias = type[Call] | type[Own] | type[Receive]
_KINDS: Final[tuple[_Kind, ...]] = (Call, Own, Receive)
_TARGETS: Final[dict[str, _Kind]] = {"destination": Call, "own": Own, "receive": Receive}


class DbusRules:
    """What judges.

    everything      nothing is denied to this peer, so nothing need be looked at
    denies_by_name  some call is denied by the names of its destination
    """

    def __init__(self, rules: Sequence[RequestRule]) -> None:
        self._allow: dict[_Kind, Index] = {kind: Index(deny=False) for kind in _KINDS}
        self._deny: dict[_Kind, Index] = {kind: Index(deny=True) for kind in _KINDS}
        self._allow_all: Entry | None = None
        self._deny_all: Entry | None = None
        # Those that no permissive proxy lets through come first, and so decide.
        for order, rule in enumerate(sorted(rules, key=lambda rule: not rule.uncertain)):
            self._add(order, rule)
        self.everything = self._allow_all is not None and not any(rule.deny for rule in rules)
        self._followed = self._names_to_follow()
        self.denies_by_name = self._deny[Call].named

    def _add(self, order: int, rule: RequestRule) -> None:
        verdict = rule.verdict()
        if rule.what is None:
            entry = Entry(order, verdict, None, None, None)
            if rule.deny:
                self._deny_all = self._deny_all or entry
            else:
                self._allow_all = self._allow_all or entry
            return
        indexes = self._deny if rule.deny else self._allow
        for one in cast("list[dict[str, list[str]]]", rule.what):
            entry = Entry(
                order,
                verdict,
                any_of(map(path_glob, one["path"])) if "path" in one else None,
                any_of(map(name_pattern, one["interface"])) if "interface" in one else None,
                any_of(map(glob, one["member"])) if "member" in one else None,
            )
            targets = [key for key in _TARGETS if key in one]
            for key in targets:
                indexes[_TARGETS[key]].add(one[key], entry)
            if not targets:
                indexes[Call].add_nameless(entry)

    def judge(self, request: object, /) -> RequestVerdict:
        """Judge a Call, an Own or a Receive. Where a peer may have more names, the reason says what rests on those."""
        if self._deny_all is not None:
            return self._deny_all.verdict
        kind: _Kind
        names: Iterable[str]
        path = interface = None
        member, narrow, whole = "", False, True
        if isinstance(request, Call):
            kind, names = Call, request.destinations
            path, interface, member = request.path, request.interface, request.member
            narrow = BUS in names and privileged(interface, member)
            whole = request.whole or BUS in names
        elif isinstance(request, Receive):
            kind, names = Receive, request.senders
            path, interface, member = request.path, request.interface, request.member
            whole = request.whole or BUS in names
        elif isinstance(request, Own):
            kind, names = Own, (request.name,)
        else:
            raise TypeError(f"not a request on a bus: {request!r}")
        to_bus = kind is Call and BUS in names
        denied = self._deny[kind].first(names, None if to_bus else path, interface, member)  # it takes any path
        if denied is None and narrow and member == MONITOR:
            denied = self._deny[Receive].foremost  # a monitor hears everybody
        if denied is not None:
            return denied.verdict
        allowed = self._allow[kind].first(names, path, interface, member, narrow=narrow)
        every = self._allow_all
        if every is not None and (allowed is None or every.order < allowed.order):
            allowed = every
        if allowed is None:
            return _TO_EVERYONE if to_bus and service(interface, member) is not None else _NO_RULE
        if not whole:
            hidden = self._deny[kind].first_by_some_name(path, interface, member)
            if hidden is not None:
                reason = f"{allowed.verdict.reason}, unless its owner has another name that is {hidden.verdict.reason}"
                return allowed.verdict._replace(reason=reason)
        return allowed.verdict

    def denied_by_some_name(self, path: str | None, interface: str | None, member: str) -> RequestVerdict | None:
        """What a call like this one is denied by when whom it calls has that name, too; None when by nothing."""
        entry = self._deny[Call].first_by_some_name(path, interface, member)
        return None if entry is None else entry.verdict

    def visible(self, name: str) -> bool:
        """Whether this well-known name may be seen: some call to it, some signal from it, or owning it is allowed.

        A deny counts where nothing narrows it. True may still mean that every single call is denied.
        """
        return any(self._open(kind, name) for kind in _KINDS)

    def callable(self, name: str) -> bool:
        """Whether some call to this well-known name is allowed; a deny counts where nothing narrows it."""
        return self._open(Call, name)

    def anyone(self) -> bool:
        """Whether some call to a peer of which no name is known is allowed."""
        return self._allow_all is not None and self._deny_all is None and not self._deny[Call].means_whole(ANY)

    def _open(self, kind: _Kind, name: str) -> bool:
        if self._deny_all is not None or self._deny[kind].means_whole(name):
            return False
        return self._allow_all is not None or self._allow[kind].means(name)

    def followed(self) -> tuple[str, ...]:
        """The patterns of names whose owners a verdict can depend on: "x.y", "x.y.*", or "*"."""
        return self._followed

    def names_of_interest(self, name: str) -> bool:
        """Whether any of the patterns that are followed means this name."""
        return name_matches(self._followed, name)

    def _names_to_follow(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for indexes in (self._allow, self._deny):
            for kind in (Call, Receive):
                found.update(indexes[kind].patterns)
        return (ANY,) if ANY in found else tuple(found)


def privileged(interface: str | None, member: str) -> bool:
    """Whether a call to the bus may be one of those that see or change all of it. No interface: the bus picks one."""
    if member in PRIVILEGED_MEMBERS:
        return True
    if interface is None:
        return member not in PLAIN_MEMBERS
    return interface in PRIVILEGED_INTERFACES or below(PRIVILEGED_BELOW, interface)


def compile_rules(rules: Sequence[RequestRule], options: Mapping[str, Json]) -> DbusRules:
    """Make what judges from a peer's reduced rules. There are no options that matter to a verdict."""
    return DbusRules(rules)
