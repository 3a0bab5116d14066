"""The ``dbus`` key of a rule and the table ``[proxy.NAME.dbus]``: from the file to plain JSON, and what judges by it.

An entry of ``dbus`` is a table with one of destination, own or receive, and, except beside own, optionally path,
interface and member; each a string or an array of strings (patterns.py says what they match). All of one entry must
match, any value of a list will do. In a deny, path, interface and member may stand alone: calls to anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.dbus.judge import DbusRules, compile_rules
from sockguard.protocols.dbus.names import (
    valid_interface,
    valid_member,
    valid_path,
    valid_unique_name,
    valid_well_known_name,
)
from sockguard.protocols.dbus.patterns import ANY, BELOW, DEEP, split_path
from sockguard.protocols.dbus.requests import Call, Own, Receive, Request, describe, suggest_what
from sockguard.protocols.dbus.requests import parse_request as _parse
from sockguard.words import did_you_mean, kind, quoted

__all__ = [
    "Call",
    "DbusRules",
    "Own",
    "Receive",
    "Request",
    "compile_rules",
    "describe",
    "parse_request",
    "read_options",
    "read_what",
    "schema",
    "suggest_what",
]

MAX_ENTRIES: Final = 1000
"""Entries of one rule."""
MAX_VALUES: Final = 1000
"""Values of one key of an entry."""

_TARGETS: Final = ("destination", "own", "receive")
_NARROWING: Final = ("path", "interface", "member")
_KEYS: Final = (*_TARGETS, *_NARROWING)


def read_what(key: str, value: object, *, deny: bool) -> list[Json]:
    """Make plain JSON of ``dbus = [...]``: entries whose values are all lists. Raises an ExceptionGroup of Bad."""
    mistakes: list[Bad] = []
    entries: list[Json] = []
    if not isinstance(value, list):
        mistakes.append(Bad(f"must be an array of tables, not {kind(value)}"))
    elif len(value) > MAX_ENTRIES:
        mistakes.append(Bad(f"has more than {MAX_ENTRIES} entries"))
    else:
        entries.extend(_entry(index, one, deny, mistakes) for index, one in enumerate(value))
    if mistakes:
        raise ExceptionGroup(f"mistakes in {key}", mistakes)
    return entries


def read_options(table: Mapping[str, object]) -> dict[str, Json]:
    """There are no options yet: an empty table. Raises an ExceptionGroup of Bad for any key."""
    if table:
        raise ExceptionGroup("mistakes in options", [Bad("unknown key: dbus has no options", (key,)) for key in table])
    return {}


def parse_request(text: str, options: Mapping[str, Json]) -> Request:
    """Read "call DESTINATION PATH INTERFACE.MEMBER", "own NAME" or "receive SENDER INTERFACE.MEMBER". Raises Bad."""
    return _parse(text)


def _entry(index: int, table: object, deny: bool, mistakes: list[Bad]) -> dict[str, Json]:
    if not isinstance(table, dict):
        mistakes.append(
            Bad(f'must be a table such as {{ destination = "org.example.App" }}, not {kind(table)}', (index,))
        )
        return {}
    entry: dict[str, Json] = {}
    unknown = [key for key in table if key not in _KEYS]
    mistakes.extend(Bad(f"unknown key{did_you_mean(key, _KEYS)}", (index, key)) for key in unknown)
    for key, value in table.items():
        if key in _KEYS:
            entry[key] = _values(value, _CHECKS[key], (index, key), mistakes)
    targets = [key for key in _TARGETS if key in table]
    if len(targets) > 1:
        text = f"has {' and '.join(targets)}: give one of them, and another entry for each other"
        mistakes.append(Bad(text, (index,)))
    elif targets == ["own"]:
        mistakes.extend(
            Bad("goes with destination or receive: a name is owned as a whole", (index, key))
            for key in _NARROWING
            if key in table
        )
    elif not targets and not unknown and (not deny or not entry):  # an unknown key may be the one that is missing
        alone = ", or path, interface or member alone" if deny else ""
        mistakes.append(Bad(f"needs destination, own or receive{alone}", (index,)))
    return entry


def _values(
    value: object, check: Callable[[str], None], path: tuple[str | int, ...], mistakes: list[Bad]
) -> list[Json]:
    """A string or a list of them, as a list."""
    if isinstance(value, str):
        given: Sequence[object] = (value,)
    elif not isinstance(value, list):
        mistakes.append(Bad(f"must be a string or an array of strings, not {kind(value)}", path))
        return []
    elif not 1 <= len(value) <= MAX_VALUES:
        text = "an empty list matches nothing" if not value else f"has more than {MAX_VALUES} values"
        mistakes.append(Bad(text, path))
        return []
    else:
        given = value
    found: list[Json] = []
    for index, one in enumerate(given):
        where = path if isinstance(value, str) else (*path, index)
        if not isinstance(one, str):
            mistakes.append(Bad(f"must be a string, not {kind(one)}", where))
            continue
        try:
            check(one)
        except Bad as bad:
            mistakes.append(Bad(str(bad), where))
        else:
            found.append(one)
    return found


def _name(text: str) -> None:
    if text == ANY:
        return
    if text.startswith(":") or valid_unique_name(text):
        raise Bad(f"{quoted(text)} is a unique name, which says nothing of who has it; give a well-known name")
    # A prefix may be shorter than a name: "org.*" is every name below org.
    whole = f"{text.removesuffix(BELOW)}.x" if text.endswith(BELOW) else text
    if not valid_well_known_name(whole):
        raise Bad(f"must be a well-known name such as 'org.example.App', 'org.example.*' or '*'; not {quoted(text)}")


def _interface(text: str) -> None:
    whole = f"{text.removesuffix(BELOW)}.x" if text.endswith(BELOW) else text
    if text == ANY:
        raise Bad("leave interface out for any")
    if not valid_interface(whole):
        raise Bad(f"must be an interface such as 'org.example.App' or 'org.example.*'; not {quoted(text)}")


def _member(text: str) -> None:
    if not valid_member(text.replace(ANY, "x")):
        raise Bad(f"must be a member's name such as 'Get', or a pattern such as 'Get*'; not {quoted(text)}")


def _path(text: str) -> None:
    if not valid_path(text.replace(ANY, "x")):
        raise Bad(f"must be an object path such as '/org/example', or a pattern of one; not {quoted(text)}")
    if any(DEEP in segment for segment in split_path(text.removesuffix(f"/{DEEP}"))):
        raise Bad("'**' can only be the last segment, as in '/org/example/**'")


_CHECKS: Final[dict[str, Callable[[str], None]]] = {
    **dict.fromkeys(_TARGETS, _name),
    "path": _path,
    "interface": _interface,
    "member": _member,
}


def _strings(description: str, pattern: str) -> Json:
    one: Json = {"type": "string", "pattern": pattern}
    return {"description": description, "anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


_NAME_PATTERN: Final = r"^(\*|[A-Za-z_-][A-Za-z0-9_-]*(\.[A-Za-z_-][A-Za-z0-9_-]*)*(\.\*)?)$"

schema: Final[Mapping[str, Json]] = {
    "what": {
        "dbus": {
            "description": "Requests that the rule is about, on a proxy with protocol = 'dbus'; none: everything.",
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "properties": {
                    "destination": _strings(
                        "Calls to whoever owns this name: 'org.example.App', 'org.example.*' (it and all below), '*'.",
                        _NAME_PATTERN,
                    ),
                    "own": _strings("Owning this name; 'org.example.App' alone takes none below it.", _NAME_PATTERN),
                    "receive": _strings("Signals from whoever owns this name.", _NAME_PATTERN),
                    "path": _strings(
                        "Object path; '*' within one segment, '**' as the last: any depth, none included.", "^/"
                    ),
                    "interface": _strings(
                        "Interface: 'org.example.App', or 'org.example.*' (it and all below). An allow that has one "
                        "takes no call without; a deny takes it.",
                        r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\.\*)?$",
                    ),
                    "member": _strings("Method or signal; '*' for any characters.", r"^[A-Za-z_*][A-Za-z0-9_*]*$"),
                },
            },
        }
    },
    "options": {
        "description": "Options of protocol 'dbus'; there are none yet.",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    },
}
