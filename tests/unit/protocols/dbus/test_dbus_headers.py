"""The memo of headers never says otherwise than the strict reader, and never grows beyond its bound."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.wire import Headers
from tests.unit.protocols.dbus.making import call_fields, message, number, text, variant
from tests.unit.protocols.dbus.reading import ALL, RETURN, headers_like, verdict

MEMBER = text(3, "s", b"Do")


def test_a_hit_says_what_is_the_messages_own() -> None:
    """Serial, body length and reply serial are of the message; the rest is shared."""
    headers = Headers()
    first = headers.read(memoryview(RETURN), 0)
    other = wire.method_return(99, 1234, ":1.2", ":1.1", "", b"")
    second = headers.read(memoryview(other), 0)
    assert first is not None
    assert second is not None
    assert second[0] is first[0]
    assert second[1:] == (99, len(other), 1234)
    call = wire.method_call(1, "/a", None, "Do", None, "s", b"\2\0\0\0hi\0")
    longer = wire.method_call(2, "/a", None, "Do", None, "s", b"\3\0\0\0hi!\0")
    known = [headers.read(memoryview(data), 0) for data in (call, longer)]
    assert known[0] is not None
    assert known[1] is not None
    assert known[0][0] is known[1][0]
    assert [read[1:] for read in known if read] == [(1, len(call), 0), (2, len(longer), 0)]


@pytest.mark.parametrize("data", ALL)
@pytest.mark.parametrize("at", [4, 8])
@pytest.mark.parametrize("value", [0, 1, wire.MAX_MESSAGE, 0xFFFFFFFF])
def test_a_hit_is_refused_where_a_miss_is(data: bytes, at: int, value: int) -> None:
    """Serial 0, a body too long, a body where there must be none: also when the header is known."""
    headers = Headers()
    verdict(data, headers)
    changed = data[:at] + struct.pack("<I", value) + data[at + 4 :]
    assert verdict(changed, headers) == verdict(changed)


def test_only_a_reply_serial_is_left_out() -> None:
    """Headers of one length whose reply serial stands where the other has its number of fds, in turns."""
    headers = Headers()
    for value in (3, 4, 5):
        for other in (1, 2):
            for fields in ([number(5, value), number(9, other)], [number(9, other), number(5, value)]):
                data = message(2, fields)
                assert verdict(data, headers) == verdict(data)
                assert verdict(data, headers) == verdict(data)


def test_the_memo_is_bounded() -> None:
    """Ever new headers: it is emptied before it holds more than its bound, and reads on rightly."""
    headers = Headers(bound=8)
    for count in range(200):
        for kind in (1, 2):
            fields = [*call_fields()[:2], text(6, "s", b":1.%d" % count)]
            data = message(kind, [*fields, number(5, 3)] if kind == 2 else [*fields, variant(10 + count, b"y", b"\1")])
            assert verdict(data, headers) == verdict(data)
        assert sum(len(shape.known) for shape in headers._shapes.values()) <= 8
        assert len(headers._shapes) <= 8
    for count in range(3000):
        verdict(message(1, [*call_fields()[:2], text(6, "s", b":1.%d" % count)]), headers)
    assert sum(map(len, headers._texts.values())) <= 2 * 1024


def test_large_headers_are_not_kept() -> None:
    """They are read each time, so the table's bytes are bounded too."""
    headers = Headers()
    data = message(1, [text(1, "o", b"/" + b"a" * 600), MEMBER])
    assert isinstance(verdict(data, headers), dict)
    assert not headers._shapes
    assert all(len(key) <= 512 for known in headers._texts.values() for key in known)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One of those, with a few bytes changed, put in or taken out."""
    data = bytearray(draw(headers_like()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        new = draw(st.binary(max_size=2))
        data[at : at + draw(st.integers(0, 2))] = new
        if not data:
            data += b"l"
    return bytes(data)


@given(st.lists(mutated(), min_size=1, max_size=12), st.integers(1, 4))
def test_the_memo_never_changes_a_verdict(messages: list[bytes], bound: int) -> None:
    """A reader that has read anything before says of every message what a new one says. Only Malformed is raised."""
    headers = Headers(bound=bound)
    for data in messages * 2:
        assert verdict(data, headers) == verdict(data)
