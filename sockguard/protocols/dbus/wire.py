"""Messages of D-Bus as bytes: read, changed in place, and written (D-Bus specification, Message Protocol)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, TypeAlias

from sockguard.protocols.dbus.header import (
    ALLOW_INTERACTIVE,
    BIG,
    ENDIAN,
    ERROR,
    FIXED,
    LITTLE,
    LITTLE_BYTE,
    MAX_HEADER,
    MAX_KNOWN,
    MAX_MESSAGE,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    U32,
    Fields,
    extent,
    read_fields,
    sizes,
)
from sockguard.protocols.dbus.signature import MAX_ARRAY, Malformed

__all__ = [
    "ALLOW_INTERACTIVE",
    "BODY_LENGTH_AT",
    "ERROR",
    "FIXED",
    "MAX_ARRAY",
    "MAX_HEADER",
    "MAX_MESSAGE",
    "METHOD_CALL",
    "METHOD_RETURN",
    "NO_AUTO_START",
    "NO_REPLY_EXPECTED",
    "SERIAL_AT",
    "SIGNAL",
    "Fields",
    "Headers",
    "Malformed",
    "Message",
    "error",
    "extent",
    "method_call",
    "method_return",
    "read_message",
    "set_reply_serial",
    "signal",
    "sizes",
]

_Values: TypeAlias = Sequence[tuple[int, str, str | int | None]]

_THREE: Final = Struct("<III")


class Message(NamedTuple):
    """A header that was read. body_length in bytes; reply_serial is 0 when absent."""

    fields: Fields
    serial: int
    body_length: int
    reply_serial: int


BODY_LENGTH_AT: Final = 4
"""Where the length of the body stands in a message, a u32."""
SERIAL_AT: Final = 8
"""Where the serial stands in a message, a u32."""

Read: TypeAlias = tuple[Fields, int, int, int]
"""What of a message is known from its header: fields, serial, where its body ends, reply_serial (0 when absent)."""

_OWN_ORDER, _own_start = ("<", LITTLE) if sys.byteorder == "little" else (">", BIG)


def read_message(data: bytes) -> Message:
    """Read the header of a whole message. Raises Malformed; also when there are fewer or more bytes than it says."""
    if len(data) < FIXED or sizes(data)[1] != len(data):
        raise Malformed("not exactly one message")
    read = Headers().read(memoryview(data), 0)
    if read is None:
        raise AssertionError("a message that is complete has a complete header")
    fields, serial, end, reply_serial = read
    return Message(fields, serial, end - fields.length, reply_serial)


class _Shape:
    """Headers of one length whose first four bytes are the same, as the last of them that was new was laid out."""

    __slots__ = ("at", "known", "length", "max_body", "split")

    def __init__(self, length: int, at: int) -> None:
        self.length = length
        self.max_body = MAX_MESSAGE - length
        self.at = at
        form = f"{length - FIXED}s" if at < 0 else f"{_OWN_ORDER}{at - FIXED}sI{length - at - 4}s"
        self.split = Struct(form).unpack_from
        self.known: dict[tuple[bytes, ...] | bytes, Fields] = {}


class Headers:
    """Reads headers, and knows again those that it has read: most messages of a connection differ from an earlier one
    in serial, body length and REPLY_SERIAL alone.

    Sound, since reading is a function of the bytes. An entry is found by all bytes of the header but the three u32
    just named, and only where the header it was made from had its REPLY_SERIAL at the very place that is left out (or
    has none, and nothing is left out). Of those u32 the strict reader asks only what is asked here of each message,
    known or not: serials that are not 0, the limit of the whole, and a body if and only if there is a signature.
    Those in the other byte order than this machine's, which hardly anything writes, are read anew each time.

    Where it is new, most of its fields of text are not: a table of those is kept as well, by all of their bytes.

    Bounded: ``bound`` entries of at most MAX_KNOWN bytes. When full it is emptied; headers made up to that end cost
    whoever sends them a strict reading each, and others of the same table one more.
    """

    __slots__ = ("_bound", "_count", "_shapes", "_texts")

    def __init__(self, bound: int = 512) -> None:
        self._bound = bound
        self._count = 0
        self._shapes: dict[tuple[bytes, int], _Shape] = {}
        self._texts: dict[str, dict[bytes, tuple[int, str]]] = {"<": {}, ">": {}}

    def read(self, view: memoryview, start: int) -> Read | None:
        """Read the header that begins at ``start``; None when it is not complete. Raises Malformed.

        The body need not have come.
        """
        try:
            first, body, serial, array = _own_start(view, start)
            shape = self._shapes.get((first, array))
            if shape is not None:
                reply = 0
                split = shape.split
                if shape.at < 0:
                    fields = shape.known.get(split(view, start + FIXED))
                else:
                    before, reply, after = split(view, start + FIXED)
                    fields = shape.known.get((before, after))
                if (
                    fields is not None
                    and serial
                    and (reply or shape.at < 0)
                    and (not body) is fields.bodiless
                    and body <= shape.max_body
                ):
                    return fields, serial, start + shape.length + body, reply
        except StructError:  # it is not complete
            pass
        return self._read_new(view, start)

    def _read_new(self, view: memoryview, start: int) -> Read | None:
        if start + FIXED > len(view):
            return None
        length, whole = sizes(view[start : start + FIXED])
        if start + length > len(view):
            return None
        header = bytes(view[start : start + length])
        endian = ENDIAN[header[0]]
        first, body, serial, array = LITTLE(header) if endian == "<" else BIG(header)
        fields = read_fields(header, endian, FIXED + array, self._texts[endian])
        if body and not fields.signature:
            raise Malformed("a body without a signature")
        if fields.signature and not body:
            raise Malformed("a signature without a body")
        at = fields.reply_serial_at
        reply = 0
        if at >= 0:
            reply = U32[endian].unpack_from(header, at)[0]
            if not reply:
                raise Malformed("the reply serial is 0")
        if length <= MAX_KNOWN and endian == _OWN_ORDER:
            self._keep(first, array, header, fields)
        return fields, serial, start + whole, reply

    def _keep(self, first: bytes, array: int, header: bytes, fields: Fields) -> None:
        if self._count >= self._bound:
            self._shapes.clear()
            self._count = 0
        at = fields.reply_serial_at
        shape = self._shapes.get((first, array))
        if shape is None or shape.at != at:
            if shape is not None:
                self._count -= len(shape.known)
            shape = self._shapes[first, array] = _Shape(fields.length, at)
        parts = shape.split(header, FIXED)
        shape.known[parts if at < 0 else (parts[0], parts[2])] = fields
        self._count += 1


def set_reply_serial(view: memoryview | bytearray, start: int, fields: Fields, reply_serial: int) -> None:
    """Change the reply serial of the message at ``start`` in place. Raises ValueError when it has none."""
    if fields.reply_serial_at < 0:
        raise ValueError("the message has no reply serial")
    fields.pack(view, start + fields.reply_serial_at, reply_serial)


def method_call(
    serial: int,
    path: str,
    interface: str | None,
    member: str,
    destination: str | None,
    signature: str,
    body: bytes,
    flags: int = 0,
) -> bytes:
    """A call, little-endian as all that is written here. Names must be valid and the body fit: none is looked at."""
    fields: _Values = [
        (1, "o", path),
        (2, "s", interface),
        (3, "s", member),
        (6, "s", destination),
        (8, "g", signature),
    ]
    return _message(METHOD_CALL, flags, serial, fields, body)


def method_return(
    serial: int, reply_serial: int, destination: str | None, sender: str | None, signature: str, body: bytes
) -> bytes:
    """The answer to the call of that serial."""
    fields: _Values = [(5, "u", reply_serial), (6, "s", destination), (7, "s", sender), (8, "g", signature)]
    return _message(METHOD_RETURN, NO_REPLY_EXPECTED, serial, fields, body)


def error(serial: int, reply_serial: int, name: str, text: str, destination: str | None, sender: str | None) -> bytes:
    """The failure of the call of that serial, with a text for people; what a string cannot hold becomes "?"."""
    fields: _Values = [(4, "s", name), (5, "u", reply_serial), (6, "s", destination), (7, "s", sender), (8, "g", "s")]
    body = text.encode("utf-8", "replace").replace(b"\0", b"?")
    return _message(ERROR, NO_REPLY_EXPECTED, serial, fields, U32["<"].pack(len(body)) + body + b"\0")


def signal(
    serial: int,
    path: str,
    interface: str,
    member: str,
    signature: str,
    body: bytes,
    sender: str | None = None,
    destination: str | None = None,
) -> bytes:
    """A signal, to everybody when it has no destination."""
    fields: _Values = [
        (1, "o", path),
        (2, "s", interface),
        (3, "s", member),
        (6, "s", destination),
        (7, "s", sender),
        (8, "g", signature),
    ]
    return _message(SIGNAL, NO_REPLY_EXPECTED, serial, fields, body)


def _message(kind: int, flags: int, serial: int, fields: _Values, body: bytes) -> bytes:
    """A message with those fields (code, type, value) that have a value."""
    array = bytearray()
    for code, letter, value in fields:
        if value is None or value == "":
            continue
        array += bytes(-len(array) & 7) + bytes((code, 1, ord(letter), 0))
        if isinstance(value, int):
            array += U32["<"].pack(value)
        else:
            text = value.encode("ascii")
            array += (U32["<"].pack(len(text)) if letter != "g" else bytes((len(text),))) + text + b"\0"
    start = bytes((LITTLE_BYTE, kind, flags, 1)) + _THREE.pack(len(body), serial, len(array))
    return start + array + bytes(-len(array) & 7) + body
