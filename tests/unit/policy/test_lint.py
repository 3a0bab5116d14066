"""What the checks on rules must find, and what they must keep quiet about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.identity.peer import OVERFLOW_ID, Peer
from sockguard.policy.decide import Truth, judge
from sockguard.policy.lint import Finding, rule_findings
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Who

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
MUCH_LATER = NOW + timedelta(days=2)
ANYONE = Who(users=Users(anyone=True))


def users(*uids: int) -> Who:
    return Who(users=Users(frozenset(uids)))


def span(low: int, high: int) -> Who:
    return Who(users=Users(ranges=((low, high),)))


def groups(*gids: int) -> Who:
    return Who(groups=frozenset(gids))


def allow(who: Who, name: str = "a", **more: Any) -> Rule:
    return Rule(name, Action.ALLOW, who, **more)


def deny(who: Who, name: str = "d", **more: Any) -> Rule:
    return Rule(name, Action.DENY, who, **more)


def found(*rules: Rule) -> list[Finding]:
    return rule_findings("pg", rules, NOW)


def about(needle: str, *rules: Rule) -> list[str]:
    return [finding.subject for finding in found(*rules) if needle in finding.text]


def test_good_rules_give_nothing() -> None:
    """Rules that each do something of their own are not commented on."""
    assert found(allow(users(1, 2)), deny(users(3)), allow(span(1000, 1999), "b")) == []


@pytest.mark.parametrize(
    ("covered", "by"),
    [
        (users(1, 2), users(1, 2, 3)),
        (users(1, 2), span(1, 5)),
        (span(1, 10), Who(users=Users(frozenset({1}), ((2, 5), (6, 20))))),
        (span(1000, 100_000), ANYONE),
        (ANYONE, ANYONE),
        (groups(5), ANYONE),
        (groups(5), groups(5, 6)),
        (Who(users=users(1).users, groups=frozenset({5})), users(1)),
        (Who(users=users(1).users, executables=("/a",)), Who(executables=("/a", "/b"))),
    ],
)
def test_allow_under_a_deny(covered: Who, by: Who) -> None:
    """An allow that a deny takes whole is reported, wherever the two stand."""
    for rules in ((allow(covered), deny(by)), (deny(by), allow(covered))):
        assert about("lets nothing through", *rules) == ["proxy.pg.allow[0]"]


@pytest.mark.parametrize(
    ("partly", "by"),
    [
        (users(1, 2), users(1)),
        (span(1, 10), Who(users=Users(ranges=((1, 4), (6, 10))))),
        (ANYONE, span(1, 5)),
        (users(1), Who(users=users(1).users, groups=frozenset({5}))),
        (groups(5), users(1)),
        (users(1), Who()),
        (Who(users=users(1).users, executables=("/a/b",)), Who(executables=("/a/*",))),
    ],
)
def test_allow_partly_under_a_deny(partly: Who, by: Who) -> None:
    """An allow of which anything may be left is not called shadowed."""
    assert about("lets nothing through", allow(partly), deny(by)) == []


def test_a_deny_that_ends_first_does_not_shadow() -> None:
    """A deny covers an allow only if it holds for as long."""
    assert about("lets nothing", allow(users(1)), deny(users(1), until=LATER)) == []
    assert about("lets nothing", allow(users(1), until=MUCH_LATER), deny(users(1), until=LATER)) == []
    assert about("lets nothing", allow(users(1), until=LATER), deny(users(1), until=LATER)) != []


def test_a_deny_of_some_requests_shadows_only_those() -> None:
    """A deny with a *what* covers an allow of the same requests, never an allow of everything."""
    some: dict[str, Any] = {"what": ("GET /x",)}
    assert about("lets nothing", allow(users(1)), deny(users(1), **some)) == []
    assert about("lets nothing", allow(users(1), what=("GET /x", "GET /y")), deny(users(1), **some)) == []
    assert about("lets nothing", allow(users(1), **some), deny(users(1), what=("GET /x", "GET /y"))) != []


def test_allows_of_some_requests() -> None:
    """A rule for everything repeats one for some requests of the same peers; equal entries do; others are no news."""
    one, two = {"destination": ["o.A"]}, {"destination": ["o.A"], "member": ["M"]}
    assert about("repeats", allow(users(1)), allow(users(1), "b", what=(one,))) == ["proxy.pg.allow[1]"]
    assert about("repeats", allow(users(1), what=(one,)), allow(users(1), "b")) == ["proxy.pg.allow[0]"]
    assert about("repeats", allow(users(1), what=(one, two)), allow(users(1), "b", what=(two,))) != []
    assert about("repeats", allow(users(1), what=(one,)), allow(users(1), "b", what=(two,))) == []
    assert about("repeats", allow(users(1), what=(one,)), allow(users(2), "b", what=(one,))) == []
    assert about("repeats", deny(users(1)), deny(users(1), "e", what=(one,))) == ["proxy.pg.deny[1]"]
    assert about("lets nothing", allow(users(1), what=(one,)), deny(users(1))) == ["proxy.pg.allow[0]"]
    assert about("lets nothing", allow(users(1)), deny(users(1), what=(one,))) == []


def test_repetition() -> None:
    """The narrower of two allows is a repetition; of two equal ones, the later."""
    assert about("repeats", allow(users(1)), allow(users(1, 2), "b")) == ["proxy.pg.allow[0]"]
    assert about("repeats", allow(users(1)), allow(users(1), "b")) == ["proxy.pg.allow[1]"]
    assert about("repeats", allow(users(1)), allow(users(2), "b")) == []
    assert about("repeats", allow(users(1)), deny(users(1, 2)), deny(users(1), "e")) == ["proxy.pg.deny[1]"]


def test_anyone_does_not_repeat_a_group() -> None:
    """'*' is never true for the overflow uid, so an allow for a group beside it says something of its own."""
    assert about("repeats", allow(ANYONE), allow(groups(5), "b")) == []


def test_ended() -> None:
    """A rule whose until has passed is reported, and no longer counts for the others."""
    rules = (allow(users(1), until=NOW), allow(users(1), "b"), deny(users(1), until=NOW - timedelta(days=1)))
    assert about("has ended", *rules) == ["proxy.pg.allow[0]", "proxy.pg.deny[0]"]
    assert len(found(*rules)) == 2


def test_matches_nobody() -> None:
    """Conditions that exclude each other, and an allow for the overflow id alone, can never match."""
    sets = (NamedWho("ops", users(2)), NamedWho("dev", span(5, 9)))
    assert about("never match", allow(users(1), sets=sets)) == ["proxy.pg.allow[0]"]
    assert about("never match", allow(users(1, 6), sets=sets)) == []
    assert about("never match", allow(users(OVERFLOW_ID))) == ["proxy.pg.allow[0]"]
    assert about("never match", allow(groups(OVERFLOW_ID))) == ["proxy.pg.allow[0]"]


def test_named_sets_are_read_with_the_rule_s_own_conditions() -> None:
    """A rule covers another when each way of matching the one is a way of matching the other."""
    sets = (NamedWho("ops", users(1, 2)), NamedWho("dev", groups(5)))
    rule = allow(Who(labels=("l",)), sets=sets)
    assert about("lets nothing", rule, deny(users(1, 2))) == []
    assert about("lets nothing", rule, deny(Who(labels=("l", "m")))) != []
    assert about("lets nothing", rule, deny(Who(), sets=(*sets, NamedWho("x", users(9))))) != []


@pytest.mark.parametrize("denied", [users(1), groups(5), span(1, 99_999)])
@pytest.mark.parametrize("admitted", [ANYONE, span(1000, 200_000)])
def test_sub_uids_escape(denied: Who, admitted: Who) -> None:
    """A deny by user or group beside an allow that takes sub-uids in can be escaped, and that is said."""
    assert about("sub-uids", allow(admitted), deny(denied)) == ["proxy.pg.deny[0]"]


def test_sub_uids_keep_their_groups() -> None:
    """A process keeps its supplementary groups when it takes a sub-uid: a group's allow is as open to it as '*' is."""
    assert about("sub-uids", allow(groups(5)), deny(users(1))) == ["proxy.pg.deny[0]"]
    assert about("sub-uids", allow(groups(5)), deny(groups(6))) == []


@pytest.mark.parametrize(
    ("admitted", "denied"),
    [(ANYONE, ANYONE), (users(1, 100_000), users(2)), (span(1000, 1999), users(1001)), (ANYONE, span(5, 4294967294))],
)
def test_nothing_to_escape_to(admitted: Who, denied: Who) -> None:
    """A deny for anyone, or for every sub-uid, and an allow for named users leave no way round."""
    assert about("sub-uids", allow(admitted), deny(denied)) == []


def test_deny_by_program_is_explained() -> None:
    """A deny that asks for a program or a unit says that not knowing denies."""
    rules = (allow(users(1)), deny(Who(users=users(2).users, executables=("/x",), units=("u.service",))))
    assert [f.severity for f in found(*rules)] == ["info"]
    assert about("executables and units", *rules) == ["proxy.pg.deny[0]"]


def test_permissive_and_empty() -> None:
    """A permissive proxy and one that admits nobody are warned of."""
    assert [f.subject for f in rule_findings("pg", [allow(users(1))], NOW, enforce=False)] == ["proxy.pg"]
    assert about("admits nobody", deny(users(1))) == ["proxy.pg"]


NEAR = st.sampled_from([0, 1, 2, 3, OVERFLOW_ID - 1, OVERFLOW_ID, OVERFLOW_ID + 1, 4294967294])
RANGES = st.tuples(NEAR, NEAR).map(lambda pair: (min(pair), max(pair)))
USERS = st.builds(Users, st.frozensets(NEAR, max_size=3), st.lists(RANGES, max_size=2).map(tuple), st.booleans())
GROUPS = st.frozensets(st.sampled_from([5, 6, OVERFLOW_ID]), min_size=1)
WHO = st.builds(Who, st.none() | USERS, st.none() | GROUPS).filter(lambda who: who != Who())
SETS = st.lists(WHO.map(lambda who: NamedWho("s", who)), max_size=2).map(tuple)


@given(WHO, SETS, WHO, SETS, st.booleans())
def test_whatever_is_called_covered_is(own: Who, sets: tuple[NamedWho, ...], by: Who, more: Any, denies: bool) -> None:
    """No peer can tell a shadowed allow, a repeated rule, or one that never matches, from none at all."""
    rule = allow(own, sets=sets)
    other = (deny if denies else allow)(by, "other", sets=more)
    texts = [
        f.text for f in found(other, rule) if f.subject == ("proxy.pg.allow[0]" if denies else "proxy.pg.allow[1]")
    ]
    never = any("never match" in text for text in texts)
    covered = any("lets nothing" in text or "repeats" in text for text in texts)
    for uid in (0, 1, 2, 3, OVERFLOW_ID - 1, OVERFLOW_ID, OVERFLOW_ID + 1, 4294967294):
        for gids in ({5}, {6}, {5, 6}, {7}, {OVERFLOW_ID}, {5, OVERFLOW_ID}):
            peer = Peer(uid=uid, gid=min(gids), groups=frozenset(gids))
            if judge(rule, peer, NOW).truth is Truth.TRUE:
                assert not never
                by_other = judge(other, peer, NOW).truth
                assert not covered or by_other is Truth.TRUE or (denies and by_other is Truth.UNKNOWN)


def test_what_a_protocol_says_of_its_requests() -> None:
    """Under its rule, with a remedy; of rules that hold and on a proxy of that protocol only."""
    create = ({"methods": ["POST"], "path": "/containers/create"},)
    podman = ({"methods": ["POST"], "path": "/libpod/containers/create"},)
    rules = [
        allow(users(1), what=create),
        allow(users(2), "b", what=create, until=NOW - timedelta(days=1)),
        allow(users(3), "c"),
        deny(users(4), what=create + podman),
    ]

    def of_http(**options: Any) -> list[Finding]:
        found = rule_findings("pg", rules, NOW, protocol="http", options=options)
        return [finding for finding in found if "/containers/create" in finding.text]

    (stripped,) = of_http(strip_prefix="docker-version")
    assert (stripped.severity, stripped.subject) == ("warning", "proxy.pg.allow[0]")
    assert "root" in stripped.text
    assert stripped.remedy
    assert [finding.subject for finding in of_http()] == ["proxy.pg.allow[0]", "proxy.pg.deny[0]"]
    for protocol in ("stream", "dbus"):
        assert not [one for one in rule_findings("pg", rules, NOW, protocol=protocol) if "create" in one.text]


@pytest.mark.parametrize(
    ("who", "other", "expected"),
    [(users(1), span(0, 9), True), (users(1), users(2), False), (users(1), groups(2), True), (ANYONE, users(1), True)],
)
def test_a_deny_by_path_is_held_against_allows_that_its_peers_may_have(who: Who, other: Who, expected: bool) -> None:
    """Not against those of others, nor against those that have ended."""
    admin = ({"methods": ["GET"], "path": "/admin"},)
    rules = [deny(who, what=admin), allow(other), allow(ANYONE, "ended", until=NOW - timedelta(days=1))]
    found = [one for one in rule_findings("pg", rules, NOW, protocol="http") if "other spellings" in one.text]
    assert [(one.severity, one.subject) for one in found] == [("warning", "proxy.pg.deny[0]")] * expected
