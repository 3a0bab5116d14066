"""What a fuzzer is told of one parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """A parser of bytes that a peer may send.

    parse   may raise ``raises`` and nothing else; asserts what must hold of what it has read
    seeds   inputs to begin with, good and bad
    """

    parse: Callable[[bytes], object]
    raises: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> None:
        """Parse. What escapes from here is a bug."""
        try:
            self.parse(data)
        except self.raises:
            return
