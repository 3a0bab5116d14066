"""From tables to settings: names become numbers, named sets are put in, every rule gets its name.

Checks what keys of one table, one rule or one proxy mean together; what proxies mean to each other is in
crosscheck.py. Looks nothing up but accounts, and those only through lookup.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from sockguard.config.available import WHAT
from sockguard.config.document import Document, Faults, keyed
from sockguard.config.locate import Path
from sockguard.config.lookup import AccountsLike, group_id, user_id
from sockguard.config.model import WHO_KEYS, ProxyTable, RuleTable, WhoTable
from sockguard.config.requests import read_options, read_what
from sockguard.config.settings import ListenKind, Proxy
from sockguard.config.values import Bad
from sockguard.identity.peer import OVERFLOW_ID
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Who
from sockguard.protocols.registry import PROTOCOLS, default_fds
from sockguard.words import did_you_mean, quoted

_NO_WHO: Final = frozenset({"name", "until", *WHAT})
"""Keys of a rule that cannot have been meant as its *who*."""


class Resolver:
    """One reading of the configuration: the accounts, the named sets so far, the mistakes so far."""

    def __init__(self, accounts: AccountsLike, faults: Faults) -> None:
        self._accounts = accounts
        self._faults = faults
        self._sets: dict[str, NamedWho] = {}
        self._broken_sets: set[str] = set()

    def add_set(self, document: Document, name: str, table: WhoTable) -> None:
        """Take in one ``[who.NAME]``; all of them come before the first proxy."""
        path: Path = ("who", name)
        self._need_a_key(document, path, table, WHO_KEYS, "a set")
        self._sets[name] = NamedWho(name, self._who(document, path, table, overflow=False))
        if self._faults.within(document, *path):
            self._broken_sets.add(name)

    def proxy(self, document: Document, name: str, table: ProxyTable) -> Proxy | None:
        """Make one ``[proxy.NAME]``; None when there is a mistake in it, or in a set that it uses."""
        path: Path = ("proxy", name)
        for key in ("listen", "backend"):
            if getattr(table, key) is None and not self._faults.within(document, *path, key):
                self._faults.add(document, path, f"needs {key}")
        if table.connect_timeout == 0:
            self._faults.add(document, (*path, "connect_timeout"), "must be more than 0s: nothing could connect")
        self._socket_keys(document, path, table)
        if table.allow_root_identity and table.identity != "client":
            self._faults.add(document, (*path, "allow_root_identity"), 'is only for identity = "client"')
        owner = self._owner(document, (*path, "owner"), table.owner)
        group = self._owner(document, (*path, "group"), table.group)
        options = read_options(document, path, table.protocol, self._faults)
        rules = [
            *self._rules(document, path, Action.ALLOW, table.allow, table.protocol),
            *self._rules(document, path, Action.DENY, table.deny, table.protocol),
        ]
        self._rule_names(document, path, table)
        self._some_allow(document, path, table)
        fds = self._fds(document, path, table)
        if table.listen is None or table.backend is None or self._faults.within(document, *path):
            return None
        return Proxy(
            name=name,
            listen=table.listen,
            backend=table.backend,
            rules=tuple(rules),
            mode=table.mode,
            owner=owner,
            group=group,
            protocol=table.protocol,
            identity=table.identity,
            allow_root_identity=table.allow_root_identity,
            options=options,
            fds=fds,
            sender=table.sender,
            enforce=table.enforce,
            max_connections=table.max_connections,
            max_connections_per_user=table.max_connections_per_user,
            connect_timeout=table.connect_timeout,
            idle_timeout=table.idle_timeout,
        )

    def _socket_keys(self, document: Document, path: Path, table: ProxyTable) -> None:
        if table.listen is None or table.listen.kind is ListenKind.PATH:
            return
        for key in ("mode", "owner", "group"):
            if key in table.model_fields_set:
                self._faults.add(document, (*path, key), "is only for a path that sockguard binds itself")

    def _fds(self, document: Document, path: Path, table: ProxyTable) -> Literal["forward", "refuse"]:
        entry = PROTOCOLS.get(table.protocol)
        if table.fds == "forward" and entry is not None and not entry.carries_fds:
            text = f"protocol {quoted(table.protocol)} passes no file descriptors: 'refuse', or leave the key out"
            self._faults.add(document, (*path, "fds"), text)
        return table.fds or default_fds(table.protocol)

    def _owner(self, document: Document, path: Path, value: str | int | None) -> int | None:
        if value is None:
            return None
        find = user_id if path[-1] == "owner" else group_id
        try:
            return find(self._accounts, value)
        except Bad as bad:
            self._faults.add(document, path, str(bad))
            return None

    def _some_allow(self, document: Document, path: Path, table: ProxyTable) -> None:
        if table.allow or self._faults.within(document, *path, "allow"):
            return
        found = "only denies" if table.deny else "no rules"
        self._faults.add(document, path, f"{found}: nobody could connect; add [[{keyed(path)}.allow]]")

    def _rules(
        self, document: Document, path: Path, action: Action, tables: Sequence[RuleTable], protocol: str
    ) -> list[Rule]:
        rules = []
        for index, table in enumerate(tables):
            where: Path = (*path, action.value, index)
            self._need_a_key(document, where, table, ("who", *WHO_KEYS), "a rule")
            rule = Rule(
                name=table.name or _default_name(where),
                action=action,
                own=self._who(document, where, table, overflow=action is Action.DENY),
                sets=self._named(document, (*where, "who"), table.who),
                until=table.until,
                what=read_what(document, where, protocol, self._faults, deny=action is Action.DENY),
            )
            if action is Action.ALLOW and not self._faults.children(document, where) - _NO_WHO:
                self._authenticates(document, where, rule)
            rules.append(rule)
        return rules

    def _need_a_key(self, document: Document, path: Path, table: WhoTable, keys: Sequence[str], what: str) -> None:
        given = [key for key in keys if getattr(table, key) is not None]
        for key in given:
            if not getattr(table, key):
                self._faults.add(document, (*path, key), "an empty list matches nobody; leave the key out")
        if given:
            return
        # A key that is misspelt or has a wrong type is likely to be the missing one: one mistake, not two.
        broken = self._faults.children(document, path)
        if broken - _NO_WHO or (not broken and self._faults.within(document, *path)):
            return
        self._faults.add(document, path, f"{what} needs at least one of {', '.join(keys)}")

    def _authenticates(self, document: Document, path: Path, rule: Rule) -> None:
        """Executables and units say what a program is called, not whose it is: every way to match needs more."""
        for named in rule.sets or (None,):
            parts = [rule.own, named.who] if named else [rule.own]
            narrow = [key for key in ("executables", "units") if any(getattr(part, key) is not None for part in parts)]
            if narrow and all(part.users is None and part.groups is None for part in parts):
                within = f" here or in [who.{named.name}]" if named else ""
                self._faults.add(
                    document, path, f"{narrow[0]} do not authenticate: an allow also needs users or groups{within}"
                )

    def _named(self, document: Document, path: Path, names: Sequence[str | None] | None) -> tuple[NamedWho, ...]:
        found: dict[str, NamedWho] = {}
        for index, name in enumerate(names or ()):
            if name is None:
                continue
            if name in self._sets:
                found[name] = self._sets[name]
            elif not self._faults.unparsed:
                text = f"unknown set {quoted(name)}{did_you_mean(name, self._sets)}"
                self._faults.add(document, (*path, index), text)
            # A set with a mistake, or one that may stand in a file that could not be parsed: said there, not here.
            if name not in self._sets or name in self._broken_sets:
                self._faults.mute(document, (*path, index))
        return tuple(found.values())

    def _who(self, document: Document, path: Path, table: WhoTable, *, overflow: bool) -> Who:
        users = groups = None
        if table.users is not None:
            users = Users(
                uids=self._ids(document, (*path, "users"), table.users, overflow=overflow),
                ranges=tuple(value for value in table.users if isinstance(value, tuple)),
                anyone="*" in table.users,
            )
        if table.groups is not None:
            groups = self._ids(document, (*path, "groups"), table.groups, overflow=overflow)
        return Who(users, groups, _patterns(table.executables), _patterns(table.units), _patterns(table.labels))

    def _ids(
        self, document: Document, path: Path, values: Sequence[str | int | tuple[int, int] | None], *, overflow: bool
    ) -> frozenset[int]:
        """Look names up. The overflow id is refused where it could only allow; a deny may name it: unknown denies."""
        users = path[-1] == "users"
        ids = set()
        for index, value in enumerate(values):
            if value is None or isinstance(value, tuple) or (users and value == "*"):
                continue
            try:
                found = (user_id if users else group_id)(self._accounts, value)
            except Bad as bad:
                self._faults.add(document, (*path, index), str(bad))
                continue
            if found == OVERFLOW_ID and not overflow:
                text = (
                    f"is {OVERFLOW_ID}, which the kernel shows for every id without a mapping here: identifies nobody"
                )
                self._faults.add(document, (*path, index), text)
            ids.add(found)
        return frozenset(ids)

    def _rule_names(self, document: Document, path: Path, table: ProxyTable) -> None:
        """A name must mean one rule, in logs and in ``explain``."""
        taken: dict[str, Path] = {}
        named: list[tuple[str, Path]] = []
        for kind, rules in (("allow", table.allow), ("deny", table.deny)):
            for index, rule in enumerate(rules):
                where: Path = (*path, kind, index)
                if rule.name is None:
                    taken[_default_name(where)] = where
                else:
                    named.append((rule.name, where))
        for name, where in named:
            first = taken.setdefault(name, where)
            if first is not where:
                text = f"{quoted(name)} is already the name of the rule at {document.place(first)}"
                self._faults.add(document, (*where, "name"), text)


def _default_name(path: Path) -> str:
    """What a rule is called without a name of its own: ``docker.allow[0]``."""
    return f"{path[1]}.{path[2]}[{path[3]}]"


def _patterns(values: Sequence[str | None] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(value for value in values if value is not None)
