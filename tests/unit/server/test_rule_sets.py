"""Interned sets of rules: each has one number for good, and there is an end to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.server import rule_sets
from sockguard.server.rule_sets import RuleSets

SETS = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=4).map(tuple)))


@given(SETS)
def test_a_number_means_one_set(wanted: list[tuple[int, tuple[int, ...]]]) -> None:
    """Equal sets of one proxy have one number, others another; numbers have no gaps and say what they stand for."""
    sets = RuleSets()
    numbers = [sets.number_of(*one) for one in wanted]
    assert [sets.number_of(*one) for one in wanted] == numbers
    assert set(numbers) == set(range(len(sets)))
    assert [sets.content()[number] for number in numbers if isinstance(number, int)] == wanted


@given(SETS, st.integers(0, 5))
def test_rows_tell_the_same_as_the_content(wanted: list[tuple[int, tuple[int, ...]]], first: int) -> None:
    """What a relay is told later, set by set, is what one that starts later gets as a whole."""
    sets = RuleSets()
    for one in wanted:
        sets.number_of(*one)
    read = [
        (proxy, tuple(int(index) for index in str(text).split(",") if index)) for _, proxy, text in sets.rows(first)
    ]
    assert read == sets.content()[first:]
    assert [row[0] for row in sets.rows(first)] == list(range(first, max(first, len(sets))))


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound there is no new set, but those that there are serve on; a set too long for a message is none."""
    sets = RuleSets()
    assert "6000 rules match this peer" in str(sets.number_of(0, tuple(range(10_000, 16_000))))
    assert sets.number_of(0, tuple(range(5_000))) == 0
    monkeypatch.setattr(rule_sets, "MAX_SETS", 2)
    assert sets.number_of(0, (1,)) == 1
    assert "2 different sets of rules" in str(sets.number_of(0, (2,)))
    assert sets.number_of(0, (1,)) == 1
    monkeypatch.setattr(rule_sets, "MAX_SETS", 100)
    monkeypatch.setattr(rule_sets, "MAX_MEMBERS", 5_002)
    assert sets.number_of(1, (1,)) == 2
    assert "3 different sets of rules" in str(sets.number_of(1, (2,)))
    assert len(sets) == 3
