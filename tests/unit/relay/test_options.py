"""A generation as a relay reads it: exactly what control writes, or nothing at all."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.errors import ChannelError
from sockguard.protocols.base import RequestRule
from sockguard.relay.options import Options, read_generation

RIGHT: dict[str, Any] = {
    "log_allowed": True,
    "proxies": [
        {
            "name": "web",
            "protocol": "http",
            "fds": "refuse",
            "sender": "any",
            "idle_timeout": 0.3,
            "enforce": False,
            "options": {"strip_prefix": None},
            "backend_uid": 0,
            "rules": [["a", False, None], ["b", True, [{"path": "/x"}]]],
        },
        {
            "name": "pg",
            "protocol": "stream",
            "fds": "forward",
            "sender": "same-user",
            "idle_timeout": 0,
            "enforce": True,
            "options": {},
            "backend_uid": None,
            "rules": [],
        },
    ],
    "sets": [[0, [0, 1]], [0, []]],
    "connections": [[7, 1]],
}


def read(value: object) -> object:
    return read_generation(json.dumps(value).encode())


def test_all_of_it() -> None:
    """Every part becomes plain data; times become ticks, never too few."""
    content = read_generation(json.dumps(RIGHT).encode())
    assert content.log_allowed is True
    assert content.proxies == [
        Options(
            name="web",
            protocol="http",
            refuse_fds=True,
            same_user=False,
            idle_ticks=2,
            enforce=False,
            options={"strip_prefix": None},
            backend_uid=0,
            rules=(RequestRule("a", False, None), RequestRule("b", True, [{"path": "/x"}])),
        ),
        Options("pg", "stream", False, True, 0),
    ]
    assert content.sets == [(0, (0, 1)), (0, ())]
    assert content.connections == {7: 1}


WRONG: list[tuple[tuple[str | int, ...], Any]] = [
    ((), []),
    ((), None),
    (("log_allowed",), 1),
    (("log_allowed",), "denied"),
    (("proxies",), {}),
    (("proxies", 0), []),
    (("proxies", 0, "name"), None),
    (("proxies", 0, "protocol"), 1),
    (("proxies", 0, "fds"), "refused"),
    (("proxies", 0, "fds"), True),
    (("proxies", 0, "sender"), ""),
    (("proxies", 0, "idle_timeout"), "1s"),
    (("proxies", 0, "idle_timeout"), True),
    (("proxies", 0, "idle_timeout"), -1),
    (("proxies", 0, "idle_timeout"), float("nan")),
    (("proxies", 0, "idle_timeout"), float("inf")),
    (("proxies", 0, "enforce"), 0),
    (("proxies", 0, "enforce"), None),
    (("proxies", 0, "options"), None),
    (("proxies", 0, "options"), []),
    (("proxies", 0, "backend_uid"), "0"),
    (("proxies", 0, "backend_uid"), False),
    (("proxies", 0, "backend_uid"), -1),
    (("proxies", 0, "rules"), None),
    (("proxies", 0, "rules", 0), ["a", False]),
    (("proxies", 0, "rules", 0), ["a", 0, None]),
    (("proxies", 0, "rules", 0), [None, False, None]),
    (("sets",), None),
    (("sets", 0), [0]),
    (("sets", 0), [2, []]),
    (("sets", 0), [-1, []]),
    (("sets", 0), [False, []]),
    (("sets", 0), [0, [2]]),
    (("sets", 0), [0, [-99]]),
    (("sets", 0), [0, [True]]),
    (("sets", 0), [1, [0]]),
    (("connections",), {"7": 1}),
    (("connections", 0), [7, 2]),
    (("connections", 0), [7, -1]),
    (("connections", 0), ["7", 1]),
    (("connections", 0), [7]),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=repr)
def test_what_is_wrong_is_not_guessed_at(path: tuple[str | int, ...], value: Any) -> None:
    """A wrong type, a number out of range, a list for a table: a relay takes none of it."""
    whole = {"": copy.deepcopy(RIGHT)}
    at: Any = whole
    keys = ["", *path]
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    with pytest.raises(ChannelError):
        read(whole[""])


@pytest.mark.parametrize("key", [*RIGHT, *RIGHT["proxies"][0]])
def test_nothing_may_be_missing_or_more(key: str) -> None:
    """A key that is not there is not a default; one that nobody knows is not passed over."""
    for change in ("missing", "more"):
        value = copy.deepcopy(RIGHT)
        table = value if key in value else value["proxies"][0]
        if change == "missing":
            del table[key]
        else:
            table[key + "s"] = table[key]
        with pytest.raises(ChannelError):
            read(value)


@given(st.binary(max_size=50) | st.from_regex(rb"\[{1,3}[0-9,]{0,5}\]{1,3}", fullmatch=True))
def test_any_bytes(data: bytes) -> None:
    """Nothing but a ChannelError comes of what is no generation."""
    with pytest.raises(ChannelError):
        read_generation(data)


def test_deep_nesting() -> None:
    """It is no generation, and no crash either."""
    with pytest.raises(ChannelError):
        read_generation(b"[" * 100_000)
