"""Which rules apply to the requests of a peer, and what they say: for control, explain and expectations alike."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockguard.identity.peer import Peer, Unknown
from sockguard.policy.decide import Truth, decide, judge
from sockguard.policy.explain import explain
from sockguard.policy.requests import (
    applies,
    ask,
    decide_request,
    has_requests,
    judge_by,
    reduce_rules,
    request_rules,
)
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.protocols.base import Bad, Json, RequestRule

NOW = datetime(2027, 1, 31, tzinfo=UTC)
PEER = Peer(1000, 100, frozenset([100]), executable=Unknown("gone"))
ME = Who(users=Users(uids=frozenset([1000])))
OTHER = Who(users=Users(uids=frozenset([1001])))
UNCLEAR = Who(users=ME.users, executables=("/bin/x",))
ONE: Json = {"destination": ["o.A"], "member": ["M"]}
ALL: Json = {"destination": ["*"]}
CALL = ask("dbus", {}, "call o.A / x.y.M")
ALLOW, DENY = Action.ALLOW, Action.DENY


def rule(action: Action, who: Who = ME, *what: Json, **more: Any) -> Rule:
    """A rule named after its action."""
    return dataclasses.replace(Rule(action.value, action, who, what=what or None), **more)


def test_which_rules_apply() -> None:
    """Allows that are sure to match, and denies that may; none whose time has passed."""
    rules = [
        rule(ALLOW),
        rule(ALLOW, OTHER),
        rule(ALLOW, UNCLEAR),
        rule(ALLOW, ME, ONE),
        rule(ALLOW, until=NOW),
        rule(ALLOW, until=NOW + timedelta(seconds=1)),
        rule(DENY, ME, ONE),
        rule(DENY, OTHER, ONE),
        rule(DENY, UNCLEAR, ONE),
        rule(DENY, UNCLEAR),
        rule(DENY, until=NOW),
    ]
    indexes = reduce_rules(rules, PEER, NOW)
    assert indexes == (0, 3, 5, 6, ~8, ~9)
    assert request_rules(rules, indexes) == [
        RequestRule("allow", False, None),
        RequestRule("allow", False, [ONE]),
        RequestRule("allow", False, None),
        RequestRule("deny", True, [ONE]),
        RequestRule("deny", True, [ONE], uncertain=True),
        RequestRule("deny", True, None, uncertain=True),
    ]


@pytest.mark.parametrize(
    ("rules", "allowed", "reason"),
    [
        ([rule(ALLOW)], True, "allowed by allow"),
        ([rule(ALLOW, ME, ONE)], True, "allowed by allow"),
        ([rule(ALLOW, OTHER, ONE)], False, "no allow rule matches"),
        ([rule(ALLOW, ME, {"own": ["o.A"]})], False, "no allow rule matches"),
        ([rule(ALLOW, UNCLEAR, ONE), rule(ALLOW, ME, {"own": ["o.A"]})], False, "no allow rule matches"),
        ([rule(ALLOW), rule(DENY, ME, ONE)], False, "denied by deny"),
        (
            [rule(ALLOW), rule(DENY, UNCLEAR, ONE)],
            False,
            "denied by deny: whether it is about this peer cannot be known",
        ),
        ([rule(ALLOW), rule(DENY, OTHER, ONE)], True, "allowed by allow"),
        ([rule(ALLOW), rule(DENY, ME, ONE, until=NOW)], True, "allowed by allow"),
        ([rule(ALLOW, ME, ALL), rule(DENY)], False, "denied by deny"),
    ],
)
def test_verdicts(rules: list[Rule], allowed: bool, reason: str) -> None:
    """The connection's verdict first; then a deny that matches, and may match the peer, beats every allow."""
    verdict = decide_request(rules, PEER, NOW, CALL)
    assert (verdict.allowed, verdict.reason) == (allowed, reason)
    assert decide_request(rules[::-1], PEER, NOW, CALL).allowed is allowed


def test_a_deny_that_may_be_about_the_peer_comes_first() -> None:
    """It is the one that no permissive proxy lets through, so it is the one that is named."""
    unclear = Rule("unclear", DENY, UNCLEAR, what=(ONE,))
    verdict = decide_request([rule(ALLOW), rule(DENY, ME, ONE), unclear], PEER, NOW, CALL)
    assert (verdict.rule, verdict.uncertain) == ("unclear", True)


def test_a_connection_that_is_denied_says_why() -> None:
    """The reason is the connection's: a deny whose conditions cannot be known is said to be one."""
    verdict = decide_request([rule(ALLOW), rule(DENY, UNCLEAR)], PEER, NOW, CALL)
    assert verdict == decide([rule(ALLOW), rule(DENY, UNCLEAR)], PEER, NOW)
    assert verdict.uncertain
    assert "cannot be known" in verdict.reason


def test_no_entry_is_not_everything() -> None:
    """A rule whose *what* came out empty matches no request."""
    assert not decide_request([dataclasses.replace(rule(ALLOW), what=())], PEER, NOW, CALL).allowed


def test_what_has_requests() -> None:
    """A stream has none to ask about; a request that is none is Bad."""
    assert [name for name in ("stream", "seqpacket", "dbus", "http") if has_requests(name)] == ["dbus", "http"]
    with pytest.raises(Bad):
        ask("dbus", {}, "cal")


whos = st.sampled_from([ME, OTHER, UNCLEAR])
whats = st.lists(st.sampled_from([ONE, ALL, {"own": ["o.A"]}, {"destination": ["o.B"]}]), max_size=2)
made = st.builds(lambda action, who, what: rule(action, who, *what), st.sampled_from(Action), whos, whats)
requests = st.sampled_from(["call o.A / x.y.M", "call o.A / N", "call o.B / x.y.M", "own o.A", "receive o.A x.y.M"])


@settings(deadline=None, max_examples=200)
@given(st.lists(made, max_size=5), requests)
def test_explain_agrees_with_each_rule_by_itself(rules: list[Rule], text: str) -> None:
    """The verdict follows from the rules' own outcomes: no deny that applies matches, and an allow does."""
    rules = [dataclasses.replace(one, name=f"r{number}") for number, one in enumerate(rules)]
    asked = ask("dbus", {}, text)
    found = explain(rules, PEER, NOW, asked=asked)
    assert found.verdict == decide_request(rules, PEER, NOW, asked)
    assert found.connected is decide(rules, PEER, NOW).allowed
    matching = [
        one.action
        for one, outcome in zip(rules, found.rules, strict=True)
        if applies(one.action, judge(one, PEER, NOW).truth) and outcome.truth is not Truth.FALSE
    ]
    if found.connected:
        assert found.verdict.allowed is (Action.DENY not in matching and Action.ALLOW in matching)
    else:
        assert not found.verdict.allowed
    if found.verdict.allowed:
        assert judge_by(request_rules(rules, reduce_rules(rules, PEER, NOW)), asked).allowed
