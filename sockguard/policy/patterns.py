"""Patterns for programs, units and labels. Pure text: it knows no file and no unit that exists.

    *       any characters, none of them "/"
    ?       one character, not "/"
    [a-z]   one of these, never "/"; [!a-z] none of these; "]" first stands for itself
    **      any characters, "/" among them

In labels "/" is nothing special: there ``*`` and ``?`` match any characters. A leading dot is nothing special
anywhere. A backslash stands for itself, as systemd writes ``\\x2d`` in unit names; a literal ``*`` is ``[*]``.
A pattern matches the whole text.

Peers choose the text (the path of a program), so matching takes time in proportion to its length whatever the
pattern: all places in the pattern that the text read so far can have led to are kept as bits of one integer, and each
character moves them together. There is nothing to back-track.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

PATTERN_LIMIT: Final = 4096
"""Longest pattern that a file may hold, characters (PATH_MAX)."""
CACHE_SIZE: Final = 8192
"""Compiled patterns that are kept."""
MOVES_LIMIT: Final = 256
"""Characters whose moves one compiled pattern keeps; peers choose the characters."""

_STAR: Final = "*"
_CROSSING: Final = "**"


def fault(pattern: str) -> str | None:
    """Say what is wrong with a pattern, for the file's reader; None when nothing is."""
    if not pattern:
        return "is empty"
    if len(pattern) > PATTERN_LIMIT:
        return f"is longer than {PATTERN_LIMIT} characters"
    index = 0
    while (index := pattern.find("[", index)) >= 0:
        end = _class_end(pattern, index)
        if end is None:
            return "has a '[' without a ']'; a literal '[' is written [[]"
        if bad := _backward_range(pattern[index + 1 : end]):
            return f"has the empty range '{bad}'"
        index = end + 1
    return None


def executable_matches(pattern: str, path: str) -> bool:
    """Tell whether the path of a program is what the pattern says."""
    return _compiled(pattern, "/").matches(path)


def unit_matches(pattern: str, cgroup: str) -> bool:
    """Tell whether a cgroup path belongs to what the pattern names.

    A pattern that begins with "/" is about the whole cgroup path, any other about the unit's name by ``unit_of``.
    """
    if pattern.startswith("/"):
        return _compiled(pattern, "/").matches(cgroup)
    unit = unit_of(cgroup)
    return unit is not None and _compiled(pattern, "/").matches(unit)


def label_matches(pattern: str, label: str) -> bool:
    """Tell whether a security label is what the pattern says."""
    return _compiled(pattern, "").matches(label)


def unit_of(cgroup: str) -> str | None:
    """Return the system unit that a cgroup path belongs to: its first component that is no slice.

    Whatever a service makes below its own cgroup is still its own. None where there is no unit, and anywhere below
    user.slice, where users name units as they like.
    """
    for component in cgroup.split("/"):
        if component == "user.slice":
            return None
        if component and not component.endswith(".slice"):
            # systemd puts "_" before names that the kernel could mistake for its own files (CGROUP_DELEGATION.md).
            return component.removeprefix("_") or component
    return None


class _Pattern:
    """A pattern split into places; bit N of a state: the text so far may have been used up by the first N places."""

    __slots__ = ("_end", "_moves", "_places", "_prefix", "_separator", "_stars", "_suffix")

    def __init__(self, pattern: str, separator: str) -> None:
        self._separator = separator
        self._places = _split(pattern)
        self._end = 1 << len(self._places)
        self._stars = sum(1 << number for number, place in enumerate(self._places) if place in (_STAR, _CROSSING))
        self._moves: dict[str, tuple[int, int]] = {}
        self._prefix = _literals(self._places)
        self._suffix = _literals(self._places[::-1])[::-1]

    def matches(self, text: str) -> bool:
        # Most texts differ at once; this also is the whole answer for a pattern without wildcards.
        if not text.startswith(self._prefix) or not text.endswith(self._suffix):
            return False
        if len(self._prefix) == len(self._places):
            return len(text) == len(self._prefix)
        state = self._open(1 << len(self._prefix))
        for character in text[len(self._prefix) :]:
            go, stay = self._moves.get(character) or self._learn(character)
            state = self._open((state & go) << 1 | state & stay)
            if not state:
                return False
        return bool(state & self._end)

    def _open(self, state: int) -> int:
        """A star may be left without having matched anything; no two stars stand side by side."""
        return state | (state & self._stars) << 1

    def _learn(self, character: str) -> tuple[int, int]:
        go = stay = 0
        for number, place in enumerate(self._places):
            if place == _CROSSING or (place == _STAR and character != self._separator):
                stay |= 1 << number
            elif place != _STAR and _accepts(place, character, self._separator):
                go |= 1 << number
        if len(self._moves) < MOVES_LIMIT:
            self._moves[character] = go, stay
        return go, stay


@lru_cache(maxsize=CACHE_SIZE)
def _compiled(pattern: str, separator: str) -> _Pattern:
    return _Pattern(pattern, separator)


def _split(pattern: str) -> tuple[str, ...]:
    """Split into places: "*", "**", "?", "[...]", or "=" and the character that stands for itself."""
    places: list[str] = []
    index = 0
    while index < len(pattern):
        character = pattern[index]
        end = _class_end(pattern, index) if character == "[" else None
        if character == "*":
            run = len(pattern[index:]) - len(pattern[index:].lstrip("*"))
            places.append(_STAR if run == 1 else _CROSSING)
            index += run
            continue
        if end is not None:
            places.append(pattern[index : end + 1])
            index = end + 1
            continue
        places.append("?" if character == "?" else "=" + character)
        index += 1
    return tuple(places)


def _literals(places: tuple[str, ...]) -> str:
    text = ""
    for place in places:
        if not place.startswith("="):
            break
        text += place[1:]
    return text


def _accepts(place: str, character: str, separator: str) -> bool:
    if place.startswith("="):
        return place[1] == character
    if character == separator:
        return False
    if place == "?":
        return True
    body = place[1:-1]
    negated = body[0] in "!^"
    return _in_class(body[1:] if negated else body, character) is not negated


def _in_class(body: str, character: str) -> bool:
    index = 0
    while index < len(body):
        if body[index + 1 : index + 2] == "-" and index + 2 < len(body):
            if body[index] <= character <= body[index + 2]:
                return True
            index += 3
        else:
            if body[index] == character:
                return True
            index += 1
    return False


def _class_end(pattern: str, start: int) -> int | None:
    """Return where the class that begins at ``start`` has its "]"; None when it has none and "[" stands for itself."""
    first = start + 1
    if pattern[first : first + 1] in ("!", "^"):
        first += 1
    end = pattern.find("]", first + 1)
    return end if end >= 0 else None


def _backward_range(body: str) -> str | None:
    body = body[1:] if body[0] in "!^" else body
    index = 0
    while index < len(body):
        if body[index + 1 : index + 2] == "-" and index + 2 < len(body):
            if body[index] > body[index + 2]:
                return body[index : index + 3]
            index += 3
        else:
            index += 1
    return None
