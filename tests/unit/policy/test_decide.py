"""Verdicts by example: each kind of condition, and what is named as the reason."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from sockguard.identity.peer import NOT_ASKED, OVERFLOW_ID, Peer, Unknown, unchecked
from sockguard.policy.decide import Judgement, Truth, Wants, asks_about, decide, judge, next_expiry, wants
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Verdict, Who

NOW = datetime(2027, 1, 31, tzinfo=UTC)
PEER = Peer(1000, 100, frozenset([100, 27]), executable="/usr/bin/psql", cgroup="/system.slice/a.service", label="x")
ANYONE = Who(users=Users(anyone=True))
NOBODY = Who(users=Users(uids=frozenset([1])))
FALSE, UNKNOWN, TRUE = Truth


def rule(who: Who = ANYONE, action: Action = Action.ALLOW, **more: object) -> Rule:
    """A rule named after what it does."""
    return dataclasses.replace(Rule(f"p.{action.value}[0]", action, who), **more)  # type: ignore[arg-type]


def truth(who: Who, peer: Peer = PEER) -> Truth:
    """The judgement on a rule with these conditions."""
    return judge(rule(who), peer, NOW).truth


@pytest.mark.parametrize(
    ("users", "uid", "expected"),
    [
        (Users(uids=frozenset([1000])), 1000, TRUE),
        (Users(uids=frozenset([1000])), 1001, FALSE),
        (Users(ranges=((1000, 1999),)), 999, FALSE),
        (Users(ranges=((1000, 1999),)), 1000, TRUE),
        (Users(ranges=((5, 6), (1000, 1999))), 1999, TRUE),
        (Users(ranges=((1000, 1999),)), 2000, FALSE),
        (Users(anyone=True), 0, TRUE),
        (Users(anyone=True), 4_294_967_294, TRUE),
        (Users(anyone=True), OVERFLOW_ID, UNKNOWN),
        (Users(uids=frozenset([OVERFLOW_ID])), OVERFLOW_ID, UNKNOWN),
        (Users(ranges=((0, 4_294_967_294),)), OVERFLOW_ID, UNKNOWN),
        (Users(uids=frozenset([1])), OVERFLOW_ID, UNKNOWN),
        (Users(), 0, FALSE),
    ],
)
def test_users(users: Users, uid: int, expected: Truth) -> None:
    """Numbers, inclusive ranges and anyone; the overflow uid is never known to be in or out."""
    assert truth(Who(users=users), dataclasses.replace(PEER, uid=uid)) is expected


@pytest.mark.parametrize(
    ("wanted", "gid", "groups", "expected"),
    [
        ({27}, 100, {100, 27}, TRUE),
        ({100}, 100, {100, 27}, TRUE),
        ({5}, 100, {100, 27}, FALSE),
        ({5}, 100, {100, OVERFLOW_ID}, UNKNOWN),
        ({OVERFLOW_ID}, 100, {100, OVERFLOW_ID}, UNKNOWN),
        ({OVERFLOW_ID}, OVERFLOW_ID, {OVERFLOW_ID}, UNKNOWN),
        ({OVERFLOW_ID}, 100, {100}, FALSE),
        ({OVERFLOW_ID, 27}, 100, {100, OVERFLOW_ID, 27}, TRUE),
        ({27}, 100, None, UNKNOWN),
        ({100}, 100, None, TRUE),
        ({OVERFLOW_ID}, OVERFLOW_ID, None, UNKNOWN),
    ],
)
def test_groups(wanted: set[int], gid: int, groups: set[int] | None, expected: Truth) -> None:
    """The gid or any other group; unknown groups and an overflow gid leave it open, unless another group settles it."""
    peer = dataclasses.replace(PEER, gid=gid, groups=Unknown("x") if groups is None else frozenset(groups))
    assert truth(Who(groups=frozenset(wanted)), peer) is expected


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (Who(executables=("/bin/x", "/usr/bin/*")), TRUE),
        (Who(executables=("/bin/x",)), FALSE),
        (Who(units=("a.service",)), TRUE),
        (Who(units=("b.service",)), FALSE),
        (Who(labels=("?",)), TRUE),
        (Who(labels=("y",)), FALSE),
        (Who(executables=("/usr/bin/psql",), units=("b.service",)), FALSE),
        (Who(executables=("/usr/bin/psql",), units=("a.service",), labels=("x",)), TRUE),
    ],
)
def test_text_conditions(who: Who, expected: Truth) -> None:
    """Any pattern of a condition will do, and every condition must hold."""
    assert truth(who) is expected


@pytest.mark.parametrize("key", ["executables", "units", "labels"])
def test_fact_that_was_not_looked_up_is_unknown(key: str) -> None:
    """After a reload, rules may ask for what nobody recorded."""
    peer = Peer(1000, 100, frozenset([100]), executable=NOT_ASKED, cgroup=NOT_ASKED, label=NOT_ASKED)
    assert judge(rule(Who(**{key: ("/**",)})), peer, NOW) == Judgement(UNKNOWN, key)  # type: ignore[arg-type]


def test_false_and_unknown_is_false() -> None:
    """One condition that fails settles a rule, whatever else is unknown, in any order."""
    peer = dataclasses.replace(PEER, groups=Unknown("x"), label=Unknown("y"))
    assert judge(rule(Who(groups=frozenset([1]), executables=("/no",))), peer, NOW) == Judgement(FALSE, "executables")
    assert judge(rule(Who(executables=("/no",), labels=("x",))), peer, NOW) == Judgement(FALSE, "executables")
    assert judge(rule(Who(groups=frozenset([1]), labels=("x",))), peer, NOW) == Judgement(UNKNOWN, "groups")


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ([ANYONE, NOBODY], Judgement(TRUE)),
        ([NOBODY, NOBODY], Judgement(FALSE, "who")),
        ([NOBODY, Who(labels=("x",))], Judgement(UNKNOWN, "who")),
        ([Who(labels=("x",)), ANYONE], Judgement(TRUE)),
    ],
)
def test_named_sets(sets: list[Who], expected: Judgement) -> None:
    """One of the sets must hold, and the rule's own conditions too."""
    peer = dataclasses.replace(PEER, label=Unknown("x"))
    named = tuple(NamedWho(str(number), who) for number, who in enumerate(sets))
    assert judge(rule(sets=named), peer, NOW) == expected
    assert judge(rule(NOBODY, sets=named), peer, NOW) == Judgement(FALSE, "users")


def test_until() -> None:
    """A rule is in force before its end, and no longer at it."""
    ended = rule(until=NOW)
    assert judge(ended, PEER, NOW - timedelta(microseconds=1)).truth is TRUE
    assert judge(ended, PEER, NOW) == Judgement(FALSE, "until")
    assert not decide([ended], PEER, NOW).allowed
    assert decide([rule(), rule(action=Action.DENY, until=NOW)], PEER, NOW).allowed


def test_next_expiry() -> None:
    """The next end that is still to come."""
    late, soon, past = (rule(until=NOW + timedelta(hours=hours)) for hours in (2, 1, -1))
    assert next_expiry([late, rule(), soon, past], NOW) == NOW + timedelta(hours=1)
    assert next_expiry([rule(), past, rule(until=NOW)], NOW) is None


def test_wants() -> None:
    """Facts are wanted for a rule's own conditions, and for those of its named sets."""
    assert wants([rule()]) == Wants()
    assert wants([rule(), rule(Who(units=("a.service",)))]) == Wants(cgroup=True)
    sets = (NamedWho("s", Who(executables=("/x",), labels=("x",))),)
    assert wants([rule(sets=sets)]) == Wants(executable=True, label=True)


def test_groups_that_make_a_difference() -> None:
    """Those that a rule or a named set of one names; and the one that may stand for any of them."""
    sets = (NamedWho("s", Who(groups=frozenset({6}))),)
    assert wants([rule(Who(groups=frozenset({5}))), rule(sets=sets)]) == Wants(groups=frozenset({5, 6, OVERFLOW_ID}))


def test_reasons() -> None:
    """A verdict names the rule, and for a deny on an unknown fact says which and why."""
    deny = rule(action=Action.DENY)
    unsure = rule(Who(groups=frozenset([5])), Action.DENY, name="unsure")
    foreign = dataclasses.replace(PEER, groups=Unknown("no idea"))
    assert decide([], PEER, NOW) == Verdict(False, None, "no allow rule matches")
    assert decide([rule(NOBODY)], PEER, NOW) == Verdict(False, None, "no allow rule matches")
    assert decide([rule()], PEER, NOW) == Verdict(True, "p.allow[0]", "allowed by p.allow[0]")
    assert decide([rule(), deny], PEER, NOW) == Verdict(False, "p.deny[0]", "denied by p.deny[0]")
    assert decide([rule(), unsure], foreign, NOW).reason == (
        "denied by unsure: its condition on groups cannot be known (no idea)"
    )
    in_set = rule(action=Action.DENY, name="set", sets=(NamedWho("ops", unsure.own),))
    assert decide([in_set], foreign, NOW).reason == (
        "denied by set: its condition on who cannot be known (ops: groups: no idea)"
    )
    overflow = dataclasses.replace(PEER, uid=OVERFLOW_ID)
    assert decide([rule(NOBODY, Action.DENY)], overflow, NOW).reason == (
        "denied by p.deny[0]: its condition on users cannot be known "
        "(uid 65534 stands for any uid without a mapping here)"
    )


def test_allow_on_an_unknown_fact_admits_nobody() -> None:
    """What might match does not allow."""
    peer = dataclasses.replace(PEER, label=Unknown("x"))
    assert decide([rule(Who(users=Users(anyone=True), labels=("*",)))], peer, NOW) == Verdict(
        False, None, "no allow rule matches"
    )


def test_rule_that_is_named() -> None:
    """The first of the strongest: a sure deny before an unsure one, a deny before an allow."""
    first, second = rule(name="first"), rule(name="second")
    assert decide([first, second], PEER, NOW).rule == "first"
    unsure = rule(Who(labels=("x",)), Action.DENY, name="unsure")
    sure = rule(action=Action.DENY, name="sure")
    peer = dataclasses.replace(PEER, label=Unknown("x"))
    assert decide([first, unsure, sure], peer, NOW).rule == "sure"
    assert decide([first, unsure, dataclasses.replace(unsure, name="later")], peer, NOW).rule == "unsure"


def test_rules_about_requests() -> None:
    """An allow of some requests admits the connection; a deny of some does not refuse it."""
    some = ("GET /",)
    assert decide([rule(what=some)], PEER, NOW).allowed
    assert decide([rule(), rule(action=Action.DENY, what=some)], PEER, NOW).allowed


def test_unknown_deny_of_one_condition_does_not_act_when_another_fails() -> None:
    """A deny for another user is no deny for this one, though its program be unknown."""
    deny = rule(dataclasses.replace(NOBODY, executables=("/x",)), Action.DENY)
    assert decide([rule(), deny], dataclasses.replace(PEER, executable=Unknown("x")), NOW).allowed


def test_a_program_that_was_not_looked_at() -> None:
    """Patterns that do not match its path are false of it. Of one that does, by a later rule, nobody knows."""
    peer = dataclasses.replace(PEER, executable=unchecked("/usr/bin/psql"))
    assert truth(Who(executables=("/usr/bin/psq", "/usr/*/*/psql")), peer) is FALSE
    assert truth(Who(executables=("/usr/bin/nothing", "/usr/bin/p*")), peer) is UNKNOWN
    deny = rule(Who(executables=("/usr/bin/p*",)), Action.DENY)
    verdict = decide([rule(), deny], peer, NOW)
    assert (verdict.allowed, verdict.uncertain) == (False, True)
    assert "was not looked at" in verdict.reason


def test_whether_a_programs_file_makes_a_difference() -> None:
    """Where a pattern of any rule or named set matches its path, and wherever a deny is about programs."""
    by_set = rule(sets=(NamedWho("s", Who(executables=("/opt/*",))),))
    allows = [rule(), rule(Who(executables=("/usr/bin/*",))), by_set]
    assert [asks_about(allows, path) for path in ("/usr/bin/x", "/opt/x", "/home/x")] == [True, True, False]
    assert asks_about([rule(), rule(Who(executables=("/evil",)), Action.DENY)], "/home/x")
    assert asks_about([dataclasses.replace(by_set, action=Action.DENY)], "/home/x")
    assert not asks_about([rule(), rule(NOBODY, Action.DENY)], "/home/x")
