"""The regular expressions of the code: none may mean something else to a Python that a distribution ships."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import sockguard
from sockguard.protocols.dbus.match_rule import parse
from sockguard.protocols.dbus.signature import Malformed
from sockguard.protocols.http.responses import Refused
from sockguard.protocols.http.target import read_target

_POSSESSIVE_GROUP: Final = re.compile(r"(?<![\\(])\)(?:[*+?]|\{[0-9,]*\})\+")


def strings() -> Iterator[tuple[str, str]]:
    """Every string of the code but its docstrings, as it is written, and where it stands."""
    root = Path(sockguard.__file__).parent
    kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}  # the latter since Python 3.12
    for path in root.rglob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in kinds and '"""' not in token.string:
                yield f"{path.relative_to(root)}:{token.start[0]}", token.string


@pytest.mark.parametrize("pattern", ["(?:ab)*+", "(a)++", "(?:a|b)?+", "(?:ab){1,2}+"])
def test_the_search_finds_them(pattern: str) -> None:
    assert _POSSESSIVE_GROUP.search(pattern)


def test_no_possessive_groups() -> None:
    """Before 3.11.5 re goes on behind a half-read group as if it were whole (python/cpython#106052), and Debian 12
    has 3.11.2: "/a/.." was a good path there. Possessive single characters and classes, and (?>...), are sound.
    """
    read = list(strings())
    assert len(read) > 1000
    character_class = re.compile(r"\[(?:\\.|[^\]\\])+\]")
    assert [where for where, text in read if _POSSESSIVE_GROUP.search(character_class.sub("c", text))] == []


def test_what_it_let_in() -> None:
    """Cases that differ between 3.11.2 and 3.11.5 where groups are possessive."""
    for path in (b"/a/.", b"/a/..", b"/a//", b"/a/b/.."):
        with pytest.raises(Refused):
            read_target(path)
    for rule in ("arg0='", "arg0='''"):
        with pytest.raises(Malformed):
            parse(rule)
