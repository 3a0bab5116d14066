"""Headers: what is read and what is not, however the bytes come."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.wire import Headers, Malformed, read_message
from tests.unit.protocols.dbus.making import call_fields, message, number, text, variant
from tests.unit.protocols.dbus.reading import ALL, CALL, ERROR, as_message, described, verdict
from tests.unit.protocols.playing import Receive, play_all_ways


def make() -> Receive:
    """A reader of messages with a memo of its own, as an inspector uses one."""
    headers = Headers()

    def receive(data: bytes) -> tuple[int, list[Any]]:
        read = headers.read(memoryview(data), 0)
        if read is None:
            return 0, []
        fields, serial, end, reply_serial = read
        if len(data) < end:
            return 0, []
        return end, [(described(as_message(read)), data[fields.length : end], reply_serial, serial)]

    return receive


def refused(data: bytes) -> str:
    """Every way of showing it must end the same, in Malformed: its text."""
    played = play_all_ways(make, data, Malformed, trailing=b"l\1", pieces=(16, 17))
    assert played.error is not None
    return played.error


@pytest.mark.parametrize("data", ALL)
def test_each_kind(data: bytes) -> None:
    """Whole, byte by byte, with the next message's start behind, three in a row: always the same."""
    played = play_all_ways(make, data * 3, Malformed, trailing=b"l\1\0\1", pieces=(15, 16, 100))
    assert len(played.results) == 3
    assert played.results[0] == played.results[2]
    assert played.left == b""


def test_what_is_read() -> None:
    """All that a rule can ask of a message."""
    fields, serial, body_length, reply_serial = read_message(CALL)
    assert (fields.kind, fields.flags, fields.endian, fields.length) == (wire.METHOD_CALL, 0, "<", len(CALL) - 7)
    assert (fields.path, fields.interface, fields.member) == ("/org/example/Thing", "org.example.Thing", "Do")
    assert (fields.destination, fields.sender, fields.signature) == ("org.example.Service", None, "s")
    assert (serial, body_length, reply_serial, fields.reply_serial_at, fields.unix_fds) == (5, 7, 0, -1, 0)
    error = read_message(ERROR)
    assert (error.fields.error_name, error.reply_serial) == ("org.example.Error", 5)
    assert error.fields.flags == wire.NO_REPLY_EXPECTED
    assert ERROR[error.fields.reply_serial_at :][:4] == b"\5\0\0\0"


def test_absent_is_told_from_empty() -> None:
    """A call without an interface is one, and says so; rules must not take that for any interface."""
    fields = read_message(message(1, call_fields())).fields
    assert fields.interface is None
    assert fields.signature == ""


@pytest.mark.parametrize("endian", ["<", ">"])
def test_both_byte_orders(endian: str) -> None:
    """The same message in either byte order reads alike but for that."""
    fields = [*call_fields(endian), text(8, "g", b"s", endian), number(9, 2, endian)]
    body = struct.pack(f"{endian}I", 2) + b"hi\0"
    data = message(1, fields, endian, body=body, serial=0x01020304)
    played = play_all_ways(make, data, Malformed, trailing=b"B\1", pieces=(16,))
    ((read, shown, _, serial),) = played.results
    assert (read["path"], read["unix_fds"], read["endian"], shown, serial) == (
        "/org/example/Thing",
        2,
        endian,
        body,
        0x01020304,
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"L" + CALL[1:], "endian"),
        (b"\0" + CALL[1:], "endian"),
        (message(1, call_fields(), version=2), "version"),
        (message(0, call_fields()), "type"),
        (message(5, call_fields()), "type"),
        (message(1, call_fields(), serial=0), "serial is 0"),
        (message(1, [], array=wire.MAX_HEADER), "header is too long"),
        (message(1, [], array=0xFFFFFFFF), "header is too long"),
        (message(1, call_fields(), body_length=wire.MAX_MESSAGE), "message is too long"),
        (message(1, call_fields(), body_length=0xFFFFFFFF), "message is too long"),
    ],
)
def test_first_bytes(data: bytes, why: str) -> None:
    """Known from the first 16 bytes; no more are waited for."""
    assert why in refused(data)
    with pytest.raises(Malformed, match=why):
        wire.sizes(data[:16])
    with pytest.raises(Malformed, match=why):
        Headers().read(memoryview(data[:16]), 0)


PATH = text(1, "o", b"/a")
MEMBER = text(3, "s", b"Do")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (1, [PATH]),
        (1, [MEMBER]),
        (1, []),
        (2, [PATH, MEMBER]),
        (3, [number(5, 1)]),
        (3, [text(4, "s", b"a.b")]),
        (4, [PATH, MEMBER]),
        (4, [PATH, text(2, "s", b"a.b")]),
        (4, [MEMBER, text(2, "s", b"a.b")]),
    ],
)
def test_required_fields(kind: int, fields: list[bytes]) -> None:
    """Each type's own (specification, Header Fields)."""
    assert "required" in refused(message(kind, fields))


@pytest.mark.parametrize(
    "again",
    [
        text(1, "o", b"/a"), text(2, "s", b"a.b"), text(3, "s", b"Do"), text(4, "s", b"a.b"), number(5, 3),
        text(6, "s", b":1.1"), text(7, "s", b":1.1"), text(8, "g", b""), number(9, 0), variant(77, b"y", b"\1"),
    ],
)  # fmt: skip
def test_no_field_twice(again: bytes) -> None:
    """Readers differ in which of two they take: first or last."""
    others = [field for field in (PATH, MEMBER) if field[0] != again[0]]
    assert "twice" in refused(message(1, [*others, again, again]))


@pytest.mark.parametrize(
    "bad",
    [
        text(1, "s", b"/a"), text(1, "o", b"a"), text(1, "o", b""), text(1, "o", b"/a/"), text(1, "o", b"/a\0"),
        text(2, "o", b"a.b"), text(2, "s", b"a"), text(2, "s", b""), text(2, "s", b"a." + b"b" * 254),
        text(3, "s", b"a.b"), text(3, "s", b"a\0b"), text(3, "s", b"\xc3\xa9"), text(3, "g", b"a"),
        text(4, "s", b"a"), text(6, "s", b"a"), text(6, "s", b":1"), text(6, "s", b"a.b\0"), text(7, "s", b"a..b"),
        text(8, "s", b"s"), text(8, "g", b"a"), text(8, "g", b"(s"), number(6, 1), number(1, 1),
        variant(5, b"i", b"\1\0\0\0"), variant(9, b"t", bytes(8)), variant(5, b"v", b"\1u\0\0\1\0\0\0"),
        variant(0, b"y", b"\1"), variant(10, b"yy", b"\1\1"), variant(10, b"", b""), variant(10, b"b", b"\0\2\0\0\0"),
        text(3, "s", b"Do")[:-1] + b"x", text(1, "o", b"/a")[:4] + b"\xff\xff\xff\xff/a\0",
    ],
)  # fmt: skip
def test_bad_fields(bad: bytes) -> None:
    """Mistyped, not valid, NUL inside, no NUL behind, a size beyond the end, code 0, unknown but not well-formed."""
    others = [field for field in (PATH, MEMBER) if field[0] != bad[0]]
    for fields in ([bad, *others], [*others, bad]):
        refused(message(1, fields))


def test_unknown_fields_are_ignored_when_well_formed() -> None:
    """As the specification asks; with a bound on their bytes together."""
    fields = [*call_fields(), variant(10, b"s", b"\2\0\0\0hi\0"), variant(255, b"a{sv}", bytes(4 + 4))]
    assert read_message(message(1, [variant(10, b"y", b"\1"), *call_fields()])).fields.member == "Do"
    assert read_message(message(1, fields)).fields.member == "Do"
    large = variant(10, b"ay", bytes(3) + struct.pack("<I", 900) + bytes(900))
    assert read_message(message(1, [*call_fields(), large])).fields.member == "Do"
    refused(message(1, [*call_fields(), large, variant(11, b"ay", bytes(3) + struct.pack("<I", 200) + bytes(200))]))


@pytest.mark.parametrize("by", [-8, -4, -1, 1, 4, 7, 8])
def test_fields_end_exactly(by: int) -> None:
    """CVE-2022-42011 and 42012: sizes that do not fit what they count. Also a last field that is padded inside."""
    true = len(PATH) + 5 + len(MEMBER)
    assert isinstance(verdict(message(1, [PATH, MEMBER])), dict)
    assert true == struct.unpack_from("<I", message(1, [PATH, MEMBER]), 12)[0]
    assert isinstance(verdict(message(1, [PATH, MEMBER], array=true + by) + bytes(16)), str)


def test_padding_is_zero() -> None:
    """Between fields and behind the last."""
    good = message(1, [PATH, MEMBER])
    assert isinstance(verdict(good), dict)
    assert "padding" in refused(message(1, [number(9, 0), variant(10, b"y", b"\1"), PATH, MEMBER], pad=b"\1"))
    assert refused(message(1, [PATH, MEMBER], pad=b"\1"))
    assert refused(good[:-1] + b"\1")


def test_a_body_and_a_signature_come_together() -> None:
    """dbus-daemon validates the body against its signature to the last byte, so neither comes alone."""
    assert "without a signature" in refused(message(1, call_fields(), body=b"x"))
    assert "without a body" in refused(message(1, [*call_fields(), text(8, "g", b"s")]))


def test_reserved_for_libraries() -> None:
    """A message that seems to come from the library itself, like Disconnected."""
    local = text(1, "o", b"/org/freedesktop/DBus/Local")
    assert "library" in refused(message(1, [local, MEMBER]))
    assert "library" in refused(message(4, [PATH, MEMBER, text(2, "s", b"org.freedesktop.DBus.Local")]))


def test_a_reply_serial_is_not_zero() -> None:
    """Neither the first time nor when the rest is known."""
    headers = Headers()
    assert isinstance(verdict(message(2, [number(5, 9)]), headers), dict)
    assert verdict(message(2, [number(5, 0)]), headers) == "the reply serial is 0"
    assert "reply serial is 0" in refused(message(2, [number(5, 0)]))


def test_patches() -> None:
    """Serials are changed in place, in the message's own byte order, and nothing else is."""
    for endian in ("<", ">"):
        data = bytearray(b"xx" + message(2, [number(5, 1, endian), text(6, "s", b":1.1", endian)], endian))
        fields = read_message(bytes(data[2:])).fields
        before = bytes(data)
        fields.pack(data, 2 + wire.SERIAL_AT, 0x0A0B0C0D)
        wire.set_reply_serial(memoryview(data), 2, fields, 0x01020304)
        read = read_message(bytes(data[2:]))
        assert (read.serial, read.reply_serial) == (0x0A0B0C0D, 0x01020304)
        assert sum(a != b for a, b in zip(before, data, strict=True)) <= 8
    with pytest.raises(ValueError, match="no reply serial"):
        wire.set_reply_serial(bytearray(CALL), 0, read_message(CALL).fields, 1)
