"""Match rules: what a client asks the bus to send it (D-Bus specification, Match Rules).

A rule is read once, by the grammar, and what was read is judged: CVE-2026-34080 came of searching the text. Where
dbus-daemon (bus/signals.c) and dbus-broker (src/bus/match.c) read a text differently, or not as the specification
has it, it is refused: a backslash outside quotes that is not followed by an apostrophe, a stray "=", more than 16
keys (dbus-daemon silently forgets the rest), argument numbers in octal or hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sockguard.protocols.dbus import names
from sockguard.protocols.dbus.signature import Malformed

MAX_RULE: Final = 1024
"""Bytes; as dbus-daemon (DBUS_MAXIMUM_MATCH_RULE_LENGTH)."""

MAX_KEYS: Final = 16
"""As dbus-daemon's MAX_RULE_TOKENS."""

KINDS: Final = {"method_call": 1, "method_return": 2, "error": 3, "signal": 4}

# White space may stand before a key and between it and "="; in a value it is part of the value.
_pair: Final = re.compile(r"[ \t\r\n]*+([a-z0-9_]++)[ \t\r\n]*+=((?:[^',\\]++|'[^']*+'|\\')*)").match
_part: Final = re.compile(r"[^'\\]+|'([^']*)'|\\(')").sub
_arg: Final = re.compile(r"arg(?:(0|[1-9][0-9]?)(path)?|0(namespace))").fullmatch

_VALID: Final[Mapping[str, Callable[[str], bool]]] = {
    "type": lambda value: value in KINDS,
    "sender": names.valid_bus_name,
    "interface": names.valid_interface,
    "member": names.valid_member,
    "path": names.valid_path,
    "path_namespace": names.valid_path,
    "destination": names.valid_bus_name,
    "eavesdrop": lambda value: value in ("true", "false"),
}

How = Literal["", "path", "namespace"]


@dataclass(frozen=True, slots=True)
class MatchRule:
    """One rule; equal, and hashed alike, when two texts mean the same. None: any.

    kind   message type by its number
    args   (number of the argument, "" or "path" or "namespace", value), by number
    """

    kind: int | None = None
    sender: str | None = None
    interface: str | None = None
    member: str | None = None
    path: str | None = None
    path_namespace: str | None = None
    destination: str | None = None
    eavesdrop: bool = False
    args: tuple[tuple[int, How, str], ...] = ()

    def matches(
        self,
        kind: int,
        sender_names: Collection[str],
        interface: str | None,
        member: str | None,
        path: str | None,
        destination: str | None,
        args: Sequence[str],
    ) -> bool:
        """Whether a message is one that the rule names. sender_names: all that its sender owns, the unique one too.

        args: the leading arguments as long as they are strings. Whether a message to somebody else may be seen at
        all (eavesdrop) is not asked here.
        """
        return (
            (self.kind is None or self.kind == kind)
            and (self.sender is None or self.sender in sender_names)
            and (self.interface is None or self.interface == interface)
            and (self.member is None or self.member == member)
            and (self.path is None or self.path == path)
            and (self.path_namespace is None or (path is not None and _below(path, self.path_namespace, "/")))
            and (self.destination is None or self.destination == destination)
            and all(number < len(args) and _fits(args[number], how, value) for number, how, value in self.args)
        )


def parse(text: str) -> MatchRule:
    """Read a rule. Raises Malformed."""
    if len(text.encode("utf-8", "replace")) > MAX_RULE or "\0" in text:
        raise Malformed("a match rule that is too long or has a NUL inside")
    found: dict[str, str] = {}
    args: dict[int, tuple[int, How, str]] = {}
    for count, (key, value) in enumerate(_pairs(text)):
        if count == MAX_KEYS:
            raise Malformed("a match rule of too many keys")
        arg = _arg(key)
        if arg:
            number, how = _argument(arg, value)
            if number in args:
                raise Malformed("an argument twice in a match rule")
            args[number] = (number, how, value)
            continue
        if key not in _VALID:
            raise Malformed("an unknown key in a match rule")
        if key in found:
            raise Malformed(f"{key} comes twice in a match rule")
        if not _VALID[key](value):
            raise Malformed(f"{key} is not valid in a match rule")
        found[key] = value
    if "path" in found and "path_namespace" in found:
        raise Malformed("path and path_namespace in one match rule")
    return MatchRule(
        KINDS.get(found.get("type", "")),
        found.get("sender"),
        found.get("interface"),
        found.get("member"),
        found.get("path"),
        found.get("path_namespace"),
        found.get("destination"),
        found.get("eavesdrop") == "true",
        tuple(args[number] for number in sorted(args)),
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    at = 0
    while text[at:].strip(" \t\r\n"):
        pair = _pair(text, at)
        if pair is None:
            raise Malformed("a match rule without a key and = where they must be")
        at = pair.end()
        if at < len(text):
            if text[at] != ",":
                raise Malformed("an apostrophe without its other, or a backslash before something else")
            at += 1
        pairs.append((pair[1], _part(_unquoted, pair[2])))
    return pairs


def _unquoted(part: re.Match[str]) -> str:
    """Inside apostrophes everything is itself; outside, a backslash and an apostrophe are an apostrophe."""
    if part[2]:
        return "'"
    return part[0] if part[1] is None else part[1]


def _argument(arg: re.Match[str], value: str) -> tuple[int, How]:
    if arg[3]:
        if not names.valid_namespace(value):
            raise Malformed("arg0namespace is not valid in a match rule")
        return 0, "namespace"
    number = int(arg[1])
    if number > 63:
        raise Malformed("an argument of too high a number in a match rule")
    return number, "path" if arg[2] else ""


def _below(text: str, root: str, separator: str) -> bool:
    return text == root or root == separator or text.startswith(root + separator)


def _fits(text: str, how: How, value: str) -> bool:
    if how == "namespace":
        return _below(text, value, ".")
    if how == "path":
        return text == value or (value.endswith("/") and text.startswith(value)) or (
            text.endswith("/") and value.startswith(text)
        )  # fmt: skip
    return text == value
