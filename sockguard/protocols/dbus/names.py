"""Names of the message protocol: which are valid (D-Bus specification, Valid Names and Valid Object Paths).

Stricter than dbus-daemon in one thing: a unique name needs two elements, as the specification says.
"""

from __future__ import annotations

import re
from typing import Final

BUS: Final = "org.freedesktop.DBus"
"""The bus itself (dbus specification, Message Bus Messages)."""

MAX_NAME: Final = 255
"""Bytes of any name; object paths have no limit of their own."""

# Quantifiers of single characters are possessive, so each pattern takes time linear in its length. Those of groups are
# not: Python before 3.11.5 takes a half-read group for a whole one there (tests/unit/test_regular_expressions.py).
_WORD: Final = "[A-Za-z_][A-Za-z0-9_]*+"
_LABEL: Final = "[A-Za-z_-][A-Za-z0-9_-]*+"

PATH: Final = "/|(?:/[A-Za-z0-9_]++)+"
MEMBER: Final = _WORD
INTERFACE: Final = rf"{_WORD}(?:\.{_WORD})+"
UNIQUE: Final = r":[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)+"
WELL_KNOWN: Final = rf"{_LABEL}(?:\.{_LABEL})+"
BUS_NAME: Final = f"{UNIQUE}|{WELL_KNOWN}"

_path: Final = re.compile(PATH).fullmatch
_member: Final = re.compile(MEMBER).fullmatch
_interface: Final = re.compile(INTERFACE).fullmatch
_unique: Final = re.compile(UNIQUE).fullmatch
_well_known: Final = re.compile(WELL_KNOWN).fullmatch
_namespace: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch


def valid_path(s: str) -> bool:
    """An object path: "/", or elements each behind a slash, none empty, no slash at the end."""
    return _path(s) is not None


def valid_member(s: str) -> bool:
    """The name of a method or a signal: one element."""
    return len(s) <= MAX_NAME and _member(s) is not None


def valid_interface(s: str) -> bool:
    """Two elements or more; none begins with a digit, none has a hyphen."""
    return len(s) <= MAX_NAME and _interface(s) is not None


def valid_error_name(s: str) -> bool:
    """As an interface."""
    return valid_interface(s)


def valid_unique_name(s: str) -> bool:
    """The name that the bus gives a connection, like ":1.42"."""
    return len(s) <= MAX_NAME and _unique(s) is not None


def valid_well_known_name(s: str) -> bool:
    """A name that a connection asks for: two elements or more; none begins with a digit, hyphens may be."""
    return len(s) <= MAX_NAME and _well_known(s) is not None


def valid_bus_name(s: str) -> bool:
    """A unique or a well-known name."""
    return valid_unique_name(s) or valid_well_known_name(s)


def valid_namespace(s: str) -> bool:
    """What a match rule may have as arg0namespace: a bus name, or the first element of one."""
    return valid_unique_name(s) or (len(s) <= MAX_NAME and _namespace(s) is not None)
