"""The header of a message to a name, made one to whoever owns that name now. Bytes to bytes."""

from __future__ import annotations

from sockguard.protocols.dbus.header import FIXED, U32, Fields
from sockguard.protocols.dbus.signature import skip_variant

LENGTH_AT = 12
"""Offset of the length of the array of fields."""
DESTINATION = 6


def readdressed(header: bytes, fields: Fields, owner: str) -> bytes:
    """The header with ``owner``, a bus name, as its destination; all else is as it was, but for its length.

    header: whole, with its padding, and well formed; fields: what was read of it, a destination among it.
    """
    number = U32[fields.endian]
    end = FIXED + number.unpack_from(header, LENGTH_AT)[0]
    at = FIXED
    stop = skip_variant(header, at + 1, end, fields.endian)
    while header[at] != DESTINATION:
        at = (stop + 7) & -8
        stop = skip_variant(header, at + 1, end, fields.endian)
    array = header[FIXED:at] + b"\x06\x01s\0" + number.pack(len(owner)) + owner.encode("ascii") + b"\0"
    behind = (stop + 7) & -8
    if behind < end:
        array += bytes(-len(array) & 7) + header[behind:end]
    return header[:LENGTH_AT] + number.pack(len(array)) + array + bytes(-len(array) & 7)
