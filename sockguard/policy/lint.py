"""Rules that do not do what they seem to: shadowed, repeated, ended, escapable, wider than they look. Pure.

Reports only what is certain from the rules as plain data: inclusion is that of sets (uids, gids, and patterns as
literal text, so a glob that happens to cover another is not seen). It must never guess at what an author meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal

from sockguard.identity.peer import OVERFLOW_ID
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.protocols.base import Json
from sockguard.protocols.registry import PROTOCOLS, rules_of

MAX_ID: Final = 0xFFFF_FFFE
"""The highest uid or gid: 2**32 - 1 means "none" to the kernel (setresuid(2))."""

SUB_UID_MIN: Final = 100_000
"""Where useradd(8) begins to hand out sub-uids (SUB_UID_MIN, login.defs(5))."""

Alternative = tuple[Who, ...]
"""Conditions that must all hold. A rule matches if one of its alternatives does: its own, with one of its sets."""

_PATTERNS: Final = ("executables", "units", "labels")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    subject  what it is about, in the file's notation: "proxy.pg.backend", "proxy.pg.allow[2]", or "kernel"
    text     one sentence without a final stop
    remedy   what to do about it, a command where there is one; empty when nothing needs doing
    """

    severity: Literal["error", "warning", "info"]
    subject: str
    text: str
    remedy: str


def rule_findings(
    proxy: str,
    rules: Sequence[Rule],
    now: datetime,
    *,
    enforce: bool = True,
    protocol: str = "stream",
    options: Mapping[str, Json] = MappingProxyType({}),
) -> list[Finding]:
    """What is odd about the rules of one proxy, in the order of the rules.

    ``now`` is an aware datetime. ``enforce``, ``protocol`` and the protocol's ``options`` are the proxy's.
    """
    subjects = _subjects(proxy, rules)
    live = [i for i, rule in enumerate(rules) if rule.until is None or rule.until > now]
    found = list(_of_the_proxy(proxy, [rules[i] for i in live], enforce))
    for i, rule in enumerate(rules):
        if i not in live:
            found.append(_ended(subjects[i], rule))
        elif not any(_possible(alternative) for alternative in _alternatives(rule)):
            found.append(_matches_nobody(subjects[i]))
        else:
            before, after = [rules[j] for j in live if j < i], [rules[j] for j in live if j > i]
            found += _shadowed(subjects[i], rule, before, after)
            if rule.action is Action.DENY:
                found += _weak_deny(subjects[i], rule, [*before, *after])
            found += _of_its_requests(subjects[i], rule, [*before, *after], protocol, options)
    return found


def _subjects(proxy: str, rules: Sequence[Rule]) -> list[str]:
    counts = dict.fromkeys(Action, 0)
    subjects = []
    for rule in rules:
        subjects.append(f"proxy.{proxy}.{rule.action.value}[{counts[rule.action]}]")
        counts[rule.action] += 1
    return subjects


def _of_the_proxy(proxy: str, live: Sequence[Rule], enforce: bool) -> Iterator[Finding]:
    subject = f"proxy.{proxy}"
    if not enforce:
        text = "is permissive: what its rules would deny is logged and let through"
        yield Finding("warning", subject, text, "set enforce = true once the would_deny events are understood")
    if not any(rule.action is Action.ALLOW for rule in live):
        yield Finding("warning", subject, "admits nobody: no allow rule is in force", "add an allow rule")


def _ended(subject: str, rule: Rule) -> Finding:
    until = rule.until.isoformat() if rule.until else ""
    return Finding("warning", subject, f"has ended: its until was {until}", "remove it, or move its until")


def _matches_nobody(subject: str) -> Finding:
    text = "can never match: no peer meets all of its conditions"
    return Finding("warning", subject, text, "correct its users, groups and who, or remove it")


def _shadowed(subject: str, rule: Rule, before: Sequence[Rule], after: Sequence[Rule]) -> Iterator[Finding]:
    """The first deny that takes everything from an allow; else the first rule of its kind that makes it needless."""
    if rule.action is Action.ALLOW:
        for other in (*before, *after):
            if other.action is Action.DENY and _covers(other, rule):
                text = f"lets nothing through: the deny {other.name!r} covers all of it, and a deny beats every allow"
                yield Finding("warning", subject, text, "remove one of the two, or narrow the deny")
                return
    # Of two that say the same, the later one is the repetition.
    wider = [*before, *(other for other in after if not _covers(rule, other))]
    for other in wider:
        if other.action is rule.action and _covers(other, rule):
            text = f"repeats the {other.action.value} {other.name!r}: whatever it matches, that one matches too"
            yield Finding("info", subject, text, "remove it, unless its name in the audit events is wanted")
            return


def _weak_deny(subject: str, deny: Rule, others: Sequence[Rule]) -> Iterator[Finding]:
    narrowing = [k for k in ("executables", "units") if any(_asks(a, k) for a in _alternatives(deny))]
    if narrowing:
        asked = " and ".join(narrowing)
        text = f"asks for {asked}: a peer of which that cannot be known is denied too"
        yield Finding("info", subject, text, "")
    for allow in others:
        # An allow that this deny takes whole leaves nothing to escape to.
        if allow.action is Action.ALLOW and _escapable(deny, allow) and not _covers(deny, allow):
            text = (
                f"can be escaped: whoever has sub-uids (/etc/subuid) can arrive under one of them, which this deny "
                f"does not match and the allow {allow.name!r} does"
            )
            remedy = "name the users to admit in that allow, or see that nobody denied here has sub-uids or sub-gids"
            yield Finding("warning", subject, text, remedy)
            return


def _of_its_requests(
    subject: str, rule: Rule, others: Sequence[Rule], protocol: str, options: Mapping[str, Json]
) -> Iterator[Finding]:
    """What the protocol finds odd about the requests that the rule names."""
    warnings = getattr(rules_of(protocol), "warnings", None) if protocol in PROTOCOLS else None  # not every protocol's
    if warnings is not None:
        deny = rule.action is Action.DENY
        allows = [(one.name, one.what) for one in others if deny and one.action is Action.ALLOW and _meet(rule, one)]
        for text, remedy in warnings(rule.what, options, deny=deny, allows=allows):
            yield Finding("warning", subject, text, remedy)


def _escapable(deny: Rule, allow: Rule) -> bool:
    """Whether a denied account can, as one of its sub-uids or without its groups, be one that the allow admits.

    A process in a user namespace of its own takes any uid of its range, keeps its groups or drops them. So a deny by
    user is escaped to an allow that asks for no uid at all (a group, which the process keeps), or for so many that
    sub-uids are among them; a deny by group, which the process drops, to the latter only.
    """
    for away in _alternatives(deny):
        by_user = _asks(away, "users") and not _all_sub_uids(away)
        by_group = _asks(away, "groups")
        for to in _alternatives(allow):
            if not _possible(to):
                continue
            wide = _asks(to, "users") and _wide(to)
            if (by_user and (wide or not _asks(to, "users"))) or (by_group and wide and not _asks(to, "groups")):
                return True
    return False


def _all_sub_uids(alternative: Alternative) -> bool:
    return _within([(SUB_UID_MIN, MAX_ID)], _uids(alternative))


def _wide(alternative: Alternative) -> bool:
    """Whether its uids are "*" or ranges that reach where sub-uids are; single ones are meant as they are."""
    return all(
        who.users.anyone or any(high >= SUB_UID_MIN and high > low for low, high in who.users.ranges)
        for who in alternative
        if who.users is not None
    )


def _alternatives(rule: Rule) -> list[Alternative]:
    return [(rule.own, named.who) for named in rule.sets] or [(rule.own,)]


def _asks(alternative: Alternative, key: str) -> bool:
    return any(getattr(who, key) is not None for who in alternative)


def _possible(alternative: Alternative) -> bool:
    """Whether any peer can meet it. An overflow id makes a condition unknown, so it never makes one true."""
    if _asks(alternative, "users") and not _uids(alternative):
        return False
    return all(who.groups is None or who.groups - {OVERFLOW_ID} for who in alternative)


def _meet(one: Rule, other: Rule) -> bool:
    """Whether some peer may match both."""
    return any(_possible(a + b) for a in _alternatives(one) for b in _alternatives(other))


def _covers(outer: Rule, inner: Rule) -> bool:
    """Whether outer matches, from now on, every peer and request that inner matches (for a deny: or may match)."""
    lasts = outer.until is None or (inner.until is not None and inner.until <= outer.until)
    about = outer.what is None or (inner.what is not None and all(one in outer.what for one in inner.what))
    if not (lasts and about):
        return False
    unknown_matches = outer.action is Action.DENY
    narrower = _alternatives(inner)
    if inner.action is Action.ALLOW:
        narrower = [one for one in narrower if _possible(one)]  # a deny also acts where one is merely unknown
    wider = _alternatives(outer)
    return all(any(_implies(narrow, wide, unknown_matches) for wide in wider) for narrow in narrower)


def _implies(narrow: Alternative, wide: Alternative, unknown_matches: bool) -> bool:
    """Whether a peer that meets ``narrow`` is sure to meet ``wide``. Never for one without conditions."""
    asked = [key for key in ("users", "groups", *_PATTERNS) if _asks(wide, key)]
    return bool(asked) and all(
        _users_imply(narrow, wide, unknown_matches) if key == "users" else _values_imply(narrow, wide, key)
        for key in asked
    )


def _users_imply(narrow: Alternative, wide: Alternative, unknown_matches: bool) -> bool:
    if _asks(narrow, "users"):
        return _within(_uids(narrow), _uids(wide))
    # Without a condition on the uid, narrow also takes the overflow uid: "*" is false or unknown for that one.
    return unknown_matches and _within(_EVERY_UID, _uids(wide))


def _values_imply(narrow: Alternative, wide: Alternative, key: str) -> bool:
    have = [frozenset(getattr(who, key)) for who in narrow if getattr(who, key) is not None]
    want = [frozenset(getattr(who, key)) for who in wide if getattr(who, key) is not None]
    return all(any(some <= values for some in have) for values in want)


Intervals = list[tuple[int, int]]
"""Inclusive, ascending, apart from each other, and without the overflow uid."""

_EVERY_UID: Final[Intervals] = [(0, OVERFLOW_ID - 1), (OVERFLOW_ID + 1, MAX_ID)]


def _uids(alternative: Alternative) -> Intervals:
    """The uids for which every condition on the uid is true; the overflow uid is never one of them."""
    found = _EVERY_UID
    for who in alternative:
        if who.users is not None:
            found = _common(found, _intervals(who.users))
    return found


def _intervals(users: Users) -> Intervals:
    if users.anyone:
        return _EVERY_UID
    parts = sorted([*((uid, uid) for uid in users.uids), *users.ranges])
    merged: Intervals = []
    for low, high in parts:
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return _common(merged, _EVERY_UID)


def _common(a: Intervals, b: Intervals) -> Intervals:
    found: Intervals = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def _within(inner: Intervals, outer: Intervals) -> bool:
    return _common(inner, outer) == inner
