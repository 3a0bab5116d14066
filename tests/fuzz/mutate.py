"""Changes to bytes as fuzzers make them: for where there is no atheris, and for the normal test run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

_INTERESTING: Final = (0, 1, 7, 8, 10, 13, 32, 39, 44, 58, 61, 92, 97, 127, 128, 255)


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of ``seeds`` with one to eight changes: bytes set, cut out, doubled, moved, or taken from another seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(data))
        size = rng.randint(1, 8)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes((rng.choice(_INTERESTING),))
            case 1:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * rng.choice((1, 1, 1, 40))
            case _:
                other = rng.choice(seeds)
                start = rng.randint(0, len(other))
                data[at : at + size] = other[start : start + size]
    return bytes(data)
