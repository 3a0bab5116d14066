"""Shows bytes to a reader in every way in which they may come: at once, byte by byte, in pieces, with more behind.

For any protocol. A reader is asked as the relay asks an inspector: it is shown all that has come and is not used, says
how much of it is used, and is shown the rest again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Receive = Callable[[bytes], tuple[int, list[Any]]]
"""Shown what has come: bytes used, and what was made of them."""


class Played(NamedTuple):
    """What became of it: results in their order, bytes left unused, and the exception that ended it."""

    results: list[Any]
    left: bytes
    error: str | None


def play(receive: Receive, data: bytes, piece: int, raises: type[Exception]) -> Played:
    """Show ``data`` in pieces of that many bytes; stop at the first exception of the documented kind."""
    results: list[Any] = []
    waiting = b""
    for at in range(0, len(data), piece):
        waiting += data[at : at + piece]
        while waiting:
            try:
                used, more = receive(waiting)
            except raises as error:
                return Played([], b"", f"{type(error).__name__}: {error}")
            assert 0 <= used <= len(waiting), "a reader uses no more than it is shown"
            results += more
            waiting = waiting[used:]
            if not used:
                break
    return Played(results, waiting, None)


def play_all_ways(
    make: Callable[[], Receive],
    data: bytes,
    raises: type[Exception],
    trailing: bytes = b"",
    pieces: tuple[int, ...] = (),
) -> Played:
    """Play ``data`` to a new reader at once, byte by byte and in ``pieces``: all must end alike; return how.

    trailing: bytes that a reader must leave alone while no more come (the start of a next message). What is behind
    data that ends in an exception must not change that either.
    """
    whole = play(make(), data, max(len(data), 1), raises)
    for piece in (1, *pieces):
        assert play(make(), data, piece, raises) == whole, f"the same in pieces of {piece}"
    if trailing:
        behind = play(make(), data + trailing, len(data + trailing), raises)
        expected = whole if whole.error else whole._replace(left=whole.left + trailing)
        assert behind == expected, "the same with more behind"
    return whole
