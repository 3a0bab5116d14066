"""One header of a message, read strictly (D-Bus specification, Message Format).

As dbus-daemon's dbus-marshal-header.c reads it, or more strictly: what we judge must be what the bus sees, so nothing
that two readers could take differently gets past. More strictly: message types 1 to 4 only, no field twice (not even
an unknown one), MAX_HEADER, MAX_UNKNOWN, unique names of two elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final

from sockguard.protocols.dbus import names
from sockguard.protocols.dbus.signature import Malformed, skip_variant, valid_signature

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4

NO_REPLY_EXPECTED: Final = 1
NO_AUTO_START: Final = 2
ALLOW_INTERACTIVE: Final = 4

FIXED: Final = 16
"""Bytes of a message from which both of its sizes are known."""

MAX_MESSAGE: Final = 128 * 1024 * 1024
"""Bytes, the specification's."""

MAX_HEADER: Final = 16 * 1024
"""Bytes with padding, ours: five names of 255 bytes and a path that escapes the longest file name still fit."""

MAX_UNKNOWN: Final = 1024
"""Bytes that all fields of unknown codes in one header may take, ours: walking over them is slow."""

MAX_KNOWN: Final = 512
"""Bytes of a header, or of a field, that is kept to be known again."""

MAX_TEXTS: Final = 1024
"""Fields of text that one table keeps in each byte order."""

LITTLE: Final = Struct("<4sIII").unpack_from
BIG: Final = Struct(">4sIII").unpack_from
U32: Final = {"<": Struct("<I"), ">": Struct(">I")}
_FIELD: Final = {"<": Struct("<4sI").unpack_from, ">": Struct(">4sI").unpack_from}
LITTLE_BYTE: Final = ord("l")
ENDIAN: Final = {ord("l"): "<", ord("B"): ">"}


# A field begins with its code and the signature of its variant (length, type, NUL): four bytes that must be these.
# Then: bytes of the length of the text, the most that it may be, and what it must match.
_TEXT: Final[Mapping[bytes, tuple[int, int, Callable[[bytes], object]]]] = {
    b"\x01\x01o\0": (4, MAX_HEADER, re.compile(names.PATH.encode()).fullmatch),
    b"\x02\x01s\0": (4, names.MAX_NAME, re.compile(names.INTERFACE.encode()).fullmatch),
    b"\x03\x01s\0": (4, names.MAX_NAME, re.compile(names.MEMBER.encode()).fullmatch),
    b"\x04\x01s\0": (4, names.MAX_NAME, re.compile(names.INTERFACE.encode()).fullmatch),
    b"\x06\x01s\0": (4, names.MAX_NAME, re.compile(names.BUS_NAME.encode()).fullmatch),
    b"\x07\x01s\0": (4, names.MAX_NAME, re.compile(names.BUS_NAME.encode()).fullmatch),
    b"\x08\x01g\0": (1, 255, valid_signature),
}
_SIGNATURE: Final = b"\x08\x01g\0"
_REPLY_SERIAL: Final = b"\x05\x01u\0"
_UNIX_FDS: Final = b"\x09\x01u\0"
_LAST_KNOWN: Final = 9

_ZEROS: Final = [bytes(count) for count in range(9)]


class Fields:
    """A header without what differs from one message to the next of its like. Shared and never changed; hashed by
    identity.

    kind, flags    first bytes of the header; endian is "<" or ">"
    wants_reply    a call that is to be answered; is_reply: an answer, or an error
    pack           writes a u32 in that byte order (struct.Struct.pack_into): buffer, offset, value
    length         bytes of the header, padding to 8 included
    path, interface, member, error_name, destination, sender   None when absent
    signature      of the body; "" when absent, which it is when there is no body (``bodiless``)
    reply_serial_at offset of the value of REPLY_SERIAL from the start of the message; -1 when absent
    unix_fds       0 when absent
    """

    __slots__ = (
        "bodiless",
        "destination",
        "endian",
        "error_name",
        "flags",
        "interface",
        "is_reply",
        "kind",
        "length",
        "member",
        "pack",
        "path",
        "reply_serial_at",
        "sender",
        "signature",
        "unix_fds",
        "wants_reply",
    )

    def __init__(self, kind: int, flags: int, endian: str, length: int, texts: list[str | None], at: int, fds: int):
        self.kind = kind
        self.flags = flags
        self.endian = endian
        self.wants_reply = kind == METHOD_CALL and not flags & NO_REPLY_EXPECTED
        self.is_reply = kind not in (METHOD_CALL, SIGNAL)
        self.pack = U32[endian].pack_into
        self.length = length
        _, self.path, self.interface, self.member, self.error_name, _, self.destination, self.sender, signature = texts
        self.signature = signature or ""
        self.bodiless = not signature
        self.reply_serial_at = at
        self.unix_fds = fds


def extent(data: memoryview | bytes) -> int:
    """The length of a whole message by its first FIXED bytes, whatever else is wrong with its header: from there on
    the next one can be read. Raises Malformed where that cannot be known, or it is beyond MAX_MESSAGE.
    """
    endian = ENDIAN.get(data[0])
    if endian is None:
        raise Malformed("neither little- nor big-endian")
    first, body, _, array = LITTLE(data) if endian == "<" else BIG(data)
    if first[3] != 1:
        raise Malformed("not version 1 of the protocol")
    total: int = ((FIXED + array + 7) & ~7) + body
    if total > MAX_MESSAGE:
        raise Malformed("the message is too long")
    return total


def sizes(data: memoryview | bytes) -> tuple[int, int]:
    """The length of the header with padding, and of the whole message, by its first FIXED bytes. Raises Malformed."""
    endian = ENDIAN.get(data[0])
    if endian is None:
        raise Malformed("neither little- nor big-endian")
    first, body, serial, array = LITTLE(data) if endian == "<" else BIG(data)
    if first[3] != 1:
        raise Malformed("not version 1 of the protocol")
    if not METHOD_CALL <= first[1] <= SIGNAL:
        raise Malformed("unknown message type")
    if not serial:
        raise Malformed("the serial is 0")
    length = (FIXED + array + 7) & ~7
    if length > MAX_HEADER:
        raise Malformed("the header is too long")
    if length + body > MAX_MESSAGE:
        raise Malformed("the message is too long")
    return length, length + body


def read_fields(data: bytes, endian: str, end: int, texts_known: dict[bytes, tuple[int, str]]) -> Fields:
    """data: a whole header with its padding, whose sizes() are good. end: of the array of fields.

    texts_known: fields of text in that byte order that were read before, by their bytes with padding.
    """
    field = _FIELD[endian]
    texts: list[str | None] = [None] * 9
    fds = reply_at = -1
    unknown = 0
    room = MAX_UNKNOWN
    at = stop = FIXED
    while at < end:
        # Eight bytes are there: ``at`` and the length of the header are multiples of eight.
        head, number = field(data, at)
        if head in _TEXT:
            stop = at + 9 + number if head != _SIGNATURE else at + 6 + data[at + 4]
            to = (stop + 7) & -8
            raw = data[at:to]
            known = texts_known.get(raw)
            if known is None:
                known = _read_text(raw, stop - at)
                if len(raw) <= MAX_KNOWN:
                    if len(texts_known) >= MAX_TEXTS:
                        texts_known.clear()
                    texts_known[raw] = known
            code, text = known
            if texts[code] is not None:
                raise Malformed(f"header field {code} comes twice")
            texts[code] = text
            at = to
            continue
        if head == _REPLY_SERIAL:
            if reply_at >= 0:
                raise Malformed("header field 5 comes twice")
            reply_at = at + 4
            stop = at + 8
        elif head == _UNIX_FDS:
            if fds >= 0:
                raise Malformed("header field 9 comes twice")
            fds = number
            stop = at + 8
        else:
            code = head[0]
            if code <= _LAST_KNOWN:
                raise Malformed(f"header field {code} is not of its type" if code else "a header field of code 0")
            if unknown >> code & 1:
                raise Malformed(f"header field {code} comes twice")
            unknown |= 1 << code
            stop = skip_variant(data, at + 1, min(end, at + room), endian)
            room -= stop - at
        at = (stop + 7) & -8
        if data[stop:at] != _ZEROS[at - stop]:
            raise Malformed("padding is missing or not zero")
    if stop != end:
        raise Malformed("the header fields do not end where they should")
    return _checked(Fields(data[1], data[2], endian, len(data), texts, reply_at, max(fds, 0)))


def _read_text(raw: bytes, size: int) -> tuple[int, str]:
    """Read a field of text: its code and its text. raw: with its padding; size: without, its NUL included.

    Behind the last field, what pads it is the padding of the whole header.
    """
    width, limit, valid = _TEXT[raw[:4]]
    text = raw[4 + width : size - 1]
    if len(text) > limit or raw[size - 1 :] != _ZEROS[1 + (-size & 7)] or not valid(text):
        raise Malformed(f"header field {raw[0]} is not valid")
    return raw[0], text.decode("ascii")


def _checked(fields: Fields) -> Fields:
    """What the specification asks of a header beyond its form (Message Types; Message Bus Messages, "Local")."""
    kind = fields.kind
    if kind == METHOD_CALL:
        complete = fields.path is not None and fields.member is not None
    elif kind == METHOD_RETURN:
        complete = fields.reply_serial_at >= 0
    elif kind == SIGNAL:
        complete = fields.path is not None and fields.interface is not None and fields.member is not None
    else:
        complete = fields.reply_serial_at >= 0 and fields.error_name is not None
    if not complete:
        raise Malformed("a required header field is missing")
    if fields.path == "/org/freedesktop/DBus/Local" or fields.interface == "org.freedesktop.DBus.Local":
        raise Malformed("a message that only a library may make up for itself")
    return fields
