"""From audit events to the least allow rules that would have let the same peers connect, and make the same requests.

Pure: text in, text out.

The events are a file that anyone may have written to, and hold text that clients chose. So nothing of theirs reaches
the output but numbers, names that are valid as account or proxy names, what a protocol's own module makes of a request
that it can read, and, in comments, escaped ASCII. It must never suggest more than was seen: no range, no "*", a group
only by the gid that a peer itself showed, and where a proxy reads requests no rule without a *what*.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Final, Literal, TypeVar

from sockguard.identity.peer import OVERFLOW_ID
from sockguard.policy.entries import can_be_meant, what_for
from sockguard.protocols.registry import PROTOCOLS

MAX_PEERS: Final = 100_000
"""Distinct (proxy, uid, gid) that are kept; further ones are counted."""
MAX_REQUESTS: Final = 100_000
"""Distinct requests of distinct peers that are kept; further ones are counted."""
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

_Key = TypeVar("_Key", str, "Seen", "Refusal", "Wish")
By = Literal["user", "group"]
NameOf = Callable[[int], str | None]
"""From an id to a name, None without one."""
Named = Callable[["Seen"], int | str | None]
"""From a peer to what a rule has for it: a user or a group, by name or number; None: no rule can admit it."""


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """A peer as far as a rule by user or group is concerned."""

    proxy: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, order=True)
class Wish:
    """A request that a peer made, which no deny rule turned away."""

    peer: Seen
    protocol: str
    request: str


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """A peer, or requests of it, that a deny rule turned away, which no allow can change."""

    proxy: str
    rule: str
    uid: int
    requests: bool = False


@dataclass(slots=True)
class Tally:
    """What the lines read so far hold. Bounded: counts, at most MAX_PEERS peers, MAX_REQUESTS requests, and
    MAX_REFUSALS of the rest.

    events     connections and requests that count; ``others``: audit events that do not (a limit's denial, a reload)
    malformed  lines that are no audit event, or one whose fields cannot be
    overflow   by proxy, events of the overflow uid
    inspected  by proxy, connections of a protocol whose requests are judged
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
    requests: dict[Wish, int] = field(default_factory=dict)
    overflow: dict[str, int] = field(default_factory=dict)
    inspected: dict[str, int] = field(default_factory=dict)
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
            self._event(event)

    def _event(self, event: dict[str, object]) -> None:
        proxy, uid, gid, rule = event.get("proxy"), _id(event.get("uid")), _id(event.get("gid")), event.get("rule")
        if not isinstance(proxy, str) or not _PROXY.fullmatch(proxy) or uid is None or gid is None:
            self.malformed += 1
            return
        protocol, request = event.get("protocol"), event.get("request")
        wish = None
        if "request" in event or event["event"] in ("request_denied", "request_allowed"):
            if not (isinstance(protocol, str) and protocol in PROTOCOLS and isinstance(request, str)):
                self.malformed += 1
                return
            wish = Wish(Seen(proxy, uid, gid), protocol, request)
        elif not isinstance(protocol, str | None):
            self.malformed += 1
            return
        self.events += 1
        self._at(event.get("time"))
        if uid == OVERFLOW_ID:
            self._count(self.overflow, proxy, MAX_REFUSALS)
            return
        if event["event"] not in ("connection_admitted", "request_allowed") and isinstance(rule, str):
            kept = self._count(self.refusals, Refusal(proxy, _escaped(rule), uid, wish is not None), MAX_REFUSALS)
        elif wish:
            kept = self._count(self.requests, wish, MAX_REQUESTS)
        elif protocol in PROTOCOLS and not self._count(self.inspected, proxy, MAX_PEERS):
            kept = False
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
    named = _group_namer(group_name) if by == "group" else _user_namer(names)
    comments = _left_out(tally, by, names)
    rules: defaultdict[str, list[str]] = defaultdict(list)
    for proxy, values in _of_connections(tally, named).items():
        rules[proxy] += [f"[[proxy.{proxy}.allow]]", f"{by}s = {_listed(values)}"]
    for (proxy, what), values in sorted(_of_requests(tally, named).items()):
        rules[proxy] += [f"[[proxy.{proxy}.allow]]", f"{by}s = {_listed(values)}", what]
    lines = _heading(tally, by)
    for proxy in sorted({*rules, *comments}):
        lines += ["", *comments[proxy], *rules[proxy]]
    return "\n".join(lines) + "\n"


def _of_connections(tally: Tally, named: Named) -> dict[str, set[int | str]]:
    """By proxy, whom a rule for everything would let in: only where requests are not judged."""
    inspected = _inspected(tally)
    found: defaultdict[str, set[int | str]] = defaultdict(set)
    for seen in tally.peers:
        value = named(seen)
        if seen.proxy not in inspected and value is not None:
            found[seen.proxy].add(value)
    return found


def _of_requests(tally: Tally, named: Named) -> dict[tuple[str, str], set[int | str]]:
    """By proxy and the text of a *what*, for whom it is."""
    made: defaultdict[tuple[str, str, int | str], list[str]] = defaultdict(list)
    for wish in sorted(tally.requests):
        value = named(wish.peer)
        if value is not None and can_be_meant(wish.protocol, wish.request):
            made[wish.peer.proxy, wish.protocol, value].append(wish.request)
    found: defaultdict[tuple[str, str], set[int | str]] = defaultdict(set)
    for (proxy, protocol, value), requests in made.items():
        found[proxy, what_for(protocol, sorted(set(requests)))].add(value)
    return found


def _inspected(tally: Tally) -> set[str]:
    """The proxies that judge requests."""
    denied = {refusal.proxy for refusal in tally.refusals if refusal.requests}
    return denied | tally.inspected.keys() | {wish.peer.proxy for wish in tally.requests}


def _heading(tally: Tally, by: By) -> list[str]:
    span = f", {tally.first:{_TIME}} to {tally.last:{_TIME}}" if tally.first and tally.last else ""
    what = "event" if tally.requests or any(refusal.requests for refusal in tally.refusals) else "connection event"
    lines = [f"# sockguard suggest --by {by}: made from {_counted(tally.events, what)}{span}"]
    if tally.not_kept:
        lines.append(f"# {_counted(tally.not_kept, 'event')} left out: more different ones than are kept")
    if by == "group":
        lines += [
            "# Events show the effective gid alone. That a supplementary group would admit more of these peers at",
            "# once cannot be seen from them. Each group here admits all of its members, seen or not.",
        ]
    if not tally.peers and not tally.requests:
        lines.append("# no allow rule would change anything")
    return lines


def _left_out(tally: Tally, by: By, names: dict[int, str]) -> defaultdict[str, list[str]]:
    """Comments, by proxy, on the peers that no rule is written for."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for no in sorted(tally.refusals):
        who = _called(no.uid, names)
        many = _counted(tally.refusals[no], "request" if no.requests else "event")
        lines[no.proxy].append(f"# {no.proxy}: {who}, {many}: denied by {no.rule}; a deny beats every allow")
    for proxy, count in tally.overflow.items():
        many = _counted(count, "event")
        lines[proxy].append(
            f"# {proxy}: uid {OVERFLOW_ID}, {many}: stands for any uid without a mapping; no rule can admit it"
        )
    told = Counter(tally.peers)
    for wish, count in tally.requests.items():
        told[wish.peer] += count
    for seen in sorted(told) if by == "group" else ():
        if seen.gid == OVERFLOW_ID:
            many = _counted(told[seen], "event")
            lines[seen.proxy].append(
                f"# {seen.proxy}: uid {seen.uid}, {many}: came with gid {OVERFLOW_ID}, which no rule can admit"
            )
    _left_out_requests(tally, names, lines)
    return lines


def _left_out_requests(tally: Tally, names: dict[int, str], lines: defaultdict[str, list[str]]) -> None:
    """Comments on requests that no entry can mean, and on peers of which nothing but the connection is known."""
    inspected, asking = _inspected(tally), {wish.peer for wish in tally.requests}
    for seen in sorted(tally.peers.keys() - asking):
        if seen.proxy in inspected:
            who, many = _called(seen.uid, names), _counted(tally.peers[seen], "event")
            text = 'no request of it is in the log ([log] requests = "all" tells all), so no rule is written for it'
            lines[seen.proxy].append(f"# {seen.proxy}: {who}, {many}: {text}")
    for wish in sorted(tally.requests):
        if not can_be_meant(wish.protocol, wish.request):
            many = _counted(tally.requests[wish], "event")
            proxy, who = wish.peer.proxy, _called(wish.peer.uid, names)
            lines[proxy].append(f"# {proxy}: {who}, {many}: no rule can mean {_escaped(wish.request)}")


def _called(uid: int, names: dict[int, str]) -> str:
    return f"{names[uid]} (uid {uid})" if uid in names else f"uid {uid}"


def _user_namer(names: dict[int, str]) -> Named:
    return lambda seen: names.get(seen.uid, seen.uid)


def _group_namer(group_name: NameOf) -> Named:
    """An event has one gid, so that gid's group is the only one that is sure to have its peer in it."""

    @cache
    def of(gid: int) -> int | str | None:
        if gid == OVERFLOW_ID:
            return None
        name = group_name(gid)
        return name if name is not None and _ACCOUNT.fullmatch(name) else gid

    return lambda seen: of(seen.gid)


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
            return kind in ("would_deny", "request_denied", "request_allowed")


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


def _listed(values: set[int | str]) -> str:
    return f"[{', '.join(_value(value) for value in sorted(values, key=_words_first))}]"


def _value(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def _escaped(text: str) -> str:
    """A foreign text for a comment: short, one line, printable ASCII."""
    plain = ascii(text[:MAX_SHOWN])
    return plain if len(text) <= MAX_SHOWN else f"{plain}..."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
