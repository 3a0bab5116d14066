"""Whatever is done to a good file, the loader answers with a Config or a ConfigError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli
from hypothesis import given
from hypothesis import strategies as st

from sockguard.config.load import load
from sockguard.config.locate import Path as KeyPath
from sockguard.config.read import Source
from sockguard.errors import ConfigError, Mistake
from sockguard.identity.accounts import Accounts

EXAMPLE = (Path(__file__).parents[3] / "example.toml").read_text()
USERS = [("root", 0, 0), ("daemon", 1, 1), ("games", 5, 60)]
ACCOUNTS = Accounts(USERS, [("adm", 4), ("sudo", 27), ("daemon", 1), ("lp", 7)])
SCRAPS = [
    *(
        "[",
        "]",
        "[[",
        "{",
        "}",
        '"',
        '"""',
        "'",
        "=",
        ".",
        ",",
        "#",
        "\n",
        "\x00",
        "é",
        "\r\n",
        "\\",
        "-",
        "0",
        "1e400",
    ),
    *(
        "true",
        "[]",
        "{}",
        "inf",
        "0x" + "f" * 200,
        "1979-05-27",
        "07:32:00",
        "0001-01-01T00:00:00+23:00",
        '"*"',
        "[[[1]]]",
    ),
    *(
        "[proxy]",
        "[proxy.x]",
        "[[proxy.printer.allow]]",
        "[who.a]\n",
        "http = 1\n",
        'protocol = "http"\n',
        '""',
        "users",
    ),
]


def _answer(*texts: str) -> None:
    sources = [Source(f"f{number}", text.encode()) for number, text in enumerate(texts)]
    mistakes: Sequence[Mistake] = ()
    try:
        load(sources, ACCOUNTS)
    except ConfigError as error:
        mistakes = error.mistakes
    for mistake in mistakes:
        assert 0 <= mistake.line <= max(text.count("\n") + 1 for text in texts)
        assert str(mistake).isprintable()


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 40), st.sampled_from(SCRAPS)), max_size=4))
def test_cut_and_pasted_text(edits: list[tuple[int, int, str]]) -> None:
    """Cutting out and pasting in anywhere never ends in another exception, in the main file or a dropped-in one."""
    text = EXAMPLE
    for at, length, scrap in edits:
        text = text[:at] + scrap + text[at + length :]
    _answer(text)
    _answer("", text)


def _slots(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *_slots(inner, (*path, key))]]


SLOTS = _slots(tomli.loads(EXAMPLE))
LITERALS = [
    *('""', '"x"', "-1", "0", "65534", "true", "1.5", "nan", "[]", "[[]]", "{}", "[{}]", "{ a = 1 }", "07:00:00"),
    *("1979-05-27", "1979-05-27T07:00:00", "0001-01-01T00:00:00+23:00", '"9-1"', '"*"', '["*"]', "[1, {}]"),
]


@given(st.lists(st.tuples(st.sampled_from(SLOTS), st.sampled_from(LITERALS)), min_size=1, max_size=3))
def test_wrong_types_anywhere(changes: list[tuple[KeyPath, str]]) -> None:
    """Any value in the place of any other: every shape of mistake is taken out and said."""
    data = tomli.loads(EXAMPLE)
    for path, literal in changes:
        _put(data, path, tomli.loads(f"v = {literal}")["v"])
    _answer(_dump(data))


def _put(data: Any, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return  # an earlier change has replaced it
    last = path[-1]
    if isinstance(data, dict) or (isinstance(data, list) and isinstance(last, int) and last < len(data)):
        data[last] = value  # type: ignore[index]  # a list's path ends with an int


def _dump(data: dict[str, Any]) -> str:
    """TOML on one line a top-level key: inline tables throughout."""
    return "\n".join(f"{key} = {_inline(value)}" for key, value in data.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_inline(inner)}' for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
