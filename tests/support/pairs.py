"""All-pairs: few cases of many factors, in which any two values still meet."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

Case = tuple[str, ...]


def pairwise(factors: Sequence[Sequence[str]], possible: Callable[[Case], bool]) -> list[Case]:
    """Cases that together have every pair of values that any possible case has; a value of each factor in a case.

    The same cases each time: each brings as many pairs as any could that no earlier one had, and of such cases it is
    the one whose values were used least.
    """
    cases = [case for case in itertools.product(*factors) if possible(case)]
    missing = {pair for case in cases for pair in _pairs(case)}
    used: Counter[tuple[int, str]] = Counter()

    def worth(case: Case) -> tuple[int, int]:
        return len(missing.intersection(_pairs(case))), -sum(used[value] for value in enumerate(case))

    chosen = []
    while missing:
        best = max(cases, key=worth)
        missing.difference_update(_pairs(best))
        used.update(enumerate(best))
        chosen.append(best)
    return chosen


def _pairs(case: Case) -> list[tuple[tuple[int, str], ...]]:
    return list(itertools.combinations(enumerate(case), 2))
