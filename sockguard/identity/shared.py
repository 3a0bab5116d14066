"""Equal facts of different peers as one object: a user's connections have the same groups, program and cgroup."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, TypeVar

MAX_SHARED: Final = 1024
"""Facts that are known to be shared at a time. None is longer than 4 KiB or so: paths and labels, 1,024 groups."""

_T = TypeVar("_T", bound=Hashable)


class Shared:
    """A table with a bound: when it is full it begins anew, and what it has given out stays good."""

    def __init__(self) -> None:
        self._facts: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return len(self._facts)

    def one(self, fact: _T) -> _T:
        """The object to keep instead of this one: an equal one, of the same type."""
        key = type(fact), fact
        found = self._facts.get(key)
        if found is None:
            if len(self._facts) >= MAX_SHARED:
                self._facts.clear()
            found = self._facts[key] = fact
        return found  # type: ignore[return-value]  # by its key it has this type
