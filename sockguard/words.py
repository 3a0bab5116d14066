"""Words for people: what a TOML value is called, how it is quoted, what was probably meant. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from itertools import islice
from typing import Final

MAX_SHOWN: Final = 80
"""Characters of a value or key that a message repeats."""
MAX_FACT: Final = 512
"""Bytes that a text of a peer's choice takes in an event, before it is cut."""
MAX_CANDIDATES: Final = 5000
"""Names that are searched for the one that was meant."""

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (str, "a string"),
    (bool, "a boolean"),  # before int, whose subclass it is
    (int, "an integer"),
    (float, "a float"),
    (list, "an array"),
    (dict, "a table"),
    (datetime, "a date-time"),  # before date, whose subclass it is
    (date, "a date"),
    (time, "a time"),
)


def kind(value: object) -> str:
    """What TOML calls this value, with its article: ``"an integer"``."""
    return next((word for cls, word in _KINDS if isinstance(value, cls)), "something else")


def quoted(text: str) -> str:
    """The text in quotes on one line: control characters escaped, cut to MAX_SHOWN characters."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…")


def shortened(text: str, limit: int = MAX_FACT) -> str:
    """The text, if it takes no more than ``limit`` bytes where all but printable ASCII is escaped (JSON); else as much
    of its beginning, and how many characters it has: ``"/home/…(4095 characters)"``.
    """
    if len(text) <= limit and text.isascii() and text.isprintable() and not ("\\" in text or '"' in text):
        return text
    left = limit
    for index, character in enumerate(text):
        if character.isascii() and character.isprintable():
            left -= 2 if character in '"\\' else 1
        else:
            left -= 6 if character < "\U00010000" else 12
        if left < 0:
            return f"{text[:index]}…({len(text)} characters)"
    return text


def listed(names: Sequence[str]) -> str:
    """``'a', 'b' or 'c'``"""
    words = [quoted(name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def did_you_mean(given: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'users'?"``, or nothing when no candidate is close."""
    if len(given) > MAX_SHOWN:
        return ""
    import difflib  # here: relays load this module and ask for nothing

    close = difflib.get_close_matches(given, list(islice(candidates, MAX_CANDIDATES)), n=1, cutoff=0.6)
    return f"; did you mean {quoted(close[0])}?" if close else ""
