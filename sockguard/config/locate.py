"""From a key path to its line in the TOML text, for messages: tomli keeps no positions.

A scanner over TOML's lexical structure (toml.io/en/v1.0.0): it knows strings, comments, brackets, keys and newlines,
and no value. It is only asked about text that tomli has accepted, must never raise on any other, and decides
nothing: a wrong answer here is a wrong line number and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import tomli

Path: TypeAlias = tuple[str | int, ...]
"""A key path: table keys and array indexes from the top, e.g. ``("proxy", "docker", "allow", 1, "users", 0)``."""

MAX_DEPTH: Final = 16
"""Paths longer than this are not kept (the file's own grammar needs 6); they get the line of what encloses them."""

_TOKEN: Final = re.compile(
    r"""
    (?P<newline>\n)
    | (?P<blank>[ \t\r]+ | \#[^\n]*)
    | (?P<string>
          \"{3} (?: [^"\\] | \\[\s\S] | \"{1,2}(?!\") )* \"{3,5}
        | '{3} (?: [^'] | '{1,2}(?!') )* '{3,5}
        | " (?: [^"\\\n] | \\. )* "
        | ' [^'\n]* '
      )
    | (?P<mark>[\[\]{},=.])
    | (?P<bare>[^\s\[\]{},=."'#]+)
    | (?P<other>[\s\S])
    """,
    re.VERBOSE,
)


class Lines:
    """The lines of one TOML text, counted from 1. ``text`` is what tomli has parsed without an error."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._headed: set[Path] = set()
        self._arrays: dict[Path, int] = {}
        self._tokens = _tokens(text)
        self._token = ("", "", 1)
        self._scan()

    def line(self, path: Path) -> int:
        """The line where ``path`` is given; of the nearest table that encloses it when it is not there."""
        for length in range(min(len(path), MAX_DEPTH), 0, -1):
            found = self._lines.get(path[:length])
            if found is not None:
                return found
        return 1

    def _scan(self) -> None:
        """The text as a whole: headers and ``key = value`` lines, in turn."""
        table: Path = ()
        while self._advance():
            kind, text, _ = self._token
            if kind == "newline":
                continue
            if text == "[" and kind == "mark":
                table = self._header()
            else:
                self._value(self._key(table))

    def _header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``, from its first bracket to its line's end; returns the table that it opens."""
        line = self._token[2]
        self._advance()
        is_array = self._token[:2] == ("mark", "[")
        if is_array:
            self._advance()
        table: Path = ()
        parts = self._dotted("]")
        for number, part in enumerate(parts, 1):
            table = (*table, part)
            last = number == len(parts)
            if last and is_array:
                self._keep(table, line)
                self._arrays[table] = self._arrays.get(table, -1) + 1
            if table in self._arrays:
                table = (*table, self._arrays[table])
            self._keep(table, line, headed=last)
        while self._token[0] != "newline" and self._advance():
            pass
        return table

    def _key(self, table: Path) -> Path:
        """``a.b.c =`` from its first token to the equals sign; keeps and returns the path that it gives."""
        line = self._token[2]
        for part in self._dotted("="):
            table = (*table, part)
            self._keep(table, line)
        return table

    def _dotted(self, end: str) -> list[str]:
        parts: list[str] = []
        while True:
            kind, text, _ = self._token
            if kind == "string":
                parts.append(_unquoted(text))
            elif kind == "bare":
                parts.append(text)
            elif kind == "newline" or (kind == "mark" and text == end):
                return parts
            if not self._advance():
                return parts

    def _value(self, path: Path) -> None:
        """From after the equals sign to the line's end, with everything inside of arrays and inline tables."""
        inside: list[tuple[str, Path]] = []  # the brackets that are open, each with the path of what they hold
        counts: list[int] = []
        while self._advance():
            kind, text, line = self._token
            if kind == "newline":
                if not inside:
                    return
                continue
            if kind == "mark" and text in "]}":
                if inside:
                    inside.pop()
                    counts.pop()
            elif kind == "mark" and text == ",":
                if counts:
                    counts[-1] += 1
            elif inside and inside[-1][0] == "{" and self._starts_key:
                path = self._key(inside[-1][1])
            else:
                if inside and inside[-1][0] == "[":
                    path = (*inside[-1][1], counts[-1])
                    self._keep(path, line)
                if kind == "mark" and text in "[{":
                    inside.append((text, path))
                    counts.append(0)
            self._starts_key = kind == "mark" and text in "{,"

    _starts_key = False

    def _keep(self, path: Path, line: int, *, headed: bool = False) -> None:
        """The first line wins, but a table's own header beats a header that only passes through it."""
        if len(path) > MAX_DEPTH:
            return
        if path not in self._lines or (headed and path not in self._headed):
            self._lines[path] = line
        if headed:
            self._headed.add(path)

    def _advance(self) -> bool:
        token = next(self._tokens, None)
        if token is None:
            self._token = ("newline", "", self._token[2])
            return False
        self._token = token
        return True


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Each token but blanks and comments: its kind, its text, the line that it starts on."""
    line = 1
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "other", match.group()
        if kind != "blank":
            yield kind, found, line
        if kind in ("newline", "string"):
            line += found.count("\n")


def _unquoted(text: str) -> str:
    """A quoted key's text, escapes undone by tomli itself."""
    try:
        return str(tomli.loads(f"k = {text}")["k"])
    except (tomli.TOMLDecodeError, KeyError):
        return text
