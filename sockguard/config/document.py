"""One parsed file with its lines, and the collector of what is wrong in all of them. Judges no value."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any, Final

import tomli

from sockguard.config.locate import Lines, Path
from sockguard.config.read import Source
from sockguard.errors import Mistake
from sockguard.words import MAX_SHOWN

MAX_MISTAKES: Final = 1000
"""More mistakes than these are counted, not kept."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLACE: Final = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")


class Document:
    """One file: ``index`` among the sources (0: FILE itself), and ``data`` as tomli gives it, ours to change.

    parts: what a protocol's own module is to read, by its key path, no longer in ``data``.
    """

    def __init__(self, index: int, source: Source, text: str, data: dict[str, Any]) -> None:
        self.index = index
        self.file = source.path
        self.data = data
        self.parts: dict[Path, Any] = {}
        self._text = text

    @cached_property
    def lines(self) -> Lines:
        """Made at the first mistake: a good file does not pay for it."""
        return Lines(self._text)

    def place(self, path: Path) -> str:
        """``FILE:LINE`` of a key path."""
        return f"{self.file}:{self.lines.line(path)}"


class Faults:
    """The mistakes so far, at most one with the same words at one path."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, Path, str], Mistake] = {}
        self._below: dict[tuple[int, Path], set[str | int]] = {}
        self._left_out = 0
        self.unparsed = False

    def add(self, document: Document, path: Path, text: str) -> None:
        """One mistake at a key path of a document."""
        self.mute(document, path)
        self._put((document.index, path, text), Mistake(document.file, document.lines.line(path), keyed(path), text))

    def add_file(self, index: int, source: Source, line: int, text: str) -> None:
        """One mistake that keeps a file from being parsed."""
        self.unparsed = True
        self._put((index, (), text), Mistake(source.path, line, "", text))

    def mute(self, document: Document, path: Path) -> None:
        """Note that something at ``path`` was taken out: what follows from its absence is no mistake of its own."""
        for depth in range(len(path)):
            self._below.setdefault((document.index, path[:depth]), set()).add(path[depth])

    def within(self, document: Document, *path: str | int) -> bool:
        """Whether there is a mistake at this path or below it."""
        return path[-1] in self._below.get((document.index, path[:-1]), ())

    def children(self, document: Document, path: Path) -> set[str | int]:
        """The keys right below ``path`` at or below which there is a mistake."""
        return self._below.get((document.index, path), set())

    def listed(self) -> list[Mistake]:
        """All of them, in the order of the files and their lines."""
        order = sorted(self._found.items(), key=lambda item: (item[0][0], item[1].line))
        mistakes = [mistake for _, mistake in order]
        if self._left_out:
            mistakes.append(Mistake(mistakes[0].file, 0, "", f"and {self._left_out} more mistakes"))
        return mistakes

    def _put(self, key: tuple[int, Path, str], mistake: Mistake) -> None:
        if len(self._found) < MAX_MISTAKES:
            self._found.setdefault(key, mistake)
        else:
            self._left_out += 1


def keyed(path: Path) -> str:
    """The path in TOML's own notation: ``proxy.docker.allow[1].usres``; other than bare keys in quotes."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def parse(index: int, source: Source, faults: Faults) -> Document | None:
    """Parse one file; None, with a mistake noted, when it is no TOML."""
    try:
        text = source.text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.text.count(b"\n", 0, error.start) + 1
        column = error.start - (source.text.rfind(b"\n", 0, error.start) + 1) + 1
        faults.add_file(index, source, line, f"not valid UTF-8 (byte {column} of the line)")
        return None
    text = text.replace("\r\n", "\n")  # as tomli does: its line numbers and ours are then the same
    try:
        return Document(index, source, text, tomli.loads(text))
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and a number of too many digits
        line, said = _syntax(str(error), text)
        faults.add_file(index, source, line, said)
        return None


def _syntax(message: str, text: str) -> tuple[int, str]:
    """tomli's message taken apart: the line, and the words with the column."""
    found = _PLACE.search(message)
    words = _PLACE.sub("", message)
    words = f"not valid TOML: {words[:1].lower()}{words[1:]}"
    if found is None:
        return 0, words
    if found[1] is None:
        return text.count("\n", 0, len(text.rstrip("\n"))) + 1, f"{words} (at the end of the file)"
    return int(found[1]), f"{words} (column {found[2]})"


def _key(key: str) -> str:
    if _BARE.fullmatch(key) and len(key) <= MAX_SHOWN:
        return key
    cut = key if len(key) <= MAX_SHOWN else key[: MAX_SHOWN - 1] + "…"
    return json.dumps(cut, ensure_ascii=not cut.isprintable())
