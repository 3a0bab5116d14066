"""Every parser, for a moment: seeds, changed seeds and any bytes raise what is documented and nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.parametrize("name", TARGETS)


def test_seeds(name: str) -> None:
    """The seeds themselves, each cut short at every byte."""
    target = TARGETS[name]
    for seed in target.seeds:
        for end in range(len(seed) + 1):
            target.run(seed[:end])


@given(seed=st.integers(0, 1 << 32))
def test_changed_seeds(name: str, seed: int) -> None:
    """Ten changed seeds from each number."""
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    for _ in range(10):
        TARGETS[name].run(mutated(TARGETS[name].seeds, rng))


@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    """Bytes out of nowhere."""
    TARGETS[name].run(data)
