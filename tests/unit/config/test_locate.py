"""Key paths to lines, held against what tomli reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomli
from hypothesis import event, given
from hypothesis import strategies as st

from sockguard.config.locate import Lines, Path

TEXT = '''\
# "a" = [comment]
[a] # one
x = """
[not.a.table]
y = 1 \\""" """
"quoted.key" = 'it''s' # no TOML, but scanned
y . z = [ # two
  1.5, "]",
  { k = "}", l = [
    2] },
  \'\'\'
,]\'\'\', 1979-05-27 07:32:00Z,
]

[[b.c]]
k = 1
[[b.c]]
[b.c.d]
k = { m = 1, n.o = 2 }
[b]
last = ""
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 2),
        (("a", "x"), 3),
        (("a", "quoted.key"), 6),
        (("a", "y"), 7),
        (("a", "y", "z", 0), 8),
        (("a", "y", "z", 1), 8),
        (("a", "y", "z", 2), 9),
        (("a", "y", "z", 2, "l", 0), 10),
        (("a", "y", "z", 3), 11),
        (("a", "y", "z", 4), 12),
        (("b", "c", 0, "k"), 16),
        (("b", "c", 1), 17),
        (("b", "c", 1, "d"), 18),
        (("b", "c", 1, "d", "k", "n", "o"), 19),
        (("b",), 20),
        (("b", "last"), 21),
    ],
)
def test_lines(path: Path, line: int) -> None:
    """Every lexical form of TOML leads to the line that its key or element is written on."""
    assert Lines(TEXT.replace("'it''s'", "'its'")).line(path) == line


@pytest.mark.parametrize(
    ("path", "line"), [(("b", "c", 1, "d", "none"), 18), (("b", "c", 7), 15), (("nowhere", "at", "all"), 1), ((), 1)]
)
def test_what_is_not_there_gets_the_line_of_what_encloses_it(path: Path, line: int) -> None:
    """A key that is missing is reported at its table."""
    assert Lines(TEXT).line(path) == line


ALPHABET = st.sampled_from("ab.=[]{},\"'\\# é☃\x7f\u2028")
KEYS = st.one_of(st.sampled_from(["a", "b-1", "c_", "12"]), st.text(ALPHABET, min_size=1, max_size=4))
TEXTS = st.text(ALPHABET, max_size=8)
PAD = st.sampled_from(["", " ", "\t"])
BREAK = st.sampled_from(["", "\n", ' # ]},="\n', "\r\n\t"])


def _quote(draw: st.DrawFn, key: str) -> str:
    bare = key.isascii() and all(c.isalnum() or c in "-_" for c in key)
    forms = [json.dumps(key, ensure_ascii=False).replace("\x7f", "\\u007f")]
    forms += [key] if bare else []
    forms += [f"'{key}'"] if "'" not in key and "\x7f" not in key else []
    return draw(st.sampled_from(forms))


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """The text of one TOML value."""
    kind = draw(st.integers(0, 7 if depth else 5))
    text = draw(TEXTS)
    plain = text.replace("'", "").replace("\x7f", "").replace("\\", "").replace('"', "")
    if kind == 0:
        return draw(st.sampled_from(["1", "-1.5e3", "true", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "0x1f"]))
    if kind == 1:
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    if kind == 2:
        return "'" + plain + "\\'"
    if kind == 3:
        return '"""' + draw(BREAK).replace('"', "") + plain + '""\n]"""'
    if kind == 4:
        return "'''" + plain + "\n[a]\n''}'''"
    if kind == 5:
        return "[]"
    inner = draw(st.lists(values(depth - 1), max_size=3))
    if kind == 6:
        return "[" + ",".join(draw(BREAK) + value + draw(BREAK) for value in inner) + "]"
    keys = draw(st.lists(KEYS, min_size=len(inner), max_size=len(inner), unique=True))
    pairs = [f"{draw(PAD)}{_quote(draw, key)}{draw(PAD)}={value}" for key, value in zip(keys, inner, strict=True)]
    return "{" + ",".join(pairs) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A TOML document in which each kind of header, key and value can occur."""
    lines = []
    for number in range(draw(st.integers(0, 4))):
        name = f"t{number}"
        shape = draw(st.sampled_from(["[{0}]", "[ {0} . x ]", "[[{0}]]", "[[{0}]]\n[[{0}]]\n[{0}.y]", "# [{0}]"]))
        lines.append(shape.format(name) if number else "")
        for key in draw(st.lists(KEYS, max_size=3, unique=True)):
            dotted = draw(st.sampled_from(["", f"{draw(PAD)}.{draw(PAD)}z"]))
            lines.append(f"{draw(PAD)}{_quote(draw, key)}{dotted} = {draw(values())}{draw(BREAK)}")
    return "\n".join(lines)


def _paths(value: Any, path: Path = ()) -> list[Path]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in [(*path, key), *_paths(inner, (*path, key))]]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in _paths(inner, (*path, index))]
    return []


@given(documents())
def test_every_key_that_tomli_reads_stands_on_its_line(text: str) -> None:
    """For any document, the located line holds the key itself, in one of the ways to write it."""
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        event("refused")  # the same key twice, by chance
        return
    lines = text.split("\n")
    found = Lines(text)
    for path in _paths(data):
        key = str(path[-1])
        line = lines[found.line(path) - 1]
        assert key in line or json.dumps(key, ensure_ascii=False)[1:-1] in line or "\\u007f" in line


@given(st.text(st.sampled_from("ab.=[]{},\"'\\#\n\r \t"), max_size=40))
def test_any_text_is_scanned_to_its_end(text: str) -> None:
    """Text that is no TOML makes no exception and no endless loop, and every answer is a line of it."""
    assert 1 <= Lines(text).line(("a", "b", 0)) <= text.count("\n") + 1
