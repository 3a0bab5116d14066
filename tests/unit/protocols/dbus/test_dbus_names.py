"""Names by the specification's grammar, at its edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus import names

Valid = Callable[[str], bool]

GOOD: list[tuple[Valid, list[str]]] = [
    (names.valid_path, ["/", "/a", "/A_9/b", "/" + "a" * 5000]),
    (names.valid_member, ["a", "_", "A9", "a" * 255]),
    (names.valid_interface, ["a.b", "_a._b", "org.freedesktop.DBus", "a." + "b" * 253]),
    (names.valid_error_name, ["org.freedesktop.DBus.Error.AccessDenied"]),
    (names.valid_unique_name, [":1.42", ":1.a-b", ":a.b.c", ":" + "1." * 126 + "42"]),
    (names.valid_well_known_name, ["a.b", "org.example.a-b", "-a._b"]),
    (names.valid_bus_name, [":1.42", "org.example.Service"]),
    (names.valid_namespace, ["org", "org.example", ":1.5"]),
]
BAD: list[tuple[Valid, list[str]]] = [
    (names.valid_path, ["", "a", "/a/", "//", "//a", "/a//b", "/a-b", "/a.b", "/é", "/a\n", "/a\0"]),
    (names.valid_member, ["", "9a", "a.b", "a-b", "a" * 256, "é", "a\n"]),
    (names.valid_interface, ["", "a", "a.", ".a", "a..b", "a.9b", "a.b-c", "a." + "b" * 254, "a.b\n", "a.٣"]),
    (names.valid_error_name, ["Error", "org.9"]),
    (names.valid_unique_name, ["", ":", ":1", ":.1", ":1.", ":1..2", "1.2", ":" + "1." * 126 + "423"]),
    (names.valid_well_known_name, ["", "a", "a.", ".a", "a.9", ":1.2", "a." + "b" * 254, "a b.c"]),
    (names.valid_bus_name, ["", "org", ":1", "org..a"]),
    (names.valid_namespace, ["", "org.", ".org", "9"]),
]


@pytest.mark.parametrize(("valid", "examples"), GOOD)
def test_valid(valid: Valid, examples: list[str]) -> None:
    """Whatever the grammar has, up to 255 bytes; paths of any length."""
    assert [example for example in examples if not valid(example)] == []


@pytest.mark.parametrize(("valid", "examples"), BAD)
def test_not_valid(valid: Valid, examples: list[str]) -> None:
    """Empty and doubled elements, digits in front, other alphabets, a line feed at the end, 256 bytes."""
    assert [example for example in examples if valid(example)] == []


@given(st.text(alphabet="a9_-.:/\n", max_size=12))
def test_every_bus_name_is_of_one_kind(name: str) -> None:
    """No name is unique and well-known at once, and none is a path."""
    assert names.valid_bus_name(name) == (names.valid_unique_name(name) ^ names.valid_well_known_name(name))
    assert not (names.valid_bus_name(name) and names.valid_path(name))
