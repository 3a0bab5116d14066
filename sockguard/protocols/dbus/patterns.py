"""Patterns of D-Bus rules: names, paths, interfaces, members. Pure; each takes time in proportion to the text.

name       "org.example.App", "org.example.*" (that name and all below it), "*" (any)
interface  as a name, but never "*"
path       "/a/b"; "*" within one segment; "**" as the last segment: any depth, none included
member     "Get"; "*" any characters
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

ANY: Final = "*"
BELOW: Final = ".*"
DEEP: Final = "**"


@dataclass(frozen=True, slots=True)
class Glob:
    """Text with stars, each for any characters, none included."""

    first: str
    middle: tuple[str, ...]
    last: str

    def matches(self, text: str) -> bool:
        """Whether the whole text fits. The earliest place for each part is always the best: nothing to back-track."""
        end = len(text) - len(self.last)
        at = len(self.first)
        if end < at or not text.startswith(self.first) or not text.endswith(self.last):
            return False
        for part in self.middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


def glob(pattern: str) -> Glob | str:
    """Take a pattern apart; itself when it has no star."""
    if ANY not in pattern:
        return pattern
    first, *middle, last = pattern.split(ANY)
    return Glob(first, tuple(part for part in middle if part), last)


@dataclass(frozen=True, slots=True)
class PathGlob:
    """An object path by its segments. deep: any number of further segments may follow."""

    segments: tuple[Glob | str, ...]
    deep: bool

    def matches(self, path: str) -> bool:
        """Whether a valid object path fits."""
        segments = split_path(path)
        if len(segments) < len(self.segments) or (len(segments) > len(self.segments) and not self.deep):
            return False
        return all(
            wanted == given if isinstance(wanted, str) else wanted.matches(given)
            for wanted, given in zip(self.segments, segments, strict=False)
        )


@dataclass(frozen=True, slots=True)
class Below:
    """A name and every name below it."""

    prefix: str

    def matches(self, name: str) -> bool:
        return below(self.prefix, name)


Pattern: TypeAlias = Glob | PathGlob | Below


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Several patterns, any of which will do."""

    exact: frozenset[str]
    others: tuple[Pattern, ...]

    def matches(self, text: str) -> bool:
        if text in self.exact:
            return True
        for pattern in self.others:  # noqa: SIM110  any() would make a generator for each entry that is looked at
            if pattern.matches(text):
                return True
        return False


def any_of(made: Iterable[Pattern | str]) -> AnyOf:
    """Put patterns together that ``glob``, ``path_glob`` or ``name_pattern`` has made."""
    parts = list(made)
    return AnyOf(
        frozenset(part for part in parts if isinstance(part, str)),
        tuple(part for part in parts if not isinstance(part, str)),
    )


def name_pattern(pattern: str) -> Below | str:
    """Take apart the pattern of an interface; itself when it is one name."""
    return Below(pattern.removesuffix(BELOW)) if pattern.endswith(BELOW) else pattern


def path_glob(pattern: str) -> PathGlob | str:
    """Take a path's pattern apart; itself when it has no star."""
    if ANY not in pattern:
        return pattern
    segments = split_path(pattern)
    deep = segments[-1] == DEEP
    return PathGlob(tuple(map(glob, segments[:-1] if deep else segments)), deep)


def split_path(path: str) -> list[str]:
    """The segments of a path; "/" has none."""
    return path[1:].split("/") if len(path) > 1 else []


def below(prefix: str, name: str) -> bool:
    """Whether a name is ``prefix`` or below it: "org.example" has "org.example.A" below it, not "org.exampleA"."""
    return name == prefix or name.startswith(f"{prefix}.")


def prefixes(name: str) -> list[str]:
    """The name and every name that it is below."""
    found = [name]
    while (dot := name.rfind(".")) > 0:
        name = name[:dot]
        found.append(name)
    return found


def name_matches(patterns: Sequence[str], name: str) -> bool:
    """Whether any of these patterns means the name."""
    return any(
        pattern in (ANY, name) or (pattern.endswith(BELOW) and below(pattern.removesuffix(BELOW), name))
        for pattern in patterns
    )
