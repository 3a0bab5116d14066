"""Heads of requests: read strictly, and written anew from what was read. No byte of the client's own head goes on.

A client's requests differ in the request line, and hardly in what follows it: that is known again.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple

from sockguard.protocols.http.grammar import (
    CONTENT_LENGTH,
    HOST,
    REQUEST_LINE,
    TOKEN,
    read_fields,
    read_tokens,
)
from sockguard.protocols.http.known import Known, has_credentials, part_length
from sockguard.protocols.http.limits import MAX_FIELDS
from sockguard.protocols.http.request import Request
from sockguard.protocols.http.responses import Refused
from sockguard.protocols.http.target import read_target

CHUNKED: Final = -1
"""As a length: the body comes in chunks (RFC 9112, 7.1)."""

_PASSED_ON: Final = frozenset({b"content-type", b"content-encoding", b"destination"})
_READ: Final = _PASSED_ON | {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"}
_HOP_BY_HOP: Final = frozenset({b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings"})  # RFC 9110, 7.6.1
_OVERRIDES: Final = frozenset(
    {b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-method"}
    | {b"x-original-url", b"x-original-uri", b"x-rewrite-url", b"x-override-url", b"x-script-name", b"proxy"}
)
"""What some frameworks take for the method or the path instead of those that were judged; and Proxy, which CGI makes a
variable of that is a setting (HTTP_PROXY).
"""

_SPECIAL: Final = _READ | _HOP_BY_HOP | _OVERRIDES

_BODY_BY_CUSTOM: Final = frozenset(
    {b"POST", b"PUT", b"PATCH", b"QUERY", b"PROPFIND", b"PROPPATCH", b"REPORT", b"SEARCH", b"LOCK"}
)
"""Methods whose definition gives a body its meaning (RFC 9110, 9.3; RFC 5789; RFC 4918, 3253, 5323). With any other a
service may leave the body unread, and take it for its next request: http.server of Python does so with GET.
"""

_TWO_PATHS: Final = frozenset({b"COPY", b"MOVE"})
"""Methods that write where Destination says (RFC 4918, 9.8, 9.9, 10.3): an allow has to hold there, too."""
_VISIBLE: Final = re.compile(rb"[!-~]+")

_ODD: Final = re.compile(rb"[^a-z0-9-]")
"""What nginx takes for invalid in the name of a field, by default, and drops with the field (its manual:
ignore_invalid_headers, underscores_in_headers); so does Apache. To CGI, WSGI and what is made like them "-" and "_" are
one character, and to some servers any other one too (lighttpd): so such a name may be that of another field, or of a
variable. gunicorn runs ``SCRIPT_NAME: /a`` as what remains of the path without "/a".
"""

# Upgrade = #protocol; protocol = protocol-name [ "/" protocol-version ], both of them tokens    (RFC 9110, 7.8)
_PROTOCOL: Final = re.compile(TOKEN.pattern + rb"(?:/" + TOKEN.pattern + rb")?")

# HTTP2-Settings = token68                                                          (RFC 7540, 3.2.1; RFC 9110, 11.2)
_TOKEN68: Final = re.compile(rb"[A-Za-z0-9\-._~+/]*+=*+")


class RequestHead(NamedTuple):
    """A request's head.

    request   what is judged
    method, target, host  as they are passed on
    lines     the other fields that are passed on, each a whole line
    length    of the body in bytes, CHUNKED, or None when none was announced
    protocols of Upgrade, as they came
    settings  the value of HTTP2-Settings
    close     the client asks for the connection to end after the response, or has HTTP/1.0
    last      no other request may follow it on the connection to the service, which may leave its body unread
    old       HTTP/1.0: it can read neither chunks nor interim responses (RFC 9110, 15.2)
    encoded   its body has a Content-Encoding: it is not what it seems to be
    expects   it may wait for 100 (Continue) before it sends the body (RFC 9110, 10.1.1)
    private   it has credentials
    """

    request: Request
    method: bytes
    target: bytes
    host: bytes
    lines: bytes
    length: int | None
    protocols: tuple[bytes, ...]
    settings: bytes | None
    close: bool
    last: bool
    old: bool
    encoded: bool
    expects: bool
    private: bool

    @property
    def text(self) -> str:
        """The request for people, in the form that ``texts.parse_request`` reads."""
        upgrade = f" upgrade={','.join(self.request.upgrade)}" if self.request.upgrade else ""
        return f"{self.request.method} {self.target.decode('ascii')}{upgrade}"

    def without_h2c(self) -> RequestHead:
        """The same request without the wish to go on in HTTP/2 (RFC 7540, 3.2)."""
        kept = tuple(protocol for protocol in self.protocols if protocol.lower() != b"h2c")
        upgrade = tuple(protocol for protocol in self.request.upgrade if protocol != "h2c")
        return self._replace(request=replace(self.request, upgrade=upgrade), protocols=kept, settings=None)

    def serialise(self, length: int | None) -> bytes:
        """Write the head as it is passed on, announcing a body of that length (or CHUNKED, or None)."""
        parts = [b"%s %s HTTP/1.1\r\nHost: %s\r\n%s" % (self.method, self.target, self.host, self.lines)]
        options = [b"close"] if self.close or self.last else []
        if self.protocols:
            parts.append(b"Upgrade: %s\r\n" % b", ".join(self.protocols))
            options.append(b"Upgrade")
            if self.settings is not None and "h2c" in self.request.upgrade:
                parts.append(b"HTTP2-Settings: %s\r\n" % self.settings)
                options.append(b"HTTP2-Settings")
        if options:
            parts.append(b"Connection: %s\r\n" % b", ".join(options))
        if length is not None:
            parts.append(b"Transfer-Encoding: chunked\r\n" if length == CHUNKED else b"Content-Length: %d\r\n" % length)
        parts.append(b"\r\n")
        return b"".join(parts)


class Fields(NamedTuple):
    """What the fields of a head say, all of which is in RequestHead too. A function of their bytes and the version.

    host      of Host
    upgrade   protocols, lower case
    to        values of Destination
    """

    host: bytes
    lines: bytes
    length: int | None
    protocols: tuple[bytes, ...]
    upgrade: tuple[str, ...]
    settings: bytes | None
    close: bool
    encoded: bool
    expects: bool
    private: bool
    content_type: str | None
    to: tuple[bytes, ...]


def read_request(head: bytes, known: Known[Fields] | None = None) -> RequestHead:
    """Read a request's head, from its first byte to the end of its empty line.

    known: fields of HTTP/1.1 that were read without a fault. They are found by all their bytes but the digits of a
    Content-Length, of which nothing else in Fields depends, and which are read here each time.

    Raises Refused: 403 for what no rule can allow, 505 for other versions of HTTP, 417, 431, and 400 for all else.
    """
    line, mark, block = head[:-2].partition(b"\r\n")
    matched = REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise Refused(400, "a bad request line")
    method, raw_target, major, minor = matched.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise Refused(505, "HTTP/2 is refused" if method == b"PRI" else "neither HTTP/1.0 nor HTTP/1.1")
    old = minor == b"0"
    lined = mark + block
    key, length = part_length(lined)
    fields = known.get(key) if known is not None and not old else None
    new = _fields(block) if fields is None else ({}, [])
    if method == b"CONNECT" or (method == b"OPTIONS" and raw_target == b"*"):
        raise Refused(403, "CONNECT and OPTIONS * are never allowed")
    paths, query, forwarded, authority = read_target(raw_target)
    if fields is None:
        fields = _meaning(*new, old=old, private=has_credentials(lined))
        if known is not None and not old:
            known.keep(key, fields, private=fields.private)
    host, lines, announced, protocols, upgrade, settings, close, encoded, expects, private, content_type, to = fields
    if to and method.upper() in _TWO_PATHS:
        paths = (*paths, *_destination(to))
    if length is None:
        length = announced
    return RequestHead(
        Request(method.decode("ascii"), paths, query, upgrade, bool(length), content_type),
        method,
        forwarded,
        authority or host,
        lines,
        length,
        protocols,
        settings,
        close,
        bool(length) and method not in _BODY_BY_CUSTOM,
        old,
        encoded,
        expects,
        private,
    )


_Special = dict[bytes, list[bytes]]
_Lines = list[tuple[bytes, bytes]]


def _fields(block: bytes) -> tuple[_Special, _Lines]:
    """Part the fields that are looked at, by their lower-case names, from those that are passed on."""
    if block.count(b"\n") > MAX_FIELDS:
        raise Refused(431, "too many fields")
    fields = read_fields(block)
    if fields is None:
        raise Refused(400, "a bad field line")
    special: _Special = {}
    lines = []
    for lower, name, value in fields:
        if _ODD.search(lower) is not None:
            plain = _ODD.sub(b"-", lower)
            if plain in _SPECIAL and plain not in _OVERRIDES:
                raise Refused(400, "the name of a field that is looked at, in another spelling")
            continue
        if lower in _SPECIAL or lower.startswith(b"proxy-"):
            if lower in _OVERRIDES:
                continue
            special.setdefault(lower, []).append(value)
            if lower not in _PASSED_ON:
                continue
        lines.append((lower, b"%s: %s\r\n" % (name, value)))
    return special, lines


def _meaning(special: _Special, lines: _Lines, *, old: bool, private: bool) -> Fields:
    options = _connection(special, lines)
    length = _length(special, old=old)
    protocols = _protocols(special) if b"upgrade" in options and not old else ()
    types = special.get(b"content-type", [])
    if len(types) > 1:
        raise Refused(400, "more than one Content-Type")
    return Fields(
        _host(special, old=old),
        b"".join([line for _, line in lines]),
        length,
        protocols,
        tuple(protocol.decode("ascii").lower() for protocol in protocols),
        _settings(special, options) if protocols else None,
        old or b"close" in options,
        b"content-encoding" in special,
        _expects(special) and not old,
        private,
        types[0].decode("latin-1") if types else None,
        tuple(special.get(b"destination", ())),
    )


def _destination(values: tuple[bytes, ...]) -> tuple[str, ...]:
    """Read the second path of a request that has two: in the forms of the first, and of https as well."""
    if len(values) > 1 or _VISIBLE.fullmatch(values[0]) is None:
        raise Refused(400, "a bad Destination, or more than one")
    value = values[0]
    return read_target(b"http" + value[5:] if value[:6].lower() == b"https:" else value).paths


def _connection(special: _Special, lines: _Lines) -> set[bytes]:
    """Return the options of Connection, and drop the fields that it names (RFC 9110, 7.6.1)."""
    if b"connection" not in special:
        return set()
    options = read_tokens(special[b"connection"])
    if options is None:
        raise Refused(400, "a bad Connection")
    if not _READ.isdisjoint(options):
        raise Refused(400, "a Connection that names a field of the whole message")
    lines[:] = [field for field in lines if field[0] not in options]
    return options


def _length(special: _Special, *, old: bool) -> int | None:
    """Return the body's length: Transfer-Encoding and Content-Length, as RFC 9112, 6.3 has it, without any leniency."""
    codings = special.get(b"transfer-encoding")
    lengths = special.get(b"content-length")
    if codings is not None:
        if old or lengths is not None or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise Refused(400, "a Transfer-Encoding that is not chunked alone")
        return CHUNKED
    if lengths is None:
        return None
    if len(lengths) > 1 or CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise Refused(400, "a bad Content-Length, or more than one")
    return int(lengths[0])


def _host(special: _Special, *, old: bool) -> bytes:
    hosts = special.get(b"host", [])
    if len(hosts) != 1 and not (old and not hosts):
        raise Refused(400, "not exactly one Host")
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise Refused(400, "a bad Host")
    return hosts[0] if hosts else b"localhost"


def _protocols(special: _Special) -> tuple[bytes, ...]:
    protocols = [part.strip(b" \t") for value in special.get(b"upgrade", []) for part in value.split(b",")]
    protocols = [protocol for protocol in protocols if protocol]
    if any(_PROTOCOL.fullmatch(protocol) is None for protocol in protocols):
        raise Refused(400, "a bad Upgrade")
    return tuple(protocols)


def _settings(special: _Special, options: set[bytes]) -> bytes | None:
    settings = special.get(b"http2-settings")
    if settings is None or b"http2-settings" not in options:
        return None
    if len(settings) > 1 or _TOKEN68.fullmatch(settings[0]) is None:
        raise Refused(400, "a bad HTTP2-Settings, or more than one")
    return settings[0]


def _expects(special: _Special) -> bool:
    values = special.get(b"expect")
    if values is None:
        return False
    if [value.lower() for value in values] != [b"100-continue"]:
        raise Refused(417, "an Expect other than 100-continue")
    return True
