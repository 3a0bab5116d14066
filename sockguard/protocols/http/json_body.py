"""Conditions on a JSON body: what must not be in it. Pure: bytes in, a reason or none out.

    /HostConfig/Binds                 must not be set
    /HostConfig/Privileged=true       must not be this JSON value: true, false, null, a number, "text", [] or {}
    /HostConfig/NetworkMode=host      must not be this text; * and ? as in globs, across "/" too
    /HostConfig/Mounts/*/Type=bind    * alone: every element of an array, every member of an object
    /EndpointsConfig/host=*           must not be there, with whatever value

The part before the first "=" is a JSON Pointer (RFC 6901). Not set are: no such member, null, false, 0, "", [] and {},
since clients written in Go send every member; where a service tells [] from null, a second condition says ``=[]``, and
where it goes by the keys of a map, so that ``{"host": {}}`` asks for as much as any value, the condition says ``=*``.
Without "=" is the safer form: services differ in what they take for true.

Services differ more in how they read JSON than in what they do with it, so a body that two readers could understand
differently is refused whole, wherever that is in it:

- anything but UTF-8, a byte order mark, NaN, Infinity, an unpaired surrogate, data behind the value, nesting deeper
  than MAX_DEPTH, a number of thousands of digits (RFC 8259, sections 8.1, 8.2 and 9);
- a key twice in one object: which of them counts is undefined (RFC 8259, section 4);
- on the way of a condition, a key that differs from the condition's only in case: Go's encoding/json takes it for the
  same, U+212A (Kelvin) for k and U+017F (long s) for s among them;
- on the way of a condition, anything but an object or array that could have the member, or null.

A request without a body has nothing forbidden in it. One whose body does not say ``application/json``, or turns out
to be empty, is refused: what has not been understood is not known to be without what is forbidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from sockguard.protocols.base import Bad
from sockguard.protocols.http.patterns import glob, is_glob

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other."""
MAX_VALUES: Final = 16384
"""Values in a body, about: one is read in a few milliseconds, and nobody is served meanwhile."""
CONDITION_LIMIT: Final = 1024
"""Longest condition, characters."""

# RFC 9110, section 8.3.1: type "/" subtype parameters; JSON has none, and servers are told UTF-8 needlessly.
_JSON_TYPE: Final = re.compile(r"application/json[ \t]*(?:;[ \t]*(?:charset=\"?utf-8\"?[ \t]*)?)?", re.IGNORECASE)
# Without escapes. An unterminated string matches to the end, so that no quote is looked at twice.
_STRING: Final = re.compile(rb'"[^"]*+"?')
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(_STEP))
_INDEX: Final = re.compile(r"0|[1-9][0-9]*")  # RFC 6901, section 4
_UNSET: Final[tuple[object, ...]] = (None, "", [], {})


class Unreadable(ValueError):
    """A body that is refused whole; the text says why."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of ``forbid``. ``hits`` tells whether a value is the forbidden one."""

    text: str
    way: tuple[str, ...]
    hits: Callable[[object], bool]


class Conditions:
    """All of one ``forbid``, as a tree by their ways, so that a body is walked once for all of them. Frozen."""

    __slots__ = ("_root",)

    def __init__(self, texts: Iterable[str]) -> None:
        """Raises Bad."""
        self._root = _Node()
        for text in texts:
            condition = read_condition(text)
            node = self._root
            for key in condition.way:
                node = node.step(key)
            node.conditions.append(condition)

    def fault(self, value: object) -> str | None:
        """Say which condition a parsed body does not meet, or why that cannot be told; None when it meets all."""
        try:
            return self._root.fault(value, "")
        except Unreadable as unreadable:
            return str(unreadable)


@dataclass(slots=True)
class _Node:
    """What the keys so far have led to: the conditions on it, and the keys that conditions go on with."""

    conditions: list[Condition] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)
    folded: set[str] = field(default_factory=set)
    every: _Node | None = None

    def step(self, key: str) -> _Node:
        if key == "*":
            self.every = self.every or _Node()
            return self.every
        self.folded.add(key.casefold())
        return self.children.setdefault(key, _Node())

    def fault(self, value: object, way: str) -> str | None:
        for condition in self.conditions:
            if condition.hits(value):
                return f"the body has {condition.text}"
        if value is None or (not self.children and self.every is None):
            return None
        for node, inner, key in self._inner(value, way):
            found = node.fault(inner, f"{way}/{key}")
            if found is not None:
                return found
        return None

    def _inner(self, value: object, way: str) -> Iterator[tuple[_Node, object, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                child = self.children.get(key)
                if child is not None:
                    yield child, inner, key
                elif self.folded and key.casefold() in self.folded:
                    raise Unreadable(f"a key of the body differs only in case from a forbidden one, below '{way}/'")
                if self.every is not None:
                    yield self.every, inner, "*"
        elif isinstance(value, list) and all(map(_INDEX.fullmatch, self.children)):
            for key, child in self.children.items():
                for inner in value[int(key) : int(key) + 1]:
                    yield child, inner, key
            if self.every is not None:
                for inner in value:
                    yield self.every, inner, "*"
        else:
            raise Unreadable(f"'{way or '/'}' of the body is neither null nor what could have a forbidden member")


def read_condition(text: str) -> Condition:
    """Read an entry of ``forbid``. Raises Bad."""
    if len(text) > CONDITION_LIMIT:
        raise Bad(f"is longer than {CONDITION_LIMIT} characters")
    pointer, equals, value = text.partition("=")
    if not pointer.startswith("/"):
        raise Bad("must be a JSON Pointer, which begins with '/' (RFC 6901), and may go on with '=' and a value")
    if re.search("~(?![01])", pointer):
        raise Bad("'~' stands before 0 or 1 only: ~0 is '~', ~1 is '/' (RFC 6901)")
    way = tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    if "-" in way:
        raise Bad("'-' is the element after the last, which no body has; '*' is every element")
    if not all(way):
        raise Bad("has an empty key")
    return Condition(text, way, _is_there if value == "*" else _is_value(value) if equals else _is_set)


def is_json(content_type: str | None) -> bool:
    """Tell whether a Content-Type is JSON in UTF-8. None: there was no such header."""
    return content_type is not None and _JSON_TYPE.fullmatch(content_type) is not None


def parse(body: bytes | bytearray | memoryview) -> object:
    """Parse a whole body, strictly, in time by its length. Raises Unreadable."""
    raw = bytes(body)
    if not raw:
        raise Unreadable("the body is empty")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise Unreadable(f"the body has more than {MAX_VALUES} values")
    if _depth(raw) > MAX_DEPTH:
        raise Unreadable(f"the body is nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_constant)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except Unreadable:
        raise
    except UnicodeError:
        raise Unreadable("the body is not UTF-8, or has an unpaired surrogate") from None
    except (ValueError, RecursionError):
        raise Unreadable("the body is not valid JSON") from None
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unreadable("a key stands twice in an object of the body")
    return made


def _constant(_: str) -> object:
    raise Unreadable("the body is not valid JSON: NaN or Infinity")


def _depth(raw: bytes) -> int:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return 0
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")  # so that each quote begins or ends a string
    brackets = _STRING.sub(b"", plain).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _is_set(value: object) -> bool:
    return not (value in _UNSET or (isinstance(value, bool | int | float) and value == 0))


def _is_there(value: object) -> bool:
    return True


def _is_value(text: str) -> Callable[[object], bool]:
    try:
        literal = json.loads(text, parse_constant=_constant)
    except ValueError:
        return _is_text(text)
    if literal not in ([], {}) and isinstance(literal, list | dict):
        raise Bad("a value is true, false, null, a number, text, [] or {}")
    return lambda value: _same(value, literal)


def _is_text(text: str) -> Callable[[object], bool]:
    if text[:1] in ("", '"', "[", "{"):
        raise Bad("the value after '=' is empty or no valid JSON; a bare text needs no quotes")
    matches = glob(text, crossing=True) if is_glob(text) else text.__eq__
    return lambda value: isinstance(value, str) and matches(value)


def _same(value: object, literal: object) -> bool:
    """JSON's equality: true is no 1, which it is to Python."""
    return value == literal and isinstance(value, bool) is isinstance(literal, bool)
