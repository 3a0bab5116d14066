"""Bodies of the few calls, replies and signals that are looked into: strings, numbers, lists of strings.

D-Bus specification, Marshaling. Enough for what the bus itself is asked and answers; a relay reads no other body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from struct import Struct
from typing import Final, TypeAlias

from sockguard.protocols.dbus import names
from sockguard.protocols.dbus.signature import MAX_ARRAY, Malformed, valid_signature

Value: TypeAlias = "str | int | bool | list[str]"

_U32: Final = {"<": Struct("<I"), ">": Struct(">I")}
_types: Final = re.compile("(?:[sogub]|as)*").fullmatch


def read(signature: str, data: bytes, endian: str) -> list[Value]:
    """Read a whole body of the types s, o, g, u, b and as, in any number. endian: "<" or ">".

    Strict: exact to the last byte, padding of zeros, valid strings. Raises Malformed; also for other types.
    """
    if not _types(signature):
        raise Malformed("a body of other types than this was meant to have")
    values: list[Value] = []
    at = 0
    for letter in signature.replace("as", "a"):
        if letter == "g":
            if at >= len(data):
                raise Malformed("the body ends too early")
            text, at = _ending(data, at + 1, data[at])
            if not valid_signature(text.encode()):
                raise Malformed("a signature is not valid")
            values.append(text)
            continue
        at = _aligned(data, at)
        if letter == "a":
            items, at = _strings(data, at, endian)
            values.append(items)
        elif letter in "ub":
            number = _u32(data, at, endian)
            if letter == "b" and number > 1:
                raise Malformed("a boolean is neither 0 nor 1")
            values.append(number if letter == "u" else number == 1)
            at += 4
        else:
            text, at = _text(data, at, endian)
            if letter == "o" and not names.valid_path(text):
                raise Malformed("an object path is not valid")
            values.append(text)
    if at != len(data):
        raise Malformed("the body does not end where it should")
    return values


def pack(signature: str, values: Iterable[Value]) -> bytes:
    """Write a little-endian body of the types that ``read`` knows. Raises ValueError when the values do not fit."""
    if not _types(signature):
        raise ValueError(f"cannot write a body of {signature!r}")
    body = bytearray()
    for letter, value in zip(signature.replace("as", "a"), values, strict=True):
        if letter == "g" and isinstance(value, str):
            body += bytes((len(value),)) + value.encode("ascii") + b"\0"
            continue
        body += bytes(-len(body) & 3)
        if letter == "a" and isinstance(value, list):
            items = strings(value)
            body += _U32["<"].pack(len(items)) + items
        elif letter in "ub" and isinstance(value, int):
            body += _U32["<"].pack(value)
        elif letter in "so" and isinstance(value, str):
            body += strings([value])
        else:
            raise ValueError(f"cannot write {value!r} as {letter!r}")
    return bytes(body)


def strings(values: Iterable[str]) -> bytes:
    """Strings one behind the other, each aligned, little-endian; without the length that would make them an array."""
    out = bytearray()
    for value in values:
        text = value.encode()
        if b"\0" in text:
            raise ValueError("a string with a NUL inside")
        out += bytes(-len(out) & 3) + _U32["<"].pack(len(text)) + text + b"\0"
    return bytes(out)


def _strings(data: bytes, at: int, endian: str) -> tuple[list[str], int]:
    size = _u32(data, at, endian)
    at += 4
    stop = at + size
    if size > MAX_ARRAY or stop > len(data):
        raise Malformed("an array runs past its end")
    items = []
    while at < stop:
        text, at = _text(data, _aligned(data, at), endian)
        items.append(text)
    if at != stop:
        raise Malformed("an array does not end where it should")
    return items, at


def _text(data: bytes, at: int, endian: str) -> tuple[str, int]:
    size = _u32(data, at, endian)
    return _ending(data, at + 4, size)


def _ending(data: bytes, at: int, size: int) -> tuple[str, int]:
    """The string of that size at ``at``, and where what follows its NUL begins."""
    stop = at + size
    if data[stop : stop + 1] != b"\0":
        raise Malformed("a string does not end")
    text = data[at:stop]
    if b"\0" in text:
        raise Malformed("a NUL inside a string")
    try:
        return text.decode("utf-8"), stop + 1
    except UnicodeDecodeError:
        raise Malformed("a string is not UTF-8") from None


def _u32(data: bytes, at: int, endian: str) -> int:
    if at + 4 > len(data):
        raise Malformed("the body ends too early")
    number: int = _U32[endian].unpack_from(data, at)[0]
    return number


def _aligned(data: bytes, at: int) -> int:
    to = (at + 3) & -4
    if data[at:to] != bytes(to - at):
        raise Malformed("padding is missing or not zero")
    return to
