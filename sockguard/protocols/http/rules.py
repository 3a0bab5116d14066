"""The keys ``http`` and ``presets`` of a rule and the table ``[proxy.NAME.http]``: from the file to plain JSON.

An entry of ``http`` is a string, "GET,HEAD /containers/json", or a table that can say more:

    methods   methods as they stand in a request, or "*" alone for all; HEAD is not implied by GET
    path      as in patterns.py; it never has a query, and with ``strip_prefix`` no version
    params    for names in the path, the values that they may have: exact or globs
    query     the keys that a query may have, and no others; [] for no query
    upgrade   the protocols that Upgrade may ask for
    body      forbid = [...]: what must not be in a JSON body (json_body.py)

All of one entry must hold. query, upgrade and body narrow, so they are for allows; presets are for allows too. What is
made of either key is a list of such tables. How they are judged is in judge.py, how requests are written in texts.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, cast

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.http.json_body import Conditions
from sockguard.protocols.http.judge import ANY_METHOD, DOCKER_VERSION, HttpRules, compile_rules
from sockguard.protocols.http.lint import warnings
from sockguard.protocols.http.patterns import Name, parse_path, value_fault
from sockguard.protocols.http.presets import PRESETS
from sockguard.protocols.http.request import Request
from sockguard.protocols.http.texts import describe, parse_request, suggest_what
from sockguard.words import did_you_mean, kind, quoted

__all__ = [
    "HttpRules",
    "Request",
    "compile_rules",
    "describe",
    "parse_request",
    "presets_listing",
    "read_options",
    "read_what",
    "schema",
    "suggest_what",
    "warnings",
]

MAX_ENTRIES: Final = 1000
"""Entries of one rule, and presets of one rule."""
MAX_VALUES: Final = 1000
"""Values of one key of an entry."""

_KEYS: Final = ("methods", "path", "params", "query", "upgrade", "body")
_NARROWING: Final = ("query", "upgrade", "body")
# token (RFC 9110, section 5.6.2); every registered method is in upper case, so another case is a slip.
_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")
_PROTOCOL: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Path = tuple[str | int, ...]


def read_what(key: str, value: object, *, deny: bool) -> list[Json]:
    """Make plain JSON of ``http = [...]`` or ``presets = [...]``: tables. Raises an ExceptionGroup of Bad."""
    mistakes: list[Bad] = []
    entries: list[Json] = []
    if key == "presets" and deny:
        mistakes.append(Bad("is for allow rules: a deny would have to ignore what narrows a preset"))
    elif not isinstance(value, list):
        mistakes.append(Bad(f"must be an array, not {kind(value)}"))
    elif len(value) > MAX_ENTRIES:
        mistakes.append(Bad(f"has more than {MAX_ENTRIES} entries"))
    elif key == "presets":
        for index, name in enumerate(value):
            entries += _preset(name, (index,), mistakes)
    else:
        entries += [_entry(one, (index,), mistakes, deny=deny) for index, one in enumerate(value)]
    if mistakes:
        raise ExceptionGroup(f"mistakes in {key}", mistakes)
    return entries


def read_options(table: Mapping[str, object]) -> dict[str, Json]:
    """Make plain JSON of ``[proxy.NAME.http]``: {"strip_prefix": "docker-version" or None}.

    Raises an ExceptionGroup of Bad.
    """
    mistakes = [
        Bad(f"unknown key{did_you_mean(key, ['strip_prefix'])}", (key,)) for key in table if key != "strip_prefix"
    ]
    strip = table.get("strip_prefix")
    if "strip_prefix" in table and strip != DOCKER_VERSION:
        mistakes.append(Bad(f"can only be {DOCKER_VERSION!r}; leave it out for services without", ("strip_prefix",)))
    if mistakes:
        raise ExceptionGroup("mistakes in options", mistakes)
    return {"strip_prefix": DOCKER_VERSION if strip else None}


def presets_listing() -> list[dict[str, Json]]:
    """Return every preset as {"name", "description", "http"}, the last as a file could have it instead."""
    return [
        {"name": name, "description": preset.description, "http": [*preset.entries]} for name, preset in PRESETS.items()
    ]


def _preset(name: object, path: Path, mistakes: list[Bad]) -> list[Json]:
    if not isinstance(name, str):
        mistakes.append(Bad(f"must be a string, not {kind(name)}", path))
        return []
    if name not in PRESETS:
        mistakes.append(Bad(f"unknown preset {quoted(name)}{did_you_mean(name, PRESETS)}", path))
        return []
    return [_entry(one, path, mistakes, deny=False) for one in PRESETS[name].entries]


def _entry(value: object, path: Path, mistakes: list[Bad], *, deny: bool) -> Json:
    if isinstance(value, str):
        methods, slash, rest = value.partition(" /")
        if not slash:
            mistakes.append(Bad(f"must be 'METHOD /path' or 'METHOD,METHOD /path', not {quoted(value)}", path))
            return {}
        names = methods.split(",")
        found = [*map(_method, names), *_alone(names), _path(f"/{rest}")]
        mistakes += [Bad(text, path) for text in found if text is not None]
        return {"methods": [*names], "path": f"/{rest}"}
    if not isinstance(value, dict):
        mistakes.append(Bad(f"must be a string such as 'GET /path', or a table, not {kind(value)}", path))
        return {}
    unknown = [key for key in value if key not in _KEYS]
    mistakes += [Bad(f"unknown key{did_you_mean(str(key), _KEYS)}", (*path, key)) for key in unknown]
    missing = [key for key in ("methods", "path") if key not in value]
    if missing and not unknown:  # an unknown key may be the one that is missing
        mistakes.append(Bad(f"needs {' and '.join(missing)}", path))
    if deny:
        text = "narrows, and is for allows: a deny matches whatever query, body and Upgrade there are"
        mistakes += [Bad(text, (*path, key)) for key in _NARROWING if key in value]
    made: dict[str, Json] = {}
    if "path" in value:
        made["path"] = _string(value["path"], (*path, "path"), _path, mistakes)
    if "methods" in value:
        made["methods"] = _strings(value["methods"], (*path, "methods"), _method, mistakes)
        mistakes += [Bad(text, (*path, "methods")) for text in _alone(value["methods"])]
    if "params" in value:
        made["params"] = _params(value["params"], made.get("path"), (*path, "params"), mistakes)
    if "query" in value:
        made["query"] = _strings(value["query"], (*path, "query"), _nothing, mistakes, empty=True)
    if "upgrade" in value:
        given = _strings(value["upgrade"], (*path, "upgrade"), _protocol, mistakes)
        made["upgrade"] = [name.lower() for name in cast("list[str]", given)]
    if "body" in value:
        made["body"] = _body(value["body"], (*path, "body"), mistakes)
    return made


def _method(method: str) -> str | None:
    if method.upper() == "CONNECT":
        return "CONNECT is never let through"
    if not _METHOD.fullmatch(method):
        upper = method.strip().upper()
        hint = f"; did you mean {upper!r}" if _METHOD.fullmatch(upper) else ""
        return f"{quoted(method)} is no method: they are written in upper case, without spaces{hint}"
    return f"{quoted(method)} is no method: '*' alone is all of them" if "*" in method and method != "*" else None


def _alone(methods: object) -> list[str]:
    if isinstance(methods, list) and ANY_METHOD in methods and len(methods) > 1:
        return ["'*' is all methods: leave the others out"]
    return []


def _path(text: str) -> str | None:
    try:
        parse_path(text)
    except Bad as bad:
        return str(bad)
    return None


def _protocol(text: str) -> str | None:
    name, slash, version = text.partition("/")
    good = _PROTOCOL.fullmatch(name) and (not slash or _PROTOCOL.fullmatch(version))
    return None if good else f"{quoted(text)} is no protocol such as 'tcp' or 'h2c'"


def _nothing(text: str) -> str | None:
    return None


def _params(value: object, pattern: Json, path: Path, mistakes: list[Bad]) -> Json:
    if not isinstance(value, dict):
        mistakes.append(Bad(f"must be a table such as {{ id = ['web-1'] }}, not {kind(value)}", path))
        return {}
    made: dict[str, Json] = {}
    try:
        segments = parse_path(pattern) if isinstance(pattern, str) else ()
    except Bad:  # said already, and nothing is known of its names
        segments = ()
    names = {segment.name: segment for segment in segments if isinstance(segment, Name)}
    for name, values in value.items():
        where = (*path, name)
        if segments and name not in names:
            mistakes.append(Bad(f"no {{{name}}} in the path{did_you_mean(name, names)}", where))
        single = name in names and not names[name].many
        made[name] = _strings(values, where, _one_segment if single else value_fault, mistakes)
    return made


def _one_segment(value: str) -> str | None:
    if "/" in value:
        return "can never match: it has '/', and {name} is one segment; {name...} is more"
    return value_fault(value)


def _body(value: object, path: Path, mistakes: list[Bad]) -> Json:
    if not isinstance(value, dict) or set(value) != {"forbid"}:
        mistakes.append(Bad("must be a table with the key forbid alone: { forbid = ['/HostConfig/Binds'] }", path))
        return {}
    return {"forbid": _strings(value["forbid"], (*path, "forbid"), _condition, mistakes)}


def _condition(text: str) -> str | None:
    try:
        Conditions([text])
    except Bad as bad:
        return str(bad)
    return None


Fault = Callable[[str], str | None]


def _string(value: object, path: Path, fault: Fault, mistakes: list[Bad]) -> str:
    if not isinstance(value, str):
        mistakes.append(Bad(f"must be a string, not {kind(value)}", path))
        return ""
    text = fault(value)
    if text is not None:
        mistakes.append(Bad(text, path))
    return value


def _strings(value: object, path: Path, fault: Fault, mistakes: list[Bad], *, empty: bool = False) -> list[Json]:
    if not isinstance(value, list):
        mistakes.append(Bad(f"must be an array of strings, not {kind(value)}", path))
        return []
    if not value and not empty:
        mistakes.append(Bad("an empty list matches nothing", path))
    if len(value) > MAX_VALUES:
        mistakes.append(Bad(f"has more than {MAX_VALUES} values", path))
        return []
    return [_string(one, (*path, index), fault, mistakes) for index, one in enumerate(value)]


def _array(description: str, item: Json, *, empty: bool = False) -> Json:
    return {"description": description, "type": "array", "minItems": 0 if empty else 1, "items": item}


_TEXT: Final[Json] = {"type": "string", "minLength": 1}
_TABLE: Final[Json] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["methods", "path"],
    "properties": {
        "methods": _array(
            "Methods as in a request; '*' alone: all. GET does not imply HEAD.",
            {"type": "string", "pattern": "^[^a-z]+$"},
        ),
        "path": {
            "description": "{name}: one segment; {name...}: one or more. Without query, and without a version that "
            "strip_prefix takes off.",
            "type": "string",
            "pattern": "^/",
        },
        "params": {
            "description": "For names in the path: the values they may have; '*' and '?' within one segment.",
            "type": "object",
            "additionalProperties": {"type": "array", "minItems": 1, "items": _TEXT},
        },
        "query": _array("Keys that the query may have, and no others; for allows.", {"type": "string"}, empty=True),
        "upgrade": _array("Protocols that Upgrade may ask for, such as 'tcp'; for allows.", _TEXT),
        "body": {
            "description": "Conditions on a JSON body; for allows.",
            "type": "object",
            "additionalProperties": False,
            "required": ["forbid"],
            "properties": {
                "forbid": _array(
                    "JSON Pointers of what must not be set, such as '/HostConfig/Binds'; with '=VALUE', of what must "
                    "not have this value; with '=*', of what must not be there at all.",
                    {"type": "string", "pattern": "^/"},
                )
            },
        },
    },
}

schema: Final[Mapping[str, Json]] = {
    "what": {
        "http": _array(
            "Requests that the rule is about, on a proxy with protocol = 'http'; without http and presets: everything.",
            {"anyOf": [{"type": "string", "pattern": "^[^a-z ]+ /"}, _TABLE]},
        ),
        "presets": _array("Ready-made entries of http, for allows.", {"enum": [*PRESETS]}),
    },
    "options": {
        "description": "Options of protocol 'http'.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "strip_prefix": {
                "description": "A version in front of the path, '/v1.43' or '/v4.6.1', is no part of what rules match.",
                "enum": [DOCKER_VERSION],
            }
        },
    },
}
