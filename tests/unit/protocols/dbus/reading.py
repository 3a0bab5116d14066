"""Messages of each kind, what is read of one to be compared, and messages that are good or nearly so."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.wire import Headers, Malformed, Message, Read
from tests.unit.protocols.dbus.making import message, number, text, variant

CALL = wire.method_call(5, "/org/example/Thing", "org.example.Thing", "Do", "org.example.Service", "s", b"\2\0\0\0hi\0")
RETURN = wire.method_return(6, 5, ":1.2", ":1.1", "", b"")
ERROR = wire.error(7, 5, "org.example.Error", "no", ":1.2", "org.freedesktop.DBus")
SIGNAL = wire.signal(8, "/", "org.example.Thing", "Done", "u", b"\1\0\0\0", ":1.1")
ALL = [CALL, RETURN, ERROR, SIGNAL]


def as_message(read: Read) -> Message:
    """Of a header that was read at the start of what was shown."""
    fields, serial, end, reply_serial = read
    return Message(fields, serial, end - fields.length, reply_serial)


def described(read: Message) -> dict[str, Any]:
    """Everything that was read, to be compared."""
    fields = {name: getattr(read.fields, name) for name in read.fields.__slots__}
    return fields | {"serial": read.serial, "body_length": read.body_length, "reply_serial": read.reply_serial}


def verdict(data: bytes, headers: Headers | None = None) -> dict[str, Any] | str:
    """What was read of one message, or the text of Malformed."""
    try:
        read = (headers or Headers()).read(memoryview(data), 0)
    except Malformed as error:
        return str(error)
    return "incomplete" if read is None else described(as_message(read))


def headers_like(*, extras: bool = True) -> st.SearchStrategy[bytes]:
    """Messages that are good or nearly so, of few enough parts that the memo has many of them.

    extras: with fds, unknown fields, and bodies that are not what the signature says.
    """
    orders = st.sampled_from("<>")

    def fields(endian: str) -> st.SearchStrategy[bytes]:
        parts = [
            text(1, "o", b"/a", endian), text(2, "s", b"a.b", endian), text(3, "s", b"Do", endian),
            text(4, "s", b"a.b", endian), number(5, 1, endian), number(5, 0, endian), number(5, 0x0101, endian),
            text(6, "s", b":1.1", endian), text(8, "g", b"s", endian), text(8, "g", b"", endian),
        ]  # fmt: skip
        bodies = [b"", struct.pack(f"{endian}I", 2) + b"hi\0"]
        if extras:
            parts += [number(9, 1, endian), variant(10, b"y", b"\1")]
            bodies += [b"x"]
        return st.builds(
            lambda kind, chosen, serial, body: message(kind, chosen, endian, serial=serial, body=body),
            st.integers(1, 4),
            st.lists(st.sampled_from(parts), max_size=5, unique_by=lambda field: field[0]),
            st.sampled_from([1, 2, 0]),
            st.sampled_from(bodies),
        )

    return orders.flatmap(fields)
