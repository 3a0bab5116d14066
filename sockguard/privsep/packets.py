"""A message as a packet and back. What messages there are, and what each means, stands in messages.py.

Nothing that arrives is taken on trust: what decode gives has exactly the fields, and the types, of its class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import ClassVar, Final, TypeVar

from sockguard.errors import ChannelError

MAX_PACKET: Final = 64 * 1024
"""Bytes of one message; a SOCK_SEQPACKET packet ends near 212 KB. What may be larger travels as a sealed memfd."""

_AROUND_ROWS: Final = 64  # bytes of a packet that are not rows: brackets, and the longest tag with room to spare

Row = tuple[int | str, ...]


class Message:
    """Base of all messages. ``TAG`` names it on the wire, ``fds`` says how many descriptors must come with it."""

    TAG: ClassVar[str]
    __slots__ = ()

    def fds(self) -> int:
        return 0


M = TypeVar("M", bound=Message)
MessageTable = dict[str, type[Message]]
_Check = Callable[[object, str], object]
_Shape = tuple[tuple[str, ...], tuple[_Check, ...]]  # names of the fields, and what each must be
_SHAPES: dict[type[Message], _Shape] = {}


def table_of(*classes: type[Message]) -> MessageTable:
    """The table of one direction. Classes are dataclasses with fields of int, str or rows."""
    for cls in classes:
        found = fields(cls)  # type: ignore[arg-type]  # each message is a dataclass
        _SHAPES[cls] = tuple(f.name for f in found), tuple(_CHECKS[str(f.type)] for f in found)
    return {cls.TAG: cls for cls in classes}


def encode(message: Message) -> bytes:
    """The packet of a message. Raises ChannelError when it would be larger than MAX_PACKET."""
    values = [getattr(message, name) for name in _SHAPES[type(message)][0]]
    data = json.dumps([message.TAG, *values], separators=(",", ":")).encode("ascii")
    if len(data) > MAX_PACKET:
        raise ChannelError(f"a {message.TAG} message of {len(data)} bytes is over {MAX_PACKET}")
    return data


def in_packets(make: Callable[[tuple[Row, ...]], M], rows: Iterable[Row]) -> Iterator[M]:
    """As few messages as hold all rows, in their order. A row that fits no packet fails when it is encoded."""
    part: list[Row] = []
    size = _AROUND_ROWS
    for row in rows:
        length = len(json.dumps(row, separators=(",", ":"))) + 1
        if part and size + length > MAX_PACKET:
            yield make(tuple(part))
            part, size = [], _AROUND_ROWS
        part.append(row)
        size += length
    if part:
        yield make(tuple(part))


def decode(data: bytes, table: MessageTable) -> Message:
    """The message in a packet. Raises ChannelError for whatever is not exactly on the table."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError("a packet that is no message") from error
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ChannelError("a packet that is no message")
    cls = table.get(value[0])
    if cls is None:
        raise ChannelError(f"a {value[0][:40]!r} message, which is not on the list")
    names, checks = _SHAPES[cls]
    if len(value) - 1 != len(names):
        raise ChannelError(f"a {cls.TAG} message with {len(value) - 1} fields")
    return cls(*(check(item, cls.TAG) for check, item in zip(checks, value[1:], strict=True)))


def _an_int(item: object, tag: str) -> int:
    if type(item) is not int:
        raise ChannelError(f"a {tag} message with a mistyped field")
    return item


def _a_str(item: object, tag: str) -> str:
    if type(item) is not str:
        raise ChannelError(f"a {tag} message with a mistyped field")
    return item


def _rows(item: object, tag: str) -> tuple[Row, ...]:
    if type(item) is not list:
        raise ChannelError(f"a {tag} message with a mistyped field")
    for row in item:
        if type(row) is not list or not all(type(cell) is int or type(cell) is str for cell in row):
            raise ChannelError(f"a {tag} message with a mistyped row")
    return tuple(map(tuple, item))


_CHECKS: Final[dict[str, _Check]] = {"int": _an_int, "str": _a_str, "tuple[Row, ...]": _rows}


def check_row(row: Row, *types: type) -> Row:
    """``row`` itself, when it has exactly these types; else ChannelError. For rows that an untrusted relay sent."""
    if len(row) != len(types) or any(type(cell) is not kind for cell, kind in zip(row, types, strict=True)):
        raise ChannelError("a row of another shape than its message allows")
    return row
