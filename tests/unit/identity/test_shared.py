"""Equal facts are one object, in a table that does not grow."""

from __future__ import annotations

from sockguard.identity.groups import Groups
from sockguard.identity.peer import Unknown
from sockguard.identity.shared import MAX_SHARED, Shared


def test_equal_facts_are_one_object() -> None:
    shared = Shared()
    path = shared.one("/usr/bin/" + "x" * 9)
    assert shared.one("/usr/bin/" + "x" * 9) is path
    kept = shared.one(Groups(bytes(4)))
    assert shared.one(Groups(bytes(4))) is kept
    assert shared.one(Groups(bytes(4), frozenset())) is not kept


def test_facts_of_different_types_are_not_taken_for_each_other() -> None:
    shared = Shared()
    assert shared.one(Unknown("x")) == Unknown("x")
    assert isinstance(shared.one(1), int)
    assert isinstance(shared.one(True), bool)
    assert isinstance(shared.one(1.0), float)


def test_the_table_has_a_bound() -> None:
    """Somebody who comes with ever other facts gets those, and they are not kept."""
    shared = Shared()
    for number in range(3 * MAX_SHARED):
        assert shared.one(f"/{number}") == f"/{number}"
        assert len(shared) <= MAX_SHARED
