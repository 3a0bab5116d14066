"""Interned sets of rules: many peers have the same reduced rules, so relays are told each set once a generation."""

from __future__ import annotations

from typing import Final

from sockguard.privsep.messages import Row

MAX_SETS: Final = 100_000
"""Different sets in one generation. Somebody with many groups, or sub-uids, can make as many as there are ways."""

MAX_MEMBERS: Final = 1_000_000
"""Rules in all sets of one generation, counted in each."""

MAX_SET_TEXT: Final = 32_000
"""Characters of one set as a row tells it: some 5,000 rules."""


class RuleSets:
    """The sets of one generation by their numbers, which count from 0 and never change."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        self._sets: list[tuple[int, tuple[int, ...]]] = []
        self._members = 0

    def __len__(self) -> int:
        return len(self._sets)

    def number_of(self, proxy: int, rules: tuple[int, ...]) -> int | str:
        """The number of these rules of that proxy, a new one if need be; or why they can have none.

        proxy: its index in the generation; rules: indexes among the proxy's rules.
        """
        wanted = proxy, rules
        number = self._numbers.get(wanted)
        if number is not None:
            return number
        if len(self._sets) >= MAX_SETS or self._members + len(rules) > MAX_MEMBERS:
            return f"there are {len(self._sets)} different sets of rules already: a reload begins anew"
        if len(_text(rules)) > MAX_SET_TEXT:
            return f"{len(rules)} rules match this peer: more than a relay can be told"
        number = self._numbers[wanted] = len(self._sets)
        self._sets.append(wanted)
        self._members += len(rules)
        return number

    def content(self) -> list[tuple[int, tuple[int, ...]]]:
        """All sets in the order of their numbers, as a generation tells them."""
        return self._sets

    def rows(self, first: int) -> list[Row]:
        """The sets from that number on, as a rule_sets message tells them."""
        return [(first + i, proxy, _text(rules)) for i, (proxy, rules) in enumerate(self._sets[first:])]


def _text(rules: tuple[int, ...]) -> str:
    return ",".join(map(str, rules))
