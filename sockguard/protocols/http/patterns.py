"""Paths and values as rules write them, and finding the rules for a path. Pure text: no request, no verdict.

A path is matched segment by segment, whole, and case counts:

    /containers/json           these segments
    /containers/{id}/json      {name}: one segment, not empty
    /images/{name...}/json     {name...}: one or more segments, none empty; once in a path

A segment is a name in braces or stands for itself: there are no regular expressions and no parts of segments, so there
is no pattern that means more than it shows. A trailing slash is an empty last segment, which only itself matches.

Values (of ``params``) are exact, or globs: ``*`` any characters and ``?`` one, neither of them "/"; ``**`` at the end:
anything more. Nothing else is special. They are compared with the path as it is judged, in which a space is "%20".
In globs for bodies ``*`` and ``?`` cross "/" too: those forbid, and what forbids must not miss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from sockguard.protocols.base import Bad

PATH_LIMIT: Final = 4096
"""Longest path, or glob, that a rule may hold, characters."""

# RFC 3986, section 3.3: pchar = unreserved / pct-encoded / sub-delims / ":" / "@"; without pct-encoded, and "*".
_LITERAL: Final = re.compile(r"[A-Za-z0-9._~!$&'()+,;=:@-]*")
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Name:
    """A ``{name}`` segment; ``many``: written ``{name...}``."""

    name: str
    many: bool = False


Segment = str | Name
"""A literal segment, or a name that stands for any."""


def parse_path(text: str) -> tuple[Segment, ...]:
    """Read a rule's path. Raises Bad."""
    if not text.startswith("/"):
        raise Bad("a path begins with '/'")
    if len(text) > PATH_LIMIT:
        raise Bad(f"the path is longer than {PATH_LIMIT} characters")
    segments = tuple(_segment(part) for part in text[1:].split("/"))
    if "" in segments[:-1]:
        raise Bad("'//' in a path: no request with it is let through")
    names = [segment.name for segment in segments if isinstance(segment, Name)]
    if len(set(names)) < len(names):
        raise Bad("a name stands twice in the path")
    if sum(isinstance(segment, Name) and segment.many for segment in segments) > 1:
        raise Bad("more than one {name...} in the path")
    return segments


def _segment(part: str) -> Segment:
    if part.startswith("{") and part.endswith("}"):
        name = part[1:-1].removesuffix("...")
        if not _NAME.fullmatch(name):
            raise Bad(f"{part!a} is no name: letters, digits, '_' and '-' in braces")
        return Name(name, part.endswith("...}"))
    if part in (".", ".."):
        raise Bad(f"{part!r} in a path: no request with it is let through")
    if "*" in part:
        raise Bad(f"{part!a}: '*' means nothing here; one segment is {{name}}, one or more are {{name...}}")
    if "{" in part or "}" in part:
        raise Bad(f"{part!a}: a name in braces is a whole segment")
    if "?" in part:
        raise Bad("a path has no query; the keys it may have are query = [...] in a table")
    if "%" in part:
        raise Bad(f"{part!a}: percent-encoding in a path; only {{name}} matches what has to be encoded")
    if not _LITERAL.fullmatch(part):
        raise Bad(f"{part!a} has characters that cannot stand in a path")
    return part


def value_matcher(values: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a value is one of these, exact or globs."""
    exact = frozenset(value for value in values if not is_glob(value))
    globs = [glob(value) for value in values if is_glob(value)]
    if not globs:
        return exact.__contains__
    return lambda value: value in exact or any(matches(value) for matches in globs)


def is_glob(value: str) -> bool:
    """Tell whether a value has a character that is special in globs."""
    return "*" in value or "?" in value


def value_fault(value: str) -> str | None:
    """Say what is wrong with a value of ``params``; None when nothing is."""
    if not value:
        return "is empty, which no segment is"
    if len(value) > PATH_LIMIT:
        return f"is longer than {PATH_LIMIT} characters"
    if "**" in value.removesuffix("**") or value.endswith("***"):
        return "has '**' before its end"
    if not _VALUE.fullmatch(value):
        return "can never match: in a path as it is judged, such characters stand as escapes (%20), in upper case"
    return None


def glob(pattern: str, *, crossing: bool = False) -> Callable[[str], bool]:
    """Compile a glob. ``crossing``: ``*`` and ``?`` match "/" too. Takes time in proportion to pattern times text."""
    any_one = "." if crossing else "[^/]"
    tail = pattern.endswith("**") and not crossing
    pieces = re.split(r"\*+", pattern.removesuffix("**") if tail else pattern)
    first, *rest = ["".join(any_one if c == "?" else re.escape(c) for c in piece) for piece in pieces]
    # The leftmost place for what stands between two stars is as good as any later one, so none is given back: (?>...).
    between, last = (rest, ".*") if tail else (rest[:-1], any_one + "*" + rest[-1] if rest else "")
    compiled = re.compile(first + "".join(f"(?>{any_one}*?{piece})" for piece in between) + last, re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


@dataclass(slots=True)
class _Node(Generic[Item]):
    """A place in the index: what the segments so far have led to."""

    literals: dict[str, _Node[Item]] = field(default_factory=dict)
    name: _Node[Item] | None = None
    many: dict[str | None, list[tuple[tuple[Segment, ...], Item]]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)


class Index(Generic[Item]):
    """Items by path pattern. Finding takes time by the length of the path, not by the number of patterns."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[Item] = _Node()

    def add(self, segments: Sequence[Segment], item: Item) -> None:
        """Put an item under a path as ``parse_path`` reads it."""
        node = self._root
        for position, segment in enumerate(segments):
            if isinstance(segment, str):
                node = node.literals.setdefault(segment, _Node())
            elif segment.many:
                rest = tuple(segments[position + 1 :])
                last = rest[-1] if rest and isinstance(rest[-1], str) else None
                node.many.setdefault(last, []).append((rest, item))
                return
            else:
                node.name = node.name or _Node()
                node = node.name
        node.items.append(item)

    def find(self, path: Sequence[str]) -> list[Item]:
        """Return the items of all patterns that match a path, given as its segments."""
        found: list[Item] = []
        nodes = [self._root]
        for position, segment in enumerate(path):
            following = []
            for node in nodes:
                if node.many:
                    _find_many(node, path, position, found)
                child = node.literals.get(segment)
                if child is not None:
                    following.append(child)
                if node.name is not None and segment:
                    following.append(node.name)
            if not following:
                return found
            nodes = following
        for node in nodes:
            found += node.items
        return found


def _find_many(node: _Node[Item], path: Sequence[str], position: int, found: list[Item]) -> None:
    for last in (path[-1], None):
        for rest, item in node.many.get(last, ()):
            split = len(path) - len(rest)
            if split > position and all(path[position:split]) and _same(rest, path[split:]):
                found.append(item)


def _same(rest: Sequence[Segment], path: Sequence[str]) -> bool:
    return all(
        segment == given if isinstance(segment, str) else given for segment, given in zip(rest, path, strict=True)
    )
