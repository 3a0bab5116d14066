"""A header with another destination is the same in all else, whatever it holds and in whichever order."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.readdress import readdressed
from tests.unit.protocols.dbus.making import call_fields, message, number, text, variant

MIMIC = b"\x06\x01s\0\x03\0\0\0a.b\0"
"""What looks like a destination, in a field of which nothing is known."""


def others(endian: str) -> list[bytes]:
    return [
        text(2, "s", b"org.example.Interface", endian),
        text(7, "s", b":1.1", endian),
        text(8, "g", b"ayu", endian),
        number(5, 77, endian),
        number(9, 2, endian),
        variant(10, b"ay", b"\0" * 3 + struct.pack(f"{endian}I", len(MIMIC)) + MIMIC),
        variant(200, b"ay", b"\0" * 3 + struct.pack(f"{endian}I", len(MIMIC) + 4) + b"\0" * 4 + MIMIC),
    ]


@given(st.data(), st.sampled_from("<>"), st.sampled_from([":1.5", ":1.4294967295", ":x.y-z", ":1.12345678901"]))
def test_all_else_is_as_it_was(data: st.DataObject, endian: str, owner: str) -> None:
    some = data.draw(st.lists(st.sampled_from(others(endian)), unique_by=lambda field: field[0]))
    fields = data.draw(st.permutations([*call_fields(endian), *some]))
    where = next(index for index, field in enumerate(fields) if field[0] == 6)
    size = 300 if any(field[0] == 8 for field in fields) else 0
    header = message(wire.METHOD_CALL, fields, endian, flags=4, body_length=size)
    found = wire.Headers().read(memoryview(header), 0)
    assert found is not None
    made = readdressed(header, found[0], owner)
    wanted = [*fields[:where], text(6, "s", owner.encode(), endian), *fields[where + 1 :]]
    assert made == message(wire.METHOD_CALL, wanted, endian, flags=4, body_length=size)
