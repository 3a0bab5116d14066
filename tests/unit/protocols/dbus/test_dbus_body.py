"""Bodies: strings, numbers, lists of strings; to the last byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Endianness, parse_signature  # type: ignore[import-untyped]

from sockguard.protocols.dbus import body
from sockguard.protocols.dbus.signature import Malformed


@pytest.mark.parametrize(
    ("signature", "data", "values"),
    [
        ("", b"", []),
        ("s", b"\2\0\0\0hi\0", ["hi"]),
        ("ss", b"\1\0\0\0a\0\0\0\0\0\0\0\0", ["a", ""]),
        ("su", b"\3\0\0\0a.b\0\4\0\0\0", ["a.b", 4]),
        ("b", b"\1\0\0\0", [True]),
        ("o", b"\1\0\0\0/\0", ["/"]),
        ("g", b"\2as\0", ["as"]),
        ("gg", b"\1s\0\0\0", ["s", ""]),
        ("gu", b"\1s\0\0\5\0\0\0", ["s", 5]),
        ("as", b"\0\0\0\0", [[]]),
        ("as", b"\x0e\0\0\0\1\0\0\0a\0\0\0\1\0\0\0b\0", [["a", "b"]]),
        ("asu", b"\6\0\0\0\1\0\0\0a\0\0\0\7\0\0\0", [["a"], 7]),
    ],
)
def test_read(signature: str, data: bytes, values: list[Any]) -> None:
    """What the specification's marshaling gives; and one byte fewer or more is Malformed."""
    assert body.read(signature, data, "<") == values
    assert body.pack(signature, values) == data
    for cut in range(len(data)):
        with pytest.raises(Malformed):
            body.read(signature, data[:cut], "<")
    for more in (b"\0", b"\0" * 8):
        with pytest.raises(Malformed):
            body.read(signature, data + more, "<")


def test_big_endian() -> None:
    """The byte order is the message's."""
    assert body.read("su", b"\0\0\0\1a\0\0\0\0\0\0\7", ">") == ["a", 7]


@pytest.mark.parametrize(
    ("signature", "data"),
    [
        ("s", b"\3\0\0\0h\0i\0"),
        ("s", b"\2\0\0\0\xc3\x28\0"),
        ("s", b"\2\0\0\0hix"),
        ("s", b"\xff\xff\xff\xffhi\0"),
        ("su", b"\1\0\0\0a\0\1\0\4\0\0\0"),
        ("b", b"\2\0\0\0"),
        ("o", b"\2\0\0\0//\0"),
        ("g", b"\1a\0"),
        ("g", b"\1\xe9\0"),
        ("as", b"\5\0\0\0\1\0\0\0a\0"),
        ("as", b"\7\0\0\0\1\0\0\0a\0\0"),
        ("as", b"\xff\xff\xff\xff"),
        ("as", b"\3\0\0\0abc"),
        ("v", b"\1y\0\1"),
        ("a{sv}", b"\0\0\0\0"),
        ("ai", b"\0\0\0\0"),
        ("a", b"\0\0\0\0"),
    ],
)
def test_malformed(signature: str, data: bytes) -> None:
    """NUL inside, not UTF-8, padding that is not zero, sizes that do not fit, other types."""
    with pytest.raises(Malformed):
        body.read(signature, data, "<")


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
one = st.one_of(
    texts.map(lambda value: ("s", value)),
    st.sampled_from(["/", "/a/b"]).map(lambda value: ("o", value)),
    st.sampled_from(["", "a{sv}", "(ii)"]).map(lambda value: ("g", value)),
    st.integers(0, 0xFFFFFFFF).map(lambda value: ("u", value)),
    st.booleans().map(lambda value: ("b", value)),
    st.lists(texts, max_size=4).map(lambda value: ("as", value)),
)


@given(st.lists(one, max_size=5))
def test_written_read_and_read_by_jeepney(parts: list[tuple[str, Any]]) -> None:
    """What is written is read back, and jeepney reads the same."""
    signature = "".join(letter for letter, _ in parts)
    values = [value for _, value in parts]
    data = body.pack(signature, values)
    assert body.read(signature, data, "<") == values
    if signature:
        letters = list(f"({signature})")
        theirs, end = parse_signature(letters).parse_data(data, 0, Endianness.little)
        assert (list(theirs), end) == (values, len(data))


@given(st.lists(one, max_size=4), st.data())
def test_mutated(parts: list[tuple[str, Any]], data: st.DataObject) -> None:
    """Nothing but Malformed comes of changed bytes; what is read all the same is written as those very bytes."""
    signature = "".join(letter for letter, _ in parts)
    packed = bytearray(body.pack(signature, [value for _, value in parts]))
    for _ in range(data.draw(st.integers(1, 3))):
        if packed:
            packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        values = body.read(signature, bytes(packed), "<")
    except Malformed:
        return
    assert body.pack(signature, values) == packed


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("s", ["a\0"]),
        ("s", [1]),
        ("u", ["a"]),
        ("as", ["a"]),
        ("ss", ["a"]),
        ("s", ["a", "b"]),
        ("v", ["a"]),
        ("g", ["a" * 256]),
    ],
)
def test_what_cannot_be_written(signature: str, values: list[Any]) -> None:
    """A mistake of ours is said, not sent."""
    with pytest.raises(ValueError):  # noqa: PT011  # which of them does not matter
        body.pack(signature, values)
    with pytest.raises((ValueError, struct.error)):
        body.pack("u", [1 << 32])
