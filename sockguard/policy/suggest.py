"""From audit events to the least allow rules that would have let the same peers connect. Pure: text in, text out.

The events are a file that anyone may have written to, and hold text that clients chose. So nothing of theirs reaches
the output but numbers, names that are valid as account or proxy names, and, in comments, escaped ASCII. It must never
suggest more than was seen: no range, no "*", and a group only by the gid that a peer itself showed.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

from sockguard.identity.peer import OVERFLOW_ID

MAX_PEERS: Final = 100_000
"""Distinct (proxy, uid, gid) that are kept; further ones are counted."""
MAX_REFUSALS: Final = 1000
"""Distinct (proxy, deny rule, uid) that are kept for comments, and proxies with events of the overflow uid."""
MAX_SHOWN: Final = 80
"""Characters of a foreign text in a comment."""
MAX_ID: Final = 0xFFFF_FFFE

_PROXY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What a proxy may be called: bare keys of TOML, so a header cannot be broken by one."""
_ACCOUNT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}\$?", re.ASCII)
"""Account and group names that are printed: those of useradd(8), and dots and capitals as directories have them.
Never a number, a range or "*", which users and groups would read as something else."""

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"

_Key = TypeVar("_Key", str, "Seen", "Refusal")
By = Literal["user", "group"]
NameOf = Callable[[int], str | None]
"""From an id to a name, None without one."""


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """A peer as far as a rule by user or group is concerned."""

    proxy: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """A peer that a deny rule turned away, which no allow can change."""

    proxy: str
    rule: str
    uid: int


@dataclass(slots=True)
class Tally:
    """What the lines read so far hold. Bounded: counts, at most MAX_PEERS peers, and at most MAX_REFUSALS of the rest.

    events     connections that count; ``others``: audit events that do not (a limit's denial, a reload)
    malformed  lines that are no audit event, or one whose fields cannot be
    overflow   by proxy, events of the overflow uid
    names      by uid; None: the events disagree about it
    """

    events: int = 0
    others: int = 0
    malformed: int = 0
    not_kept: int = 0
    first: datetime | None = None
    last: datetime | None = None
    peers: dict[Seen, int] = field(default_factory=dict)
    refusals: dict[Refusal, int] = field(default_factory=dict)
    overflow: dict[str, int] = field(default_factory=dict)
    names: dict[int, str | None] = field(default_factory=dict)

    def add(self, line: str | bytes) -> None:
        """Take in one line. A blank one is nothing at all."""
        if not line.strip():
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self.malformed += 1
        elif not _asks_for_a_rule(event):
            self.others += 1
        else:
            self._connection(event)

    def _connection(self, event: dict[str, object]) -> None:
        proxy, uid, gid, rule = event.get("proxy"), _id(event.get("uid")), _id(event.get("gid")), event.get("rule")
        if not isinstance(proxy, str) or not _PROXY.fullmatch(proxy) or uid is None or gid is None:
            self.malformed += 1
            return
        self.events += 1
        self._at(event.get("time"))
        if uid == OVERFLOW_ID:
            self._count(self.overflow, proxy, MAX_REFUSALS)
            return
        if event["event"] != "connection_admitted" and isinstance(rule, str):
            kept = self._count(self.refusals, Refusal(proxy, _escaped(rule), uid), MAX_REFUSALS)
        else:
            kept = self._count(self.peers, Seen(proxy, uid, gid), MAX_PEERS)
        user = event.get("user")
        if kept and isinstance(user, str) and _ACCOUNT.fullmatch(user) and self.names.setdefault(uid, user) != user:
            self.names[uid] = None

    def _count(self, table: dict[_Key, int], key: _Key, bound: int) -> bool:
        """Count one more of ``key``; False when the table is full without it."""
        if key not in table and len(table) >= bound:
            self.not_kept += 1
            return False
        table[key] = table.get(key, 0) + 1
        return True

    def _at(self, time: object) -> None:
        moment = _moment(time)
        if moment is not None:
            self.first = moment if self.first is None else min(self.first, moment)
            self.last = moment if self.last is None else max(self.last, moment)


def write(tally: Tally, by: By, group_name: NameOf) -> str:
    """Return the rules as TOML, comments first. The same events give the same text in whatever order they came."""
    names = _certain_names(tally)
    peers: defaultdict[str, list[Seen]] = defaultdict(list)
    for seen in sorted(tally.peers):
        peers[seen.proxy].append(seen)
    comments = _left_out(tally, by, names)
    lines = _heading(tally, by)
    for proxy in sorted({*peers, *comments}):
        lines += ["", *comments[proxy]]
        values = _groups(peers[proxy], group_name) if by == "group" else _users(peers[proxy], names)
        if values:
            listed = ", ".join(_value(value) for value in sorted(values, key=_words_first))
            lines += [f"[[proxy.{proxy}.allow]]", f"{by}s = [{listed}]"]
    return "\n".join(lines) + "\n"


def _heading(tally: Tally, by: By) -> list[str]:
    span = f", {tally.first:{_TIME}} to {tally.last:{_TIME}}" if tally.first and tally.last else ""
    lines = [f"# sockguard suggest --by {by}: made from {_counted(tally.events, 'connection event')}{span}"]
    if tally.not_kept:
        lines.append(f"# {_counted(tally.not_kept, 'event')} left out: more different peers than are kept")
    if by == "group":
        lines += [
            "# Events show the effective gid alone. That a supplementary group would admit more of these peers at",
            "# once cannot be seen from them. Each group here admits all of its members, seen or not.",
        ]
    if not tally.peers:
        lines.append("# no allow rule would change anything")
    return lines


def _left_out(tally: Tally, by: By, names: dict[int, str]) -> defaultdict[str, list[str]]:
    """Comments, by proxy, on the peers that no rule is written for."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for no in sorted(tally.refusals):
        who = f"{names[no.uid]} (uid {no.uid})" if no.uid in names else f"uid {no.uid}"
        many = _counted(tally.refusals[no], "event")
        lines[no.proxy].append(f"# {no.proxy}: {who}, {many}: denied by {no.rule}; a deny beats every allow")
    for proxy, count in tally.overflow.items():
        many = _counted(count, "event")
        lines[proxy].append(
            f"# {proxy}: uid {OVERFLOW_ID}, {many}: stands for any uid without a mapping; no rule can admit it"
        )
    for seen in sorted(tally.peers) if by == "group" else ():
        if seen.gid == OVERFLOW_ID:
            many = _counted(tally.peers[seen], "event")
            lines[seen.proxy].append(
                f"# {seen.proxy}: uid {seen.uid}, {many}: came with gid {OVERFLOW_ID}, which no rule can admit"
            )
    return lines


def _users(seen: list[Seen], names: dict[int, str]) -> set[int | str]:
    return {names.get(one.uid, one.uid) for one in seen}


def _groups(seen: list[Seen], group_name: NameOf) -> set[int | str]:
    """The smallest set of groups that covers: an event has one gid, so each gid is the only one to cover its peers."""
    found: set[int | str] = set()
    for gid in {one.gid for one in seen} - {OVERFLOW_ID}:
        name = group_name(gid)
        found.add(name if name is not None and _ACCOUNT.fullmatch(name) else gid)
    return found


def _certain_names(tally: Tally) -> dict[int, str]:
    """The names that stand for one uid, of uids that have one name; of any other the number is printed."""
    uses = Counter(tally.names.values())
    return {uid: name for uid, name in tally.names.items() if name is not None and uses[name] == 1}


def _asks_for_a_rule(event: dict[str, object]) -> bool:
    match event["event"]:
        case "connection_denied":  # for a limit, or because the backend was down, is for no rule to change
            return event.get("cause") == "rules"
        case "connection_admitted":  # without a rule, a permissive proxy let it in: its would_deny says why
            return event.get("rule") is not None
        case kind:
            return kind == "would_deny"


def _id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID else None


def _moment(time: object) -> datetime | None:
    """Read an ISO 8601 time with an offset, as UTC; None for anything else."""
    if not isinstance(time, str):
        return None
    try:
        moment = datetime.fromisoformat(time)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _words_first(value: int | str) -> tuple[bool, int, str]:
    return (True, value, "") if isinstance(value, int) else (False, 0, value)


def _value(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def _escaped(text: str) -> str:
    """A foreign text for a comment: short, one line, printable ASCII."""
    plain = ascii(text[:MAX_SHOWN])
    return plain if len(text) <= MAX_SHOWN else f"{plain}..."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
