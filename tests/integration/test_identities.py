"""Who a client is by the kernel's word, and what rules make of it: what the client sees, and what the event says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.clients import as_user, connect, exchange
from tests.support.identities import (
    Client,
    Guard,
    Person,
    account,
    group,
    guarding,
    open_folder,
    run_tool,
    someone,
    stopped,
)

pytestmark = pytest.mark.root

HIGH_UID = 4_000_000_001
HIGH_GID = 4_000_000_000
OVERFLOW = 65534


class People(NamedTuple):
    """ann and cat are members of the group team, cat also of chiefs; bob is in neither. ann has sub-ids."""

    ann: Person
    bob: Person
    cat: Person
    team: int
    chiefs: int
    first_sub: int


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    mark = f"sgt{os.getpid()}"
    first = 3_000_000_000 + os.getpid() % 100_000 * 1000
    with ExitStack() as made:
        team, chiefs = (made.enter_context(group(f"{mark}{name}")) for name in ("team", "chiefs"))
        ann = made.enter_context(account(f"{mark}ann", "-G", str(team)))
        bob = made.enter_context(account(f"{mark}bob"))
        cat = made.enter_context(account(f"{mark}cat", "-G", f"{team},{chiefs}"))
        ids = f"{first}-{first + 999}"
        run_tool("usermod", "--add-subuids", ids, "--add-subgids", ids, ann.name)
        yield People(ann, bob, cat, team, chiefs, first)


CONFIG = """
[who.crew]
users = ["{bob}"]
[who.heads]
groups = ["{chiefs}"]

[proxy.name]
allow = [{{ users = ["{ann}"] }}]
[proxy.number]
allow = [{{ users = [{bob_uid}], name = "only-bob" }}]
[proxy.range]
allow = [{{ users = ["1000-1999"] }}]
[proxy.high]
allow = [{{ users = [4000000001] }}]
[proxy.anyone]
allow = [{{ users = ["*"] }}]
[proxy.group]
allow = [{{ groups = ["{team}"] }}]
[proxy.high-group]
allow = [{{ groups = [4000000000] }}]
[proxy.overlap]
allow = [{{ groups = ["{team}"] }}]
deny = [{{ groups = ["{chiefs}"] }}]
[proxy.sets]
allow = [{{ who = ["crew", "heads"] }}]
[proxy.narrowed]
allow = [{{ who = ["crew", "heads"], users = ["{ann}", "{cat}"] }}]
[proxy.escape]
allow = [{{ users = ["*"] }}]
deny = [{{ users = ["{ann}"] }}]
[proxy.group-escape]
allow = [{{ users = ["*"] }}]
deny = [{{ groups = ["{team}"] }}]
[proxy.few]
max_connections_per_user = 1
allow = [{{ users = ["*"] }}]
[proxy.permissive]
enforce = false
max_connections_per_user = 1
allow = [{{ users = ["{ann}"] }}]
deny = [{{ users = ["{bob}"] }}]
"""


@pytest.fixture(scope="module")
def guard(people: People) -> Iterator[Guard]:
    config = CONFIG.format(
        ann=people.ann.name,
        bob=people.bob.name,
        bob_uid=people.bob.uid,
        cat=people.cat.name,
        team=f"sgt{os.getpid()}team",
        chiefs=f"sgt{os.getpid()}chiefs",
    )
    with open_folder() as folder, guarding(folder, config) as guard:
        yield guard


def test_users_by_name_and_number(guard: Guard, people: People) -> None:
    """A rule on a user's name or number admits that uid and no other; events give the account's name."""
    ann, bob, _, *_ = people
    event = guard.admits("name", someone(ann.uid, ann.gid), rule="name.allow[0]", uid=ann.uid, gid=ann.gid)
    assert event["user"] == ann.name
    guard.denies("name", someone(bob.uid, bob.gid), uid=bob.uid, gid=bob.gid, user=bob.name)
    guard.admits("number", someone(bob.uid, bob.gid), rule="only-bob", uid=bob.uid)
    guard.denies("number", someone(ann.uid, ann.gid), uid=ann.uid)
    guard.denies("number", someone(0), uid=0, gid=0, user="root")  # no rule, no entry: not for root either


def test_range_includes_both_of_its_ends(guard: Guard) -> None:
    """ "1000-1999" admits 1000 and 1999, and neither 999 nor 2000."""
    for uid in (1000, 1999):
        guard.admits("range", someone(uid), rule="range.allow[0]", uid=uid)
    for uid in (999, 2000):
        guard.denies("range", someone(uid), uid=uid)


def test_uid_above_two_to_the_31(guard: Guard) -> None:
    """Such a uid is not taken for a negative number, neither by the rule nor in the event."""
    guard.admits("high", someone(HIGH_UID, HIGH_GID), rule="high.allow[0]", uid=HIGH_UID, gid=HIGH_GID, user=None)
    guard.denies("high", someone(HIGH_UID + 1), uid=HIGH_UID + 1)
    guard.denies("high", someone(HIGH_UID - 2**31), uid=HIGH_UID - 2**31)


def test_effective_uid_decides(guard: Guard, people: People) -> None:
    """A set-uid program is who its effective uid says, and being started by an allowed user does not help it."""
    ann, bob, _, *_ = people
    guard.admits("number", someone(bob.uid, bob.gid, real_uid=ann.uid), rule="only-bob", uid=bob.uid)
    guard.denies("number", someone(ann.uid, ann.gid, real_uid=bob.uid), uid=ann.uid)


def with_real_gid(uid: int, real: int, effective: int) -> Callable[[Path], str]:
    def ask(path: Path) -> str:
        os.setgroups([])
        os.setresgid(real, effective, effective)
        os.setresuid(uid, uid, uid)
        return exchange(path, b"ping")

    return lambda path: as_user(lambda: ask(path))


def test_groups(guard: Guard, people: People) -> None:
    """The effective gid counts, and each supplementary group; a real gid that is not effective does not."""
    ann, bob, cat, team, _chiefs, _ = people
    rule = "group.allow[0]"
    guard.admits("group", someone(bob.uid, team), rule=rule, uid=bob.uid, gid=team)
    guard.admits("group", with_real_gid(bob.uid, bob.gid, team), rule=rule, uid=bob.uid, gid=team)
    guard.denies("group", with_real_gid(bob.uid, team, bob.gid), uid=bob.uid, gid=bob.gid)
    guard.admits("group", someone(ann.uid, ann.gid, [team]), rule=rule, uid=ann.uid, gid=ann.gid)
    # It is what the process holds that counts, not what the account database would give it.
    guard.denies("group", someone(ann.uid, ann.gid), uid=ann.uid, gid=ann.gid)
    guard.admits("group", someone(cat.uid, cat.gid, [cat.gid, team]), rule=rule, uid=cat.uid)


def test_last_of_three_hundred_groups(guard: Guard) -> None:
    """More groups than one getsockopt of Python's takes: none is left out, whichever it is."""
    many = list(range(20_000, 20_299))
    guard.admits("high-group", someone(4242, 4242, [*many, HIGH_GID]), rule="high-group.allow[0]", uid=4242, gid=4242)
    guard.denies("high-group", someone(4242, 4242, [*many, HIGH_GID - 1]), uid=4242)


def test_deny_beats_allow(guard: Guard, people: People) -> None:
    """Of two groups that overlap, the denied one decides for those who are in both."""
    ann, _, cat, team, chiefs, _ = people
    guard.admits("overlap", someone(ann.uid, ann.gid, [team]), rule="overlap.allow[0]", uid=ann.uid)
    rule = "overlap.deny[0]"
    for groups in ([team, chiefs], [chiefs, team]):
        guard.denies("overlap", someone(cat.uid, cat.gid, groups), rule=rule, reason=f"denied by {rule}", uid=cat.uid)
    guard.denies("overlap", someone(cat.uid, chiefs, [team]), rule=rule, reason=f"denied by {rule}", gid=chiefs)


def test_named_sets(guard: Guard, people: People) -> None:
    """One of the named sets has to hold, and what the rule itself says besides."""
    ann, bob, cat, team, chiefs, _ = people
    guard.admits("sets", someone(bob.uid, bob.gid), rule="sets.allow[0]", uid=bob.uid)
    guard.admits("sets", someone(cat.uid, cat.gid, [team, chiefs]), rule="sets.allow[0]", uid=cat.uid)
    guard.denies("sets", someone(ann.uid, ann.gid, [team]), uid=ann.uid)
    guard.admits("narrowed", someone(cat.uid, cat.gid, [chiefs]), rule="narrowed.allow[0]", uid=cat.uid)
    guard.denies("narrowed", someone(bob.uid, bob.gid), uid=bob.uid)
    guard.denies("narrowed", someone(ann.uid, ann.gid, [team]), uid=ann.uid)


def leave_at_once(path: Path, who: Person, groups: list[int]) -> None:
    def leave() -> str:
        connect(path).close()
        return "left"

    assert as_user(leave, who.uid, who.gid, groups) == "left"


def test_client_that_has_left_is_still_who_it_was(guard: Guard, people: People) -> None:
    """The verdict on a client that ended before it was accepted is the one on its uid and groups."""
    ann, bob, _, team, *_ = people
    after = guard.now()
    with stopped(guard.control()):
        leave_at_once(guard.path("name"), ann, [])
        leave_at_once(guard.path("number"), ann, [])
        leave_at_once(guard.path("group"), bob, [team])
    admitted, denied, by_group = (guard.verdict(proxy, after) for proxy in ("name", "number", "group"))
    assert (admitted["event"], admitted["uid"], admitted["rule"]) == ("connection_admitted", ann.uid, "name.allow[0]")
    assert (denied["event"], denied["uid"], denied["cause"]) == ("connection_denied", ann.uid, "rules")
    assert (by_group["event"], by_group["uid"], by_group["rule"]) == (
        "connection_admitted",
        bob.uid,
        "group.allow[0]",
    )
    ended = guard.daemon.wait_for("connection_closed", lambda event: event["connection"] == admitted["connection"])
    assert (ended["outcome"], ended["bytes_from_client"]) == ("closed", 0)


@pytest.mark.parametrize("option", ["-U", "-Ur"])
def test_user_namespace_without_sub_uids_changes_nothing(guard: Guard, people: People, option: str) -> None:
    """Whatever a client is in a user namespace of its own (nobody, or root), it arrives as the user who made it."""
    ann, bob, _, *_ = people
    with Client(ann.uid, ann.gid, before=["unshare", option]) as client:
        guard.admits("name", client.meet, rule="name.allow[0]", uid=ann.uid, gid=ann.gid)
    with Client(bob.uid, bob.gid, before=["unshare", option]) as client:
        guard.denies("name", client.meet, uid=bob.uid, gid=bob.gid)


@contextmanager
def mapped(person: Person, inside: int, sub: int, groups: Sequence[int] = ()) -> Iterator[Client]:
    """A client in a user namespace where 0 is the person and 1 a sub-id, by newuidmap(1); ``inside``: what it is."""
    with Client(person.uid, person.gid, groups, before=["unshare", "-U", "--keep-caps"]) as client:
        for tool, own in (("newuidmap", person.uid), ("newgidmap", person.gid)):
            run_tool(tool, *f"{client.pid} 0 {own} 1 1 {sub} 1".split(), as_person=person)
        assert client.do("become", inside, inside) == "done"
        yield client


def test_sub_uids(guard: Guard, people: People) -> None:
    """A sub-uid is a uid of its own: not its owner to an allow, nor to a deny, which so can be escaped (documented)."""
    ann, _, _, team, _, sub = people
    sub += 7
    with mapped(ann, 1, sub) as client:
        guard.denies("name", client.meet, uid=sub, gid=sub, user=None)
    rule = "escape.deny[0]"
    guard.denies("escape", someone(ann.uid, ann.gid), rule=rule, reason=f"denied by {rule}", uid=ann.uid)
    with mapped(ann, 1, sub) as client:
        guard.admits("escape", client.meet, rule="escape.allow[0]", uid=sub)
    rule = "group-escape.deny[0]"
    guard.denies("group-escape", someone(ann.uid, ann.gid, [team]), rule=rule, reason=f"denied by {rule}", uid=ann.uid)
    with mapped(ann, 0, sub, [team]) as client:  # keeps its uid, and has dropped its groups
        guard.admits("group-escape", client.meet, rule="group-escape.allow[0]", uid=ann.uid, gid=ann.gid)


def test_sub_uid_counts_for_its_owner(guard: Guard, people: People) -> None:
    """A user's limit holds for the user and all sub-uids together, and an end of one makes room for another."""
    ann, bob, *_ = people
    full = {"cause": "limit", "reason": f"max_connections_per_user: uid {ann.uid} has 1 open", "rule": "few.allow[0]"}
    with Client(ann.uid, ann.gid) as own:
        held = guard.admits("few", own.meet, rule="few.allow[0]", uid=ann.uid)
        with mapped(ann, 1, people.first_sub) as client:
            guard.denies("few", client.meet, **full, uid=people.first_sub)
        guard.admits("few", someone(bob.uid), rule="few.allow[0]", uid=bob.uid)
    guard.daemon.wait_for("connection_closed", lambda event: event["connection"] == held["connection"])
    with mapped(ann, 1, people.first_sub + 1) as client:
        guard.admits("few", client.meet, rule="few.allow[0]", uid=people.first_sub + 1)
        guard.denies("few", someone(ann.uid, ann.gid), **full, uid=ann.uid)


def test_overflow_uid_is_nobody(guard: Guard) -> None:
    """65534 stands for anyone without a mapping: "*" does not admit it, a deny on another user catches it, and a
    permissive proxy does not let it through."""
    guard.denies("anyone", someone(OVERFLOW), uid=OVERFLOW)
    unknown = "its condition on users cannot be known (uid 65534 stands for any uid without a mapping here)"
    rule = "escape.deny[0]"
    guard.denies("escape", someone(OVERFLOW), rule=rule, reason=f"denied by {rule}: {unknown}", uid=OVERFLOW)
    rule = "permissive.deny[0]"
    guard.denies("permissive", someone(OVERFLOW), rule=rule, reason=f"denied by {rule}: {unknown}", uid=OVERFLOW)
    assert OVERFLOW not in [event["uid"] for event in guard.daemon.events("would_deny")]


def test_permissive_lets_through_what_rules_deny_and_no_more(guard: Guard, people: People) -> None:
    """What would be denied passes, under an event that says why; the limits stay as they are."""
    ann, bob, cat, *_ = people
    guard.admits("permissive", someone(ann.uid), rule="permissive.allow[0]", uid=ann.uid)
    for who, rule, reason in (
        (bob, "permissive.deny[0]", "denied by permissive.deny[0]"),
        (cat, None, "no allow rule matches"),
    ):
        with Client(who.uid, who.gid) as client:
            admitted = guard.admits("permissive", client.meet, rule=None, uid=who.uid)
            (event,) = [e for e in guard.daemon.events("would_deny") if e["connection"] == admitted["connection"]]
            assert (event["uid"], event["gid"], event["rule"], event["reason"]) == (who.uid, who.gid, rule, reason)
            reason = f"max_connections_per_user: uid {who.uid} has 1 open"
            guard.denies("permissive", someone(who.uid), cause="limit", reason=reason, rule=None, uid=who.uid)
    uids = [event["uid"] for event in guard.daemon.events("would_deny")]
    assert ann.uid not in uids
    assert "PERMISSIVE" in guard.daemon.stderr()
