"""Counting connections: what is counted in is counted out, whatever the order, and a refusal counts nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sockguard.server.limits import Limits


def test_both_limits() -> None:
    """The proxy's limit and the user's, each with its own words; one given back is free again."""
    limits = Limits(3, 2)
    assert [limits.take(user) for user in (1, 1, 2)] == [None, None, None]
    assert limits.take(3) == "max_connections: 3 are open"
    limits.give_back(2)
    assert limits.take(1) == "max_connections_per_user: uid 1 has 2 open"
    assert limits.total == 2
    assert limits.take(2) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3))), st.integers(1, 6), st.integers(1, 4))
def test_never_more_than_the_limits_and_never_fewer_than_live(
    steps: list[tuple[bool, int]], total: int, per_user: int
) -> None:
    """A model of plain counting: admitted exactly while both limits have room; at the end nothing is remembered."""
    limits = Limits(total, per_user)
    live: Counter[int] = Counter()
    for arrives, user in steps:
        if arrives:
            room = live.total() < total and live[user] < per_user
            assert (limits.take(user) is None) == room
            live[user] += room
        elif live[user]:
            limits.give_back(user)
            live[user] -= 1
        assert limits.total == live.total()
    for user in live.elements():
        limits.give_back(user)
    assert limits.total == 0
    assert not limits.by_user  # a user who has none costs nothing
