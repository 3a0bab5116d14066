"""Verdicts on peers: three-valued conditions, rules, and what a list of rules decides. Pure: no clock, no look-up.

A condition on a fact that cannot be known is UNKNOWN. Conditions of one rule combine by the least truth, values and
named sets by the greatest (Kleene's logic). An allow needs TRUE; a deny acts when it is TRUE or UNKNOWN. So nobody is
admitted who, were the unknown known, might have been refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, Literal

from sockguard.identity.peer import OVERFLOW_ID, Peer, Unchecked, Unknown
from sockguard.policy.patterns import executable_matches, label_matches, unit_matches
from sockguard.policy.rule import Action, Rule, Users, Verdict, Who

Key = Literal["until", "who", "users", "groups", "executables", "units", "labels"]
"""A condition by the key that the file has for it, in the order in which they are judged."""

NO_RULE: Final = "no allow rule matches"


class Truth(IntEnum):
    """Kleene's truth values, in their order."""

    FALSE = 0
    UNKNOWN = 1
    TRUE = 2


# Looking a member up on its class costs as much as a comparison of uids.
_FALSE, _UNKNOWN, _TRUE = Truth.FALSE, Truth.UNKNOWN, Truth.TRUE


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one rule, or one named set, fits one peer.

    ``key``: the first condition whose truth is that of the whole; None when all hold. There are few different
    judgements and they are shared; ``explain.describe`` puts one into words when somebody asks.
    """

    truth: Truth
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class Wants:
    """Which facts the rules of a proxy ask for, beyond the ids that the kernel gives anyway.

    groups  of a peer's groups, those that can make a difference
    """

    executable: bool = False
    cgroup: bool = False
    label: bool = False
    groups: frozenset[int] = frozenset()


_MATCHES: Final = Judgement(_TRUE)
_KEYS: Final[tuple[Key, ...]] = ("until", "who", "users", "groups", "executables", "units", "labels")
_FAILS: Final = {key: Judgement(_FALSE, key) for key in _KEYS}
_UNKNOWABLE: Final = {key: Judgement(_UNKNOWN, key) for key in _KEYS}


def decide(rules: Sequence[Rule], peer: Peer, now: datetime) -> Verdict:
    """Decide whether a peer may connect at the time ``now`` (aware).

    Order never changes whether it may. The rule named is the first, in the order given, of the strongest: a deny that
    is TRUE, then one that is UNKNOWN, then an allow that is TRUE.
    """
    uncertain: tuple[Rule, Key | None] | None = None
    allow: Rule | None = None
    for rule in rules:
        if rule.action is Action.DENY:
            if rule.what is not None:  # about some requests; those are judged when they come
                continue
            judgement = judge(rule, peer, now)
            if judgement.truth is _TRUE:
                return Verdict(False, rule.name, f"denied by {rule.name}")
            if judgement.truth is _UNKNOWN and uncertain is None:
                uncertain = rule, judgement.key
        elif allow is None and judge(rule, peer, now).truth is _TRUE:
            allow = rule
    if uncertain is not None:
        rule, key = uncertain
        why = why_unknown(rule, peer, key)
        reason = f"denied by {rule.name}: its condition on {key} cannot be known ({why})"
        return Verdict(False, rule.name, reason, uncertain=True)
    if allow is not None:
        return Verdict(True, allow.name, f"allowed by {allow.name}")
    return Verdict(False, None, NO_RULE)


def judge(rule: Rule, peer: Peer, now: datetime) -> Judgement:
    """Judge a rule's conditions on the peer and the time; not its *what*, and not what follows from its action."""
    if rule.until is not None and now >= rule.until:
        return _FAILS["until"]
    own = judge_who(rule.own, peer)
    if not rule.sets or own.truth is _FALSE:
        return own
    sets = max(judge_who(named.who, peer).truth for named in rule.sets)
    if sets < own.truth:
        return _FAILS["who"] if sets is _FALSE else _UNKNOWABLE["who"]
    return own


def judge_who(who: Who, peer: Peer) -> Judgement:
    """Judge conditions written side by side: all must hold."""
    result = _MATCHES
    # One after another and by hand: most rules fail at their users, and a proxy may have a thousand of them.
    if who.users is not None:
        truth = _users(who.users, peer.uid)
        if truth is _FALSE:
            return _FAILS["users"]
        if truth is _UNKNOWN:
            result = _UNKNOWABLE["users"]
    if who.groups is not None:
        truth = _groups(who.groups, peer)
        if truth is _FALSE:
            return _FAILS["groups"]
        if truth is _UNKNOWN and result is _MATCHES:
            result = _UNKNOWABLE["groups"]
    if who.executables is not None or who.units is not None or who.labels is not None:
        for key, patterns, fact, matches in _text_conditions(who, peer):
            truth = _text(patterns, fact, matches)
            if truth is _FALSE:
                return _FAILS[key]
            if truth is _UNKNOWN and result is _MATCHES:
                result = _UNKNOWABLE[key]
    return result


def why_unknown(rule: Rule, peer: Peer, key: Key | None) -> str:
    """Say why a rule's condition on ``key`` came out UNKNOWN; plain words without a final stop."""
    if key == "who":
        for named in rule.sets:
            judgement = judge_who(named.who, peer)
            if judgement.truth is _UNKNOWN:
                return f"{named.name}: {judgement.key}: {_fact_unknown(peer, judgement.key)}"
    return _fact_unknown(peer, key)


def next_expiry(rules: Iterable[Rule], now: datetime) -> datetime | None:
    """Return when the next of the rules that are still in force ends; None when none ever does."""
    return min((rule.until for rule in rules if rule.until is not None and rule.until > now), default=None)


def wants(rules: Iterable[Rule]) -> Wants:
    """Return which facts must be looked up to judge these rules."""
    asked = _asked(rules)
    groups = frozenset[int]().union(*(who.groups for who in asked if who.groups is not None))
    return Wants(
        executable=any(who.executables is not None for who in asked),
        cgroup=any(who.units is not None for who in asked),
        label=any(who.labels is not None for who in asked),
        groups=groups | {OVERFLOW_ID} if groups else groups,
    )


def asks_about(rules: Sequence[Rule], path: str) -> bool:
    """Can it make a difference whether a program that gives itself this path is the file that is there? It can where a
    pattern matches, and wherever a deny is about programs: that acts on one that cannot be known, too.
    """
    if any(who.executables is not None for who in _asked(rule for rule in rules if rule.action is Action.DENY)):
        return True
    return any(executable_matches(pattern, path) for who in _asked(rules) for pattern in who.executables or ())


def _asked(rules: Iterable[Rule]) -> list[Who]:
    return [who for rule in rules for who in (rule.own, *(named.who for named in rule.sets))]


_Condition = tuple[Key, tuple[str, ...], str | Unknown, Callable[[str, str], bool]]


def _text_conditions(who: Who, peer: Peer) -> list[_Condition]:
    conditions: list[_Condition] = []
    if who.executables is not None:
        conditions.append(("executables", who.executables, peer.executable, executable_matches))
    if who.units is not None:
        conditions.append(("units", who.units, peer.cgroup, unit_matches))
    if who.labels is not None:
        conditions.append(("labels", who.labels, peer.label, label_matches))
    return conditions


def _users(users: Users, uid: int) -> Truth:
    if uid == OVERFLOW_ID:  # many users of a foreign namespace look like this one, whatever the rule names
        return _UNKNOWN
    if users.anyone or uid in users.uids:
        return _TRUE
    for low, high in users.ranges:
        if low <= uid <= high:
            return _TRUE
    return _FALSE


def _groups(wanted: frozenset[int], peer: Peer) -> Truth:
    if peer.gid in wanted and peer.gid != OVERFLOW_ID:  # the gid is known even where the other groups are not
        return _TRUE
    if isinstance(peer.groups, Unknown):
        return _UNKNOWN
    shared = wanted & peer.groups
    if shared and (len(shared) > 1 or OVERFLOW_ID not in shared):
        return _TRUE
    return _UNKNOWN if OVERFLOW_ID in peer.groups else _FALSE


def _text(patterns: tuple[str, ...], fact: str | Unknown, matches: Callable[[str, str], bool]) -> Truth:
    if isinstance(fact, Unchecked):
        return _UNKNOWN if any(matches(pattern, fact.path) for pattern in patterns) else _FALSE
    if isinstance(fact, Unknown):
        return _UNKNOWN
    for pattern in patterns:  # any() would make a generator for each of a thousand rules
        if matches(pattern, fact):
            return _TRUE
    return _FALSE


def _fact_unknown(peer: Peer, key: Key | None) -> str:
    fact: object
    match key:
        case "users":
            return f"uid {OVERFLOW_ID} stands for any uid without a mapping here"
        case "groups":
            fact = peer.groups
        case "executables":
            fact = peer.executable
        case "units":
            fact = peer.cgroup
        case "labels":
            fact = peer.label
        case _:
            fact = None
    if isinstance(fact, Unknown):
        return fact.reason
    return f"gid {OVERFLOW_ID} stands for any gid without a mapping here"
