"""What is kept of a peer's groups: enough for the rules, and little of those who have many."""

from __future__ import annotations

import os
import struct
import sys

import pytest

from sockguard.identity import groups, peercred
from sockguard.identity.groups import Groups
from sockguard.identity.peer import Unknown
from tests.unit.identity.conftest import Peers

FIRST = 200_000
MANY = range(FIRST, FIRST + peercred.NGROUPS_MAX)


@pytest.mark.root
def test_of_many_groups_those_are_kept_that_rules_name(peers: Peers) -> None:
    wanted = frozenset([7, MANY[0], MANY[-1]])
    with peers.forked(before=lambda: os.setgroups(MANY)) as (accepted, _):
        kept = groups.read(accepted, wanted)
    assert isinstance(kept, Groups)
    assert kept.among(wanted) == frozenset([MANY[0], MANY[-1]])
    assert kept.among(frozenset([7])) == frozenset()
    assert sys.getsizeof(kept.raw) < 100


@pytest.mark.root
def test_nobody_is_said_not_to_have_a_group_that_was_not_asked_about(peers: Peers) -> None:
    """Other rules may come that name it: then it is unknown, even beside some that are known."""
    with peers.forked(before=lambda: os.setgroups(MANY)) as (accepted, _):
        kept = groups.read(accepted, frozenset([MANY[0]]))
    assert isinstance(kept, Groups)
    assert isinstance(kept.among(frozenset([7])), Unknown)
    assert isinstance(kept.among(frozenset([7, MANY[0]])), Unknown)


@pytest.mark.root
def test_many_groups_are_not_read_where_no_rule_names_any(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes the kernel 3 ms."""
    monkeypatch.setattr(peercred, "raw_groups", None)
    with peers.forked(before=lambda: os.setgroups(MANY)) as (accepted, _):
        kept = groups.read(accepted, frozenset())
    assert isinstance(kept, Groups)
    assert kept.among(frozenset()) == frozenset()
    assert isinstance(kept.among(frozenset([MANY[0]])), Unknown)


@pytest.mark.root
@pytest.mark.parametrize("count", [0, 1, 256, 257, peercred.MANY_GROUPS, peercred.MANY_GROUPS + 1])
def test_others_are_kept_whole(peers: Peers, count: int) -> None:
    """For rules that come later."""
    given = MANY[:count]
    with peers.forked(before=lambda: os.setgroups(given)) as (accepted, _):
        many = peercred.has_many_groups(accepted)
        kept = groups.read(accepted, frozenset())
    assert isinstance(kept, Groups)
    assert many == (count > peercred.MANY_GROUPS)
    later = kept.among(frozenset([7, *given]))
    assert isinstance(later, Unknown) if many else later == frozenset(given)


def test_groups_that_cannot_be_known(peers: Peers) -> None:
    with peers.forked() as (accepted, _):
        pass
    assert isinstance(groups.read(accepted, frozenset([1])), Unknown)
    assert not peercred.has_many_groups(accepted)


def test_the_order_of_groups_does_not_matter() -> None:
    """In a user namespace they come in whatever order its map gives them."""
    raw = struct.pack("=4I", 9, 3_000_000_000, 1, 5)
    assert Groups(raw).among(frozenset([1, 2, 9, 3_000_000_000])) == frozenset([1, 9, 3_000_000_000])
