"""Request targets: what a path may mean to a service, and the one form in which it is passed on."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes

from sockguard.protocols.http.grammar import HOST
from sockguard.protocols.http.limits import MAX_PAIRS, MAX_READ_PATH
from sockguard.protocols.http.readings import other_paths
from sockguard.protocols.http.responses import Refused

# absolute-path = 1*( "/" segment ); segment = *pchar                                    (RFC 9110, 4.1; RFC 3986, 3.3)
# pchar = unreserved / pct-encoded / sub-delims / ":" / "@"
# Besides: no empty segment but the last, and none that is "." or "..", with or without parameters (";...").
_PATH: Final = re.compile(r"/|(?:/(?!\.{1,2}(?:[/;]|$))[A-Za-z0-9\-._~!$&'()*+,;=:@%]++)+/?+", re.ASCII)

_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")
_NEVER: Final = frozenset(".\\\x7f") | {chr(code) for code in range(0x20)}
_PLAIN_OR_ESCAPED: Final = re.compile("%(?:" + "|".join(f"{ord(c):02X}" for c in "!$&'()*+,;=:@") + ")")


class Target(NamedTuple):
    """A request target that can be judged.

    paths      see Request.paths
    query      see Request.query
    forwarded  the target in origin-form, as it is passed on: the path with escapes of unreserved characters decoded
               and the digits of others in upper case, so that what is judged is what is sent; the query as it came
    host       the authority of an absolute-form, which takes the place of Host (RFC 9112, 3.2.2); else None
    """

    paths: tuple[str, ...]
    query: tuple[tuple[str, str | None], ...]
    forwarded: bytes
    host: bytes | None = None


def read_target(raw: bytes) -> Target:
    """Read an origin-form, or an absolute-form of the scheme http, which is turned into one.

    ``raw``: visible ASCII characters. Raises Refused with status 400 for what services may read in different ways.
    """
    text = raw.decode("ascii")
    host = None
    if not text.startswith("/"):
        text, host = _without_authority(text)
    if "#" in text:
        raise Refused(400, "a fragment in the request target")
    path, mark, query = text.partition("?")
    if len(path) > MAX_READ_PATH and ("%" in path or ";" in path):
        raise Refused(400, "a long path with escapes or parameters")
    if "%" not in path:
        _check(path)
        paths = (path, *other_paths(path)) if ";" in path else (path,)
        return Target(paths, _pairs(query) if query else (), raw if host is None else text.encode("ascii"), host)
    kept = _ESCAPE.sub(_normalised, path)
    try:
        unquote_to_bytes(kept).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "escapes in the path that are not UTF-8") from None
    # Plain text beside a reading of each kind: dict.fromkeys keeps the order and drops what is the same.
    readings = dict.fromkeys(
        reading
        for slashes in (kept, kept.replace("%2F", "/"))
        for reading in (slashes, _PLAIN_OR_ESCAPED.sub(_decoded, slashes))
    )
    for reading in list(readings):
        _check(reading)
        readings.update(dict.fromkeys(other_paths(reading)))
    return Target(tuple(readings), _pairs(query) if query else (), f"{kept}{mark}{query}".encode("ascii"), host)


def _without_authority(text: str) -> tuple[str, bytes]:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() != "http":
        raise Refused(400, "a request target in no known form")
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    authority, path = rest[:end].encode("ascii"), rest[end:]
    if not authority or HOST.fullmatch(authority) is None:
        raise Refused(400, "a bad authority in the request target")
    return path if path.startswith("/") else "/" + path, authority


def _check(path: str) -> None:
    if _PATH.fullmatch(path) is None:
        raise Refused(400, "a path that services may read in different ways")


def _normalised(escape: re.Match[str]) -> str:
    digits = escape[1]
    if digits is None:
        raise Refused(400, "a broken escape in the path")
    character = chr(int(digits, 16))
    if character in _NEVER:
        raise Refused(400, "an escaped dot, backslash or control character in the path")
    return character if character in _UNRESERVED else "%" + digits.upper()


def _decoded(escape: re.Match[str]) -> str:
    return chr(int(escape[0][1:], 16))


def _pairs(query: str) -> tuple[tuple[str, str | None], ...]:
    """Read a query as a form (URL Standard, application/x-www-form-urlencoded), in both ways of separating it."""
    escaped = "%" in query
    if escaped and any(escape[1] is None for escape in _ESCAPE.finditer(query)):
        raise Refused(400, "a broken escape in the query")
    parts = query.split("&")
    if ";" in query:
        parts += query.replace(";", "&").split("&")
    if len(parts) > MAX_PAIRS:
        raise Refused(400, "too many keys in the query")
    form = _form if escaped else _plain
    pairs: dict[tuple[str, str | None], None] = {}
    for part in parts:
        if part:
            key, equals, value = part.partition("=")
            pairs[form(key), form(value) if equals else None] = None
    return tuple(pairs)


def _form(text: str) -> str:
    return unquote_plus(text, errors="replace")


def _plain(text: str) -> str:
    return text.replace("+", " ")
