"""Explanations: what was decided on a peer, or on a request of it, and for each rule what came of it and why.

Pure text from plain data. It asks the very functions that decide; it never decides anything itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from sockguard.identity.peer import OVERFLOW_ID, Peer, Unknown
from sockguard.policy.decide import Judgement, Key, Truth, decide, judge, judge_who, why_unknown
from sockguard.policy.patterns import unit_of
from sockguard.policy.requests import Asked, applies, decide_request, matches
from sockguard.policy.rule import Action, Rule, Users, Verdict, Who

_NO_MATCH: Final = "does not match"
SHOWN_LIMIT: Final = 12
"""Values of one list that are shown; the rest is counted."""


class Names(Protocol):
    """Names for ids, from memory (identity.accounts.Accounts is one)."""

    def name_of(self, uid: int, /) -> str | None:
        """Return a user's name."""

    def group_name_of(self, gid: int, /) -> str | None:
        """Return a group's name."""


class _NoNames:
    def name_of(self, _uid: int, /) -> str | None:
        return None

    def group_name_of(self, _gid: int, /) -> str | None:
        return None


NO_NAMES: Final[Names] = _NoNames()


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What came of one rule.

    outcome    in words: "allows", "does not match", ...
    condition  the key of the first condition that failed (False or unknown), the protocol for the *what*; None when
               all held
    why        that condition's failure in words, None when all held
    by_request whether the rule has a *what*
    """

    name: str
    action: Action
    truth: Truth
    outcome: str
    condition: str | None
    why: str | None
    by_request: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict on a peer and the outcome of every rule, in the order of the file.

    asked      the request that was asked about; None: the verdict is on the connection
    connected  whether the peer may connect; if not, no request is judged
    """

    peer: Peer
    verdict: Verdict
    rules: tuple[RuleOutcome, ...]
    asked: Asked | None = None
    connected: bool = True


def explain(
    rules: Sequence[Rule], peer: Peer, now: datetime, names: Names = NO_NAMES, asked: Asked | None = None
) -> Explanation:
    """Explain what ``decide`` says of the same arguments, or ``decide_request`` where a request is given."""
    connection = decide(rules, peer, now)
    verdict = connection if asked is None else decide_request(rules, peer, now, asked)
    judged = asked if connection.allowed else None
    outcomes = tuple(_of_rule(rule, peer, now, names, verdict, judged) for rule in rules)
    return Explanation(peer, verdict, outcomes, asked, connection.allowed)


def _of_rule(rule: Rule, peer: Peer, now: datetime, names: Names, verdict: Verdict, asked: Asked | None) -> RuleOutcome:
    judgement = judge(rule, peer, now)
    some = rule.what is not None
    if asked and some and applies(rule.action, judgement.truth) and not matches(rule, asked):
        return RuleOutcome(rule.name, rule.action, Truth.FALSE, _NO_MATCH, asked.protocol, "no entry matches", some)
    outcome = _outcome(rule, judgement, verdict, asked)
    why = None if judgement.key is None else describe(rule, peer, judgement, names)
    return RuleOutcome(rule.name, rule.action, judgement.truth, outcome, judgement.key, why, some)


def describe(rule: Rule, peer: Peer, judgement: Judgement, names: Names = NO_NAMES) -> str:
    """Put the condition that ``judgement`` says has failed into words, without its key."""
    if judgement.key == "until":
        return f"the rule ended at {_time(rule.until)}" if rule.until else ""
    if judgement.truth is Truth.UNKNOWN:
        return f"cannot be known: {printable(why_unknown(rule, peer, judgement.key))}"
    if judgement.key == "who":
        return "; ".join(_set_failure(named.name, named.who, peer, names) for named in rule.sets)
    return _mismatch(judgement.key, rule.own, peer, names)


def render(explanation: Explanation, proxy: str, names: Names = NO_NAMES) -> str:
    """Lay an explanation out for people: the verdict, its reason, a line for each rule. Ends without a newline."""
    verdict = explanation.verdict
    asked = explanation.asked
    lines = [
        f"{_allow_or_deny(verdict.allowed)}  {proxy}  {peer_text(explanation.peer, names)}",
        *([] if asked is None else [f"request  {printable(asked.text)}"]),
        f"because {'it is ' if verdict.rule else ''}{printable(verdict.reason)}",
        *_of_the_connection(explanation),
    ]
    rows = [(printable(rule.name), rule.outcome, rule) for rule in explanation.rules]
    names_wide = max((len(name) for name, _, _ in rows), default=0)
    outcomes_wide = max((len(outcome) for _, outcome, _ in rows), default=0)
    for name, outcome, rule in rows:
        tail = f"{rule.condition}: {rule.why}" if rule.condition else ""
        if asked and explanation.connected and rule.by_request and not rule.condition:
            tail = f"{asked.protocol}: matches"
        lines.append(f"  {name:<{names_wide}}  {outcome:<{outcomes_wide}}  {tail}".rstrip())
    return "\n".join(lines)


def to_json(explanation: Explanation, proxy: str) -> dict[str, object]:
    """Return an explanation as plain JSON data. The reason why a fact is null stands in "unknown"."""
    verdict, asked = explanation.verdict, explanation.asked
    return {
        "proxy": proxy,
        "verdict": _allow_or_deny(verdict.allowed),
        "rule": verdict.rule,
        "reason": verdict.reason,
        **(
            {} if asked is None else {"request": asked.text, "connection": "allow" if explanation.connected else "deny"}
        ),
        "peer": _peer_json(explanation.peer),
        "rules": [
            {
                "name": rule.name,
                "action": rule.action.value,
                "matches": {Truth.TRUE: "yes", Truth.FALSE: "no", Truth.UNKNOWN: "unknown"}[rule.truth],
                "outcome": rule.outcome,
                "condition": rule.condition,
                "why": rule.why,
                "by_request": rule.by_request,
            }
            for rule in explanation.rules
        ],
    }


def peer_text(peer: Peer, names: Names = NO_NAMES) -> str:
    """Return a peer in one line: its user, and the other facts that are known."""
    user = peer.user or names.name_of(peer.uid)
    parts = [f"user {printable(user)} (uid {peer.uid})" if user else f"uid {peer.uid}"]
    if peer.pid:
        parts.append(f"pid {peer.pid}")
    if isinstance(peer.executable, str):
        parts.append(f"program {printable(peer.executable)}")
    if isinstance(peer.cgroup, str):
        parts.append(f"cgroup {printable(peer.cgroup)}")
    if isinstance(peer.label, str):
        parts.append(f"label {printable(peer.label)}")
    return ", ".join(parts)


def printable(text: str) -> str:
    """Return text that a peer may have chosen as one line that a terminal cannot be led astray by."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def _of_the_connection(explanation: Explanation) -> list[str]:
    """What is to be said beside a verdict that is on the connection where requests have a say."""
    if not explanation.connected:
        return [] if explanation.asked is None else ["no request is judged: the connection is denied"]
    names = [rule.name for rule in explanation.rules if rule.by_request and applies(rule.action, rule.truth)]
    if explanation.asked is not None or not names:
        return []
    return [f"this is about the connection; which requests it may make depends on {_listed(names)} (see --request)"]


def _outcome(rule: Rule, judgement: Judgement, verdict: Verdict, asked: Asked | None) -> str:
    """``asked``: None also where the connection is denied, and no request is judged."""
    if judgement.truth is Truth.FALSE:
        return _NO_MATCH
    some = rule.what is not None and asked is None
    if rule.action is Action.DENY:
        if some:
            return "may deny some requests"
        return "denies" if judgement.truth is Truth.TRUE else "may match, so denies"
    if judgement.truth is Truth.UNKNOWN:
        return "may match, so does not allow"
    if not verdict.allowed:
        return "would allow, but a deny beats it"
    return "allows some requests" if some else "allows"


def _mismatch(key: Key | None, who: Who, peer: Peer, names: Names) -> str:
    """Say how a condition of ``who`` is FALSE."""
    if key == "users" and who.users is not None:
        return f"uid {peer.uid} is not among {_users(who.users, names)}"
    if key == "groups" and who.groups is not None and not isinstance(peer.groups, Unknown):
        wanted = _listed(_group(gid, names) for gid in sorted(who.groups))
        has = _listed(_group(gid, names) for gid in sorted(peer.groups))
        return f"none of its groups ({has}) is among {wanted}"
    if key == "executables" and who.executables is not None:
        return f"{printable(str(peer.executable))} matches none of {_listed(who.executables)}"
    if key == "units" and who.units is not None:
        path = str(peer.cgroup)
        unit = unit_of(path)
        shown = f"unit {printable(unit)} ({printable(path)})" if unit else f"cgroup {printable(path)}, no system unit,"
        return f"{shown} matches none of {_listed(who.units)}"
    if key == "labels" and who.labels is not None:
        return f"{printable(str(peer.label))} matches none of {_listed(who.labels)}"
    return "does not hold"


def _set_failure(name: str, who: Who, peer: Peer, names: Names) -> str:
    key = judge_who(who, peer).key
    return f"not in {name} ({key}: {_mismatch(key, who, peer, names)})"


def _users(users: Users, names: Names) -> str:
    single = [names.name_of(uid) or str(uid) for uid in sorted(users.uids)]
    ranges = [f"{low}-{high}" for low, high in users.ranges]
    return _listed([*(["*"] if users.anyone else []), *single, *ranges])


def _group(gid: int, names: Names) -> str:
    if gid == OVERFLOW_ID:
        return f"{gid} (no mapping)"
    return names.group_name_of(gid) or str(gid)


def _listed(values: Iterable[str]) -> str:
    shown = [printable(value) for value in values]
    more = len(shown) - SHOWN_LIMIT
    return ", ".join(shown[:SHOWN_LIMIT]) + (f" and {more} more" if more > 0 else "") if shown else "none"


def _allow_or_deny(allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _time(moment: datetime | None) -> str:
    return moment.isoformat().replace("+00:00", "Z") if moment else ""


def _peer_json(peer: Peer) -> dict[str, object]:
    facts: dict[str, object] = {"uid": peer.uid, "gid": peer.gid, "user": peer.user, "pid": peer.pid}
    unknown: dict[str, str] = {}
    pairs: list[tuple[str, object]] = [
        ("groups", peer.groups),
        ("executable", peer.executable),
        ("cgroup", peer.cgroup),
        ("label", peer.label),
    ]
    for key, fact in pairs:
        if isinstance(fact, Unknown):
            unknown[key] = fact.reason
            facts[key] = None
        else:
            facts[key] = sorted(fact) if isinstance(fact, frozenset) else fact
    facts["unit"] = unit_of(peer.cgroup) if isinstance(peer.cgroup, str) else None
    return {**facts, "unknown": unknown}
