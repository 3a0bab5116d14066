"""What must hold of verdicts whatever the rules and the peer: both out of small worlds, so that they meet often."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sockguard.identity.peer import OVERFLOW_ID, Peer, Unknown
from sockguard.policy.decide import Truth, decide, judge, next_expiry, wants
from sockguard.policy.explain import explain, render, to_json
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Who

NOW = datetime(2027, 1, 31, tzinfo=UTC)
IDS = [0, 1, 2, OVERFLOW_ID]
PROGRAMS = ["/bin/a", "/bin/b", "/opt/x/a"]
CGROUPS = ["/system.slice/a.service", "/user.slice/a.service", "/"]
LABELS = ["one", "two"]
UNKNOWN = Unknown("for the test")
# A busy machine is no failure, nor is that most peers are admitted by nothing.
STEADY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])

ids = st.sampled_from(IDS)
group_sets = st.frozensets(ids, max_size=3)
users = st.builds(
    Users,
    uids=st.frozensets(ids, max_size=2),
    ranges=st.lists(st.tuples(ids, ids).map(lambda pair: (min(pair), max(pair))), max_size=1).map(tuple),
    anyone=st.booleans(),
)


def _some(values: list[str]) -> st.SearchStrategy[tuple[str, ...] | None]:
    """A condition on text, or none."""
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=2).map(tuple)


whos = st.builds(
    Who,
    users=st.none() | users,
    groups=st.none() | group_sets,
    executables=_some(["/bin/a", "/bin/*", "/**/a"]),
    units=_some(["a.service", "/user.slice/*", "/**"]),
    labels=_some(["one", "*"]),
)
rules = st.builds(
    Rule,
    name=st.sampled_from(["p.allow[0]", "p.allow[1]", "p.deny[0]", "named"]),
    action=st.sampled_from(Action),
    own=whos,
    sets=st.lists(st.builds(NamedWho, name=st.sampled_from(["s", "t"]), who=whos), max_size=2).map(tuple),
    until=st.sampled_from([None, None, NOW - timedelta(seconds=1), NOW, NOW + timedelta(seconds=1)]),
    what=st.sampled_from([None, None, ("something",)]),
)
rule_lists = st.lists(rules, max_size=6)


@st.composite
def _peers(draw: st.DrawFn) -> Peer:
    gid = draw(ids)
    groups = draw(st.just(UNKNOWN) | group_sets)
    return Peer(
        uid=draw(ids),
        gid=gid,
        groups=groups if isinstance(groups, Unknown) else groups | {gid},
        executable=draw(st.just(UNKNOWN) | st.sampled_from(PROGRAMS)),
        cgroup=draw(st.just(UNKNOWN) | st.sampled_from(CGROUPS)),
        label=draw(st.just(UNKNOWN) | st.sampled_from(LABELS)),
    )


peers = _peers()

ALLOW_ALL = Rule("all", Action.ALLOW, Who(users=Users(anyone=True), groups=frozenset(IDS)))


def _completions(peer: Peer) -> Iterator[Peer]:
    """Every peer of our world that ``peer`` may really be: each unknown fact, and each overflow id, has some value."""
    known_ids = [number for number in IDS if number != OVERFLOW_ID]
    uids = known_ids if peer.uid == OVERFLOW_ID else [peer.uid]
    gids = known_ids if peer.gid == OVERFLOW_ID else [peer.gid]
    subsets = [frozenset(c) for size in range(len(known_ids) + 1) for c in itertools.combinations(known_ids, size)]
    if isinstance(peer.groups, Unknown):
        groups = subsets
    elif OVERFLOW_ID in peer.groups:
        groups = [peer.groups - {OVERFLOW_ID} | more for more in subsets]
    else:
        groups = [peer.groups]
    programs = PROGRAMS if isinstance(peer.executable, Unknown) else [peer.executable]
    cgroups = CGROUPS if isinstance(peer.cgroup, Unknown) else [peer.cgroup]
    labels = LABELS if isinstance(peer.label, Unknown) else [peer.label]
    for uid, gid, group, program, cgroup, label in itertools.product(uids, gids, groups, programs, cgroups, labels):
        yield Peer(uid, gid, group | {gid}, executable=program, cgroup=cgroup, label=label)


@STEADY
@given(rule_lists, rules, peers)
def test_who_is_admitted_without_a_fact_is_admitted_with_any_value_of_it(
    others: list[Rule], allow: Rule, peer: Peer
) -> None:
    """Not knowing a fact never admits anybody whom knowing it would refuse."""
    given_rules = [*others, dataclasses.replace(allow, action=Action.ALLOW)]
    assume(decide(given_rules, peer, NOW).allowed)
    for real in _completions(peer):
        assert decide(given_rules, real, NOW).allowed, real


@STEADY
@given(rules, peers)
def test_what_is_known_of_a_rule_stays_so(rule: Rule, peer: Peer) -> None:
    """A judgement of true or false is the judgement on every peer that this one may really be."""
    truth = judge(rule, peer, NOW).truth
    assume(truth is not Truth.UNKNOWN)
    assert {judge(rule, real, NOW).truth for real in _completions(peer)} == {truth}


@STEADY
@given(rule_lists.flatmap(lambda made: st.tuples(st.just(made), st.permutations(made))), peers)
def test_order_never_matters(orders: tuple[list[Rule], list[Rule]], peer: Peer) -> None:
    """The same rules in another order give the same verdict."""
    first, second = orders
    assert decide(first, peer, NOW).allowed is decide(second, peer, NOW).allowed


@STEADY
@given(rule_lists, rules, peers, st.integers(0, 6))
def test_a_deny_beats_every_allow(others: list[Rule], deny: Rule, peer: Peer, place: int) -> None:
    """A deny that matches, or may match, decides, wherever it stands and whatever else allows."""
    deny = dataclasses.replace(deny, action=Action.DENY, what=None)
    assume(judge(deny, peer, NOW).truth is not Truth.FALSE)
    assert not decide([*others[:place], deny, *others[place:], ALLOW_ALL], peer, NOW).allowed


@STEADY
@given(rule_lists, rules, peers)
def test_one_more_deny_admits_nobody_and_one_more_allow_refuses_nobody(
    others: list[Rule], rule: Rule, peer: Peer
) -> None:
    """Denies only take away and allows only add."""
    before, after = decide(others, peer, NOW).allowed, decide([*others, rule], peer, NOW).allowed
    assert before >= after if rule.action is Action.DENY else before <= after


@STEADY
@given(rule_lists, peers)
def test_nobody_is_admitted_without_an_allow_that_holds(made: list[Rule], peer: Peer) -> None:
    """The verdict is exactly: some allow is true, and no deny without a *what* is true or unknown."""
    truths = [(rule, judge(rule, peer, NOW).truth) for rule in made]
    allowed = any(rule.action is Action.ALLOW and truth is Truth.TRUE for rule, truth in truths)
    denied = any(rule.action is Action.DENY and not rule.what and truth is not Truth.FALSE for rule, truth in truths)
    verdict = decide(made, peer, NOW)
    assert verdict.allowed is (allowed and not denied)
    assert verdict.rule is None or verdict.rule in [rule.name for rule in made]
    assert verdict.allowed or verdict.rule is not None or not denied


@STEADY
@given(rules, peers)
def test_a_rule_past_its_end_judges_nobody(rule: Rule, peer: Peer) -> None:
    """From ``until`` on, a rule neither allows nor denies."""
    ended = dataclasses.replace(rule, until=NOW)
    assert judge(ended, peer, NOW).truth is Truth.FALSE
    assert decide([ended], peer, NOW).rule is None


@STEADY
@given(rule_lists, peers)
def test_nothing_changes_before_the_next_expiry(made: list[Rule], peer: Peer) -> None:
    """Up to the moment that next_expiry names, a verdict stands; it is the time to judge again."""
    moment = next_expiry(made, NOW)
    assert moment is None or moment > NOW
    just_before = NOW + timedelta(days=1) if moment is None else moment - timedelta(microseconds=1)
    assert decide(made, peer, just_before) == decide(made, peer, NOW)


@STEADY
@given(rule_lists, peers)
def test_facts_that_are_not_wanted_change_nothing(made: list[Rule], peer: Peer) -> None:
    """What ``wants`` does not name may be left out."""
    asked = wants(made)
    less = dataclasses.replace(
        peer,
        executable=peer.executable if asked.executable else UNKNOWN,
        cgroup=peer.cgroup if asked.cgroup else UNKNOWN,
        label=peer.label if asked.label else UNKNOWN,
    )
    assert decide(made, less, NOW) == decide(made, peer, NOW)


@STEADY
@given(rule_lists, peers)
def test_an_explanation_tells_what_was_decided(made: list[Rule], peer: Peer) -> None:
    """The verdict explained is the verdict; each rule has its judgement; a rule that failed says where."""
    explanation = explain(made, peer, NOW)
    assert explanation.verdict == decide(made, peer, NOW)
    assert [outcome.truth for outcome in explanation.rules] == [judge(rule, peer, NOW).truth for rule in made]
    for outcome in explanation.rules:
        assert (outcome.condition is None) is (outcome.truth is Truth.TRUE)
        assert bool(outcome.why) is (outcome.condition is not None)
        assert outcome.why != "does not hold"
    assert len(render(explanation, "p").split("\n")) - len(made) in (2, 3)  # 3: requests have a say
    assert to_json(explanation, "p")["verdict"] == ("allow" if explanation.verdict.allowed else "deny")
