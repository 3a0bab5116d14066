"""Requests as text: for ``explain`` and ``expect``, for audit events, and from those to rules. Pure.

GET /containers/json?all=1
POST /exec/1/start upgrade=tcp
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final
from urllib.parse import quote_plus

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.http.judge import DOCKER_VERSION, without_version
from sockguard.protocols.http.request import Request
from sockguard.protocols.http.responses import Refused
from sockguard.protocols.http.target import read_target
from sockguard.words import quoted

FORM: Final = '"METHOD /path?query", or with " upgrade=tcp" behind it'

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_TARGET: Final = re.compile(r"[!-~]+")
_UPGRADE: Final = "upgrade="
_Around = tuple[tuple[str, ...], tuple[str, ...]]
_NO_OPTIONS: Final[Mapping[str, Json]] = MappingProxyType({})


def parse_request(text: str, options: Mapping[str, Json] = _NO_OPTIONS) -> Request:
    """Read a request as a person types it. Raises Bad.

    It is taken to have a JSON body: a rule that looks into bodies then answers for a body as it wants it.
    """
    parts = text.split()
    if len(parts) == 3 and parts[2].startswith(_UPGRADE):
        upgrade = tuple(token.lower() for token in parts[2].removeprefix(_UPGRADE).split(","))
    elif len(parts) == 2:
        upgrade = ()
    else:
        raise Bad(f"{quoted(text)} is no request: write {FORM}")
    method, target = parts[:2]
    if not _TOKEN.fullmatch(method) or not all(_TOKEN.fullmatch(token.partition("/")[0]) for token in upgrade):
        raise Bad(f"{quoted(text)} is no request: write {FORM}")
    if not _TARGET.fullmatch(target):
        raise Bad(f"{quoted(target)}: a target is ASCII; what else it has is percent-encoded")
    if method == "CONNECT" or target == "*":
        raise Bad(f"{quoted(text)}: such a request is never let through, whatever the rules say")
    try:
        read = read_target(target.encode("ascii"))
    except Refused as refused:
        raise Bad(f"{quoted(target)} is never let through, whatever the rules say: {refused}") from None
    return Request(method, read.paths, read.query, upgrade, has_body=True, content_type="application/json")


def describe(request: Request) -> str:
    """Write a request as ``parse_request`` reads it; its body is no part of it."""
    query = "&".join(_pair(key, value) for key, value in request.query)
    upgrade = f" {_UPGRADE}{','.join(request.upgrade)}" if request.upgrade else ""
    return f"{request.method} {request.paths[0]}{'?' if query else ''}{query}{upgrade}"


def suggest_what(requests: Sequence[str], options: Mapping[str, Json] = _NO_OPTIONS) -> list[Json]:
    """Make entries of ``http`` that let these requests through, and no other method, path or Upgrade.

    Paths are exact. Where some differ only in what stands behind the collection (/containers/THIS/json) they become
    one entry with ``params`` that lists the values: nothing is let through that was not seen. The query and the body
    are not narrowed: which keys and members matter is for a person to say. With ``strip_prefix`` in ``options`` a
    version is left out. Left out, too: texts that ``parse_request`` cannot read (cut ones, say), and paths with "*",
    which no entry can mean alone.
    """
    strip = options.get("strip_prefix") == DOCKER_VERSION
    seen: defaultdict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    for text in requests:
        try:
            request = parse_request(text)
        except Bad:
            continue
        if not any("*" in path for path in request.paths):
            for path in request.paths:
                seen[without_version(path) if strip else path, request.upgrade].add(request.method)
    for (path, upgrade), methods in list(seen.items()):
        if upgrade:  # an entry with upgrade lets the same through without
            seen[path, ()] -= methods
    alike: defaultdict[tuple[_Around, tuple[str, ...], tuple[str, ...]], set[str]] = defaultdict(set)
    for (path, upgrade), methods in seen.items():
        if methods:
            around, value = _split(path)
            alike[around, tuple(sorted(methods)), upgrade].add(value)
    return [_entry(around, values, methods, upgrade) for (around, methods, upgrade), values in sorted(alike.items())]


def _split(path: str) -> tuple[_Around, str]:
    """Split into what stands before and behind the member of a collection, and that; "" when it is no such path."""
    segments = tuple(path[1:].split("/"))
    at = 2 if segments[0] == "libpod" else 1
    if len(segments) < at + 2:
        return (segments, ()), ""
    return (segments[:at], segments[at + 1 :]), segments[at]


def _entry(around: _Around, values: set[str], methods: tuple[str, ...], upgrade: tuple[str, ...]) -> Json:
    before, behind = around
    places = [{one} for one in before] + ([] if values == {""} else [values]) + [{one} for one in behind]
    path = ""
    params: dict[str, Json] = {}
    for place in places:
        one = min(place)
        if len(place) > 1 or "%" in one:
            name = f"id{len(params) + 1}" if params else "id"
            params[name] = [*sorted(place)]
            one = f"{{{name}}}"
        path += f"/{one}"
    if not params and not upgrade:
        return f"{','.join(methods)} {path}"
    entry: dict[str, Json] = {"methods": [*methods], "path": path}
    if params:
        entry["params"] = params
    if upgrade:
        entry["upgrade"] = [*upgrade]
    return entry


def _pair(key: str, value: str | None) -> str:
    return quote_plus(key) if value is None else f"{quote_plus(key)}={quote_plus(value)}"
