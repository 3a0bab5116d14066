"""What the monitor takes from the configuration itself, so that it need not trust control's values.

Control validates the file, all of it, and asks by proxy name only after that. So this reading is tolerant: what is
not as it should be is left out here, and asking for it fails.
"""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import tomli

from sockguard.config.read import Source
from sockguard.policy.patterns import fault
from sockguard.privsep.listening import ListenSpec
from sockguard.privsep.rights import CAP_CHOWN, CAP_SYS_PTRACE
from sockguard.protocols.registry import default_fds

_DEFAULT_MODE: Final = 0o666


def listen_specs(sources: Iterable[Source]) -> dict[str, ListenSpec]:
    """What each proxy listens on, by its name."""
    specs = {}
    for name, table in _tables(sources, "proxy"):
        text = table.get("listen")
        if not isinstance(text, str) or not text:
            continue
        kind, text = _kind(text)
        mode = table.get("mode", _DEFAULT_MODE)
        owner = _id(table.get("owner"), _uid)
        group = _id(table.get("group"), _gid)
        specs[name] = ListenSpec(
            proxy=name,
            kind=kind,
            text=text,
            mode=mode if isinstance(mode, int) else _DEFAULT_MODE,
            owner=owner,
            group=group,
            refuse_fds=_refuses_fds(table),
            records=table.get("protocol") == "seqpacket",
            credentials=table.get("sender") == "same-user",
        )
    return specs


@dataclass(frozen=True, slots=True)
class Impersonation:
    """A proxy whose backend is to see the client: where it is, of which socket type, and whether as root, too."""

    backend: str
    type: int
    root: bool
    refuse_fds: bool


def impersonations(sources: Iterable[Source]) -> dict[str, Impersonation]:
    """The proxies with ``identity = "client"``, by name."""
    return {
        name: Impersonation(
            backend,
            socket.SOCK_SEQPACKET if table.get("protocol") == "seqpacket" else socket.SOCK_STREAM,
            table.get("allow_root_identity") is True,
            _refuses_fds(table),
        )
        for name, table in _tables(sources, "proxy")
        if table.get("identity") == "client" and isinstance(backend := table.get("backend"), str)
    }


def executables(sources: Iterable[Source]) -> dict[str, frozenset[str]]:
    """The programs, as patterns by proxy, whose files are to be looked at: those that its rules or any named set name;
    and all, where a deny is about programs, since that acts on one that cannot be known, too.
    """
    sources = tuple(sources)
    named = _executables(table for _, table in _tables(sources, "who"))
    found = {}
    for name, table in _tables(sources, "proxy"):
        denies = [rule for rule in _list(table.get("deny")) if isinstance(rule, Mapping)]
        every = any("executables" in rule or (named and "who" in rule) for rule in denies)
        found[name] = frozenset({"**"}) if every else named | _executables(_rules(table))
    return found


def needed_capabilities(sources: Iterable[Source]) -> frozenset[int]:
    """What some proxy asks for, besides what starting processes under their own uids takes."""
    sources = tuple(sources)
    needed = set()
    proxies = [table for _, table in _tables(sources, "proxy")]
    rules = [rule for table in proxies for rule in _rules(table)]
    sets = [table for _, table in _tables(sources, "who")]
    if any(isinstance(table, Mapping) and "executables" in table for table in (*rules, *sets)):
        needed.add(CAP_SYS_PTRACE)
    if any("owner" in table or "group" in table for table in proxies):
        needed.add(CAP_CHOWN)
    return frozenset(needed)


def _tables(sources: Iterable[Source], key: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    for source in sources:
        try:
            document = tomli.loads(source.text.decode())
        except (ValueError, RecursionError):
            continue
        tables = document.get(key)
        if isinstance(tables, dict):
            yield from ((name, table) for name, table in tables.items() if isinstance(table, dict))


def _rules(table: Mapping[str, object]) -> list[object]:
    return [rule for key in ("allow", "deny") for rule in _list(table.get(key))]


def _executables(rules: Iterable[object]) -> frozenset[str]:
    return frozenset(
        pattern
        for rule in rules
        if isinstance(rule, Mapping)
        for pattern in _list(rule.get("executables"))
        if isinstance(pattern, str) and not fault(pattern)
    )


def _refuses_fds(table: Mapping[str, object]) -> bool:
    return table.get("fds", default_fds(str(table.get("protocol", "stream")))) == "refuse"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _kind(text: str) -> tuple[str, str]:
    if text.startswith("@"):
        return "abstract", text[1:]
    if text.startswith("fd:"):
        return "fd", text[3:]
    return "path", text


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _id(value: object, look_up: object) -> int | None:
    if isinstance(value, int):
        return value
    if isinstance(value, str) and callable(look_up):
        try:
            return int(look_up(value))
        except KeyError:
            return None
    return None
