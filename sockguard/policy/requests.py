"""Rules and requests: which rules apply to a peer's requests, and what they say of one. Pure.

The one place that says so: control sends ``reduce_rules`` to relays, and ``decide_request`` is what explain and
expectations go by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sockguard.identity.peer import Peer
from sockguard.policy.decide import Truth, decide, judge
from sockguard.policy.rule import Action, Rule, Verdict
from sockguard.protocols.base import Json, RequestRule, RequestVerdict
from sockguard.protocols.registry import PROTOCOLS, rules_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that a person asks about. text: as it was typed; request: as its protocol has read it."""

    protocol: str
    options: Mapping[str, Json]
    text: str
    request: object


def ask(protocol: str, options: Mapping[str, Json], text: str) -> Asked:
    """Read a request for a proxy of this protocol, with its options. Raises Bad: it cannot be meant."""
    return Asked(protocol, options, text, rules_of(protocol).parse_request(text, options))


def has_requests(protocol: str) -> bool:
    """Whether requests of this protocol are read and judged."""
    return protocol in PROTOCOLS


def reduce_rules(rules: Sequence[Rule], peer: Peer, now: datetime) -> tuple[int, ...]:
    """Return the indexes of the rules that apply to this peer's requests at the time ``now`` (aware), in their order.

    An allow applies when its conditions on the peer are TRUE, a deny when they are TRUE or UNKNOWN; in the latter case
    its index is given as ``~index``, a number below 0.
    """
    judged = ((index, rule.action, judge(rule, peer, now).truth) for index, rule in enumerate(rules))
    return tuple(
        ~index if truth is Truth.UNKNOWN else index for index, action, truth in judged if applies(action, truth)
    )


def applies(action: Action, truth: Truth) -> bool:
    """Whether a rule whose conditions on the peer have this truth takes part in judging its requests."""
    return truth is Truth.TRUE or (truth is Truth.UNKNOWN and action is Action.DENY)


def request_rules(rules: Sequence[Rule], indexes: Iterable[int]) -> list[RequestRule]:
    """Return the rules at these indexes (of ``reduce_rules``) as their protocol compiles them."""
    return [
        request_rule(rules[index]) if index >= 0 else replace(request_rule(rules[~index]), uncertain=True)
        for index in indexes
    ]


def request_rule(rule: Rule) -> RequestRule:
    """Return one rule as its protocol compiles it."""
    return RequestRule(rule.name, rule.action is Action.DENY, None if rule.what is None else list(rule.what))


def decide_request(rules: Sequence[Rule], peer: Peer, now: datetime, asked: Asked) -> Verdict:
    """Decide on a request of a peer: if it may not connect, as ``decide`` says; else by the rules that apply to it."""
    connection = decide(rules, peer, now)
    if not connection.allowed:
        return connection
    found = judge_by(request_rules(rules, reduce_rules(rules, peer, now)), asked)
    return Verdict(found.allowed, found.rule, found.reason, found.uncertain)


def matches(rule: Rule, asked: Asked) -> bool:
    """Whether the *what* of this rule, taken by itself, matches the request."""
    return judge_by([request_rule(rule)], asked).rule is not None


def judge_by(rules: Sequence[RequestRule], asked: Asked) -> RequestVerdict:
    """Judge a request as a relay that has been sent these rules does."""
    return rules_of(asked.protocol).compile_rules(rules, asked.options).judge(asked.request)
