"""Signatures, and values that are only walked over (D-Bus specification, Type System and Marshaling).

A header may hold fields that nobody knows yet. They are ignored, but only once they are known to be well-formed: the
bus ends a connection that sends others, and what follows them could not be found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from sockguard.protocols.dbus.names import PATH

MAX_DEPTH: Final = 32
"""Arrays in one another, and likewise structs, of one signature; dict entries count as structs here."""

MAX_TOTAL_DEPTH: Final = 64
"""Containers of a value in one another, variants included."""

MAX_ARRAY: Final = 64 * 1024 * 1024
"""Bytes."""

Type: TypeAlias = "str | tuple[str, list[Type]]"
"""One complete type: the code of a basic type or "v", else a container's ("a", "(", "{") and what it contains."""

_BASIC: Final = frozenset("ybnqiuxtdhsog")
_FIXED: Final = {"y": 1, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4}
_ALIGN: Final = _FIXED | {"b": 4, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8}

_ORDER: Final[Mapping[str, Literal["little", "big"]]] = {"<": "little", ">": "big"}

_valid_path: Final = re.compile(PATH.encode()).fullmatch
# Most signatures; what does not match is looked at in full.
_plain: Final = re.compile(rb"(?:a{0,32}+[ybnqiuxtdhsogv]|a\{[ybnqiuxtdhsog][ybnqiuxtdhsogv]\})*").fullmatch


class Malformed(ValueError):
    """Bytes that break the D-Bus specification, or go beyond a limit of ours. The text is ours and short."""


def valid_signature(signature: bytes) -> bool:
    """Any number of complete types in at most 255 bytes."""
    if len(signature) > 255:
        return False
    if _plain(signature):
        return True
    try:
        text = signature.decode("ascii")
        at = 0
        while at < len(text):
            _, at = _read_type(text, at, 0, 0)
    except ValueError:
        return False
    return True


def skip_variant(data: bytes, at: int, end: int, endian: str, depth: int = 1) -> int:
    """Walk over the variant that begins at ``at``; return where it ends, at most ``end``. Raises Malformed.

    ``at`` counts from the start of the message, which alignment goes by. endian: "<" or ">".
    """
    stop = at + 1 + data[at] if at < end else end
    if stop >= end or data[stop]:
        raise Malformed("a signature does not end")
    try:
        text = data[at + 1 : stop].decode("ascii")
    except ValueError:
        raise Malformed("a signature is not ASCII") from None
    kind, read = _read_type(text, 0, 0, 0)
    if read != len(text):
        raise Malformed("a variant has more than one type")
    return _skip(kind, data, stop + 1, end, endian, depth)


def _read_type(text: str, at: int, arrays: int, structs: int) -> tuple[Type, int]:
    code = text[at : at + 1]
    if code in _BASIC or code == "v":
        return code, at + 1
    if code == "a":
        if arrays == MAX_DEPTH:
            raise Malformed("arrays are nested too deeply")
        if text[at + 1 : at + 2] == "{":
            item, at = _read_members(text, at + 1, "}", arrays + 1, structs)
        else:
            item, at = _read_type(text, at + 1, arrays + 1, structs)
        return ("a", [item]), at
    if code == "(":
        return _read_members(text, at, ")", arrays, structs)
    raise Malformed("a signature is not valid")


def _read_members(text: str, at: int, close: str, arrays: int, structs: int) -> tuple[Type, int]:
    if structs == MAX_DEPTH:
        raise Malformed("structs are nested too deeply")
    code = text[at]
    members: list[Type] = []
    at += 1
    while text[at : at + 1] != close:
        member, at = _read_type(text, at, arrays, structs + 1)
        members.append(member)
    if not members:
        raise Malformed("a struct is empty")
    if code == "{" and (len(members) != 2 or not isinstance(members[0], str) or members[0] not in _BASIC):
        raise Malformed("a dict entry is not of a basic type and another")
    return (code, members), at + 1


def _skip(kind: Type, data: bytes, at: int, end: int, endian: str, depth: int) -> int:
    code = kind if isinstance(kind, str) else kind[0]
    if depth > MAX_TOTAL_DEPTH:
        raise Malformed("values are nested too deeply")
    at = _aligned(data, at, end, _ALIGN[code])
    if code in _FIXED:
        at += _FIXED[code]
        if at > end:
            raise Malformed("a value runs past its end")
        return at
    if code == "v":
        return skip_variant(data, at, end, endian, depth + 1)
    if not isinstance(kind, str) and code != "a":
        for member in kind[1]:
            at = _skip(member, data, at, end, endian, depth + 1)
        return at
    size = 1 if code == "g" else 4
    if at + size > end:
        raise Malformed("a value runs past its end")
    number = int.from_bytes(data[at : at + size], _ORDER[endian])
    at += size
    if code == "b":
        if number > 1:
            raise Malformed("a boolean is neither 0 nor 1")
        return at
    if not isinstance(kind, str):
        return _skip_array(kind[1][0], data, at, end, endian, depth, number)
    stop = at + number
    if stop >= end or data[stop]:
        raise Malformed("a string does not end")
    if not _valid_text(code, data[at:stop]):
        raise Malformed("a string is not valid")
    return stop + 1


def _skip_array(item: Type, data: bytes, at: int, end: int, endian: str, depth: int, size: int) -> int:
    code = item if isinstance(item, str) else item[0]
    at = _aligned(data, at, end, _ALIGN[code])
    stop = at + size
    if size > MAX_ARRAY or stop > end:
        raise Malformed("an array runs past its end")
    if code in _FIXED:
        if size % _FIXED[code]:
            raise Malformed("the size of an array is wrong")
        return stop
    while at < stop:
        at = _skip(item, data, at, stop, endian, depth + 1)
    return at


def _aligned(data: bytes, at: int, end: int, boundary: int) -> int:
    to = -(-at // boundary) * boundary
    if to > end or data[at:to].strip(b"\0"):
        raise Malformed("padding is missing or not zero")
    return to


def _valid_text(code: str, text: bytes) -> bool:
    if code == "o":
        return _valid_path(text) is not None
    if code == "g":
        return valid_signature(text)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in text
