"""Requests out of audit events as the text of a rule's *what*. Pure; what the events hold is foreign.

What reaches the text is only what the protocol's own module makes of a request, each string of it escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.registry import PROTOCOLS, rules_of


def can_be_meant(protocol: str, request: str) -> bool:
    """Whether an entry can allow this request.

    One that was cut for its event (base.MAX_REQUEST_TEXT) ends with "…", which is in no request of any protocol.
    """
    try:
        return bool(rules_of(protocol).suggest_what([request]))
    except Bad:
        return False


def what_for(protocol: str, requests: Sequence[str]) -> str:
    """The key and its entries, as TOML, that allow these requests; each of them ``can_be_meant``."""
    entries = "".join(f"  {toml(entry)},\n" for entry in rules_of(protocol).suggest_what(requests))
    return f"{PROTOCOLS[protocol].what[0]} = [\n{entries}]"


def toml(value: Json) -> str:
    """A value on one line; a table inline."""
    if isinstance(value, str):
        return f'"{"".join(map(_character, value))}"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        raise TypeError("TOML has no null")
    return str(value)


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else toml(key)


def _character(character: str) -> str:
    """One character of a basic string (toml.io/en/v1.0.0): ASCII as it is, any other by its number.

    A lone surrogate, which TOML cannot hold, becomes U+FFFD.
    """
    number = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if 0x20 <= number < 0x7F:
        return character
    return "\\uFFFD" if 0xD800 <= number < 0xE000 else f"\\U{number:08X}"
