"""Heads of responses: read strictly, and written anew from what was read."""

from __future__ import annotations

from typing import Final, NamedTuple

from sockguard.protocols.http.grammar import CONTENT_LENGTH, STATUS_LINE, read_fields, read_tokens
from sockguard.protocols.http.head import CHUNKED
from sockguard.protocols.http.limits import MAX_FIELDS
from sockguard.protocols.http.responses import BadResponse

TO_THE_END: Final = 1 << 62
"""As a length: the body lasts until the service closes (RFC 9112, 6.3, rule 8). More bytes than any service sends."""

_READ: Final = frozenset({b"connection", b"content-length", b"content-type", b"transfer-encoding", b"upgrade"})
_DROPPED: Final = frozenset({b"keep-alive", b"proxy-connection", b"te", b"trailer"})  # RFC 9110, 7.6.1
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_RAW_STREAMS: Final = frozenset({b"application/vnd.docker.raw-stream", b"application/vnd.docker.multiplexed-stream"})
"""Media types of the streams that the Docker API makes of a connection (its documentation of attach)."""


class ResponseHead(NamedTuple):
    """A response's head.

    status    three digits; below 200: an interim response, after which another follows
    lines     the fields that are passed on as they came, each a whole line
    announced length of the body in bytes, or CHUNKED; None where the response says neither
    bodyless  no body follows, whatever was announced: to HEAD, and by the status (RFC 9112, 6.3, rule 1)
    protocols of Upgrade, lower case, if the status is 101
    close     the service ends the connection after it
    raw       it has a media type of Docker's raw streams
    """

    status: int
    reason: bytes
    lines: list[bytes]
    announced: int | None
    bodyless: bool
    protocols: tuple[bytes, ...]
    close: bool
    raw: bool

    def serialise(self, *, close: bool, dechunked: bool) -> bytes:
        """Write the head as it is passed on. dechunked: a chunked body goes on as one that lasts to the end."""
        parts = [b"HTTP/1.1 %d %s\r\n" % (self.status, self.reason), *self.lines]
        if self.status == 101:
            parts.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % b", ".join(self.protocols))
        elif close:
            parts.append(b"Connection: close\r\n")
        if self.announced == CHUNKED:
            parts.append(b"" if dechunked else b"Transfer-Encoding: chunked\r\n")
        elif self.announced is not None:
            parts.append(b"Content-Length: %d\r\n" % self.announced)
        parts.append(b"\r\n")
        return b"".join(parts)

    @property
    def length(self) -> int:
        """Bytes of body that follow; CHUNKED or TO_THE_END where that is not known."""
        if self.bodyless:
            return 0
        return TO_THE_END if self.announced is None else self.announced


def read_response(head: bytes, method: str) -> ResponseHead:
    """Read a response's head, from its first byte to the end of its empty line. ``method``: of the request.

    Raises BadResponse for doubtful framing too: two lengths, a length beside a coding, a coding that is not chunked.
    """
    line, _, block = head[:-2].partition(b"\r\n")
    matched = STATUS_LINE.fullmatch(line)
    if matched is None:
        raise BadResponse("a bad status line")
    fields = None if block.count(b"\n") > MAX_FIELDS else read_fields(block)
    if fields is None:
        raise BadResponse("a bad field line, or too many of them")
    minor, code, reason = matched.groups()
    status = int(code)
    special: dict[bytes, list[bytes]] = {}
    lines = []
    for lower, name, value in fields:
        if lower in _READ:
            special.setdefault(lower, []).append(value)
            if lower != b"content-type":
                continue
        elif lower in _DROPPED:
            continue
        lines.append((lower, b"%s: %s\r\n" % (name, value)))
    options = read_tokens(special.get(b"connection", ()))
    if options is None or not _FRAMING.isdisjoint(options):
        raise BadResponse("a bad Connection")
    if options:
        lines = [line for line in lines if line[0] not in options]
    announced = _announced(special, minor)
    if status < 200 or status == 204:
        if announced:
            raise BadResponse(f"a body in a response {status}")
        announced = None  # a length of 0, which such a response must not have, and which says nothing (RFC 9110, 8.6)
    bodyless = method == "HEAD" or status < 200 or status in (204, 304)
    return ResponseHead(
        status,
        reason or b"",
        [line for _, line in lines],
        announced,
        bodyless,
        _protocols(special.get(b"upgrade", [])) if status == 101 else (),
        (announced is None and not bodyless) or b"close" in options or (minor == b"0" and b"keep-alive" not in options),
        _is_raw(special.get(b"content-type", [])),
    )


def _announced(special: dict[bytes, list[bytes]], minor: bytes) -> int | None:
    codings = special.get(b"transfer-encoding")
    lengths = special.get(b"content-length")
    if codings is not None:
        if minor == b"0" or lengths is not None or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadResponse("a Transfer-Encoding that is not chunked alone")
        return CHUNKED
    if lengths is None:
        return None
    if len(lengths) > 1 or CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise BadResponse("a bad Content-Length, or more than one")
    return int(lengths[0])


def _protocols(values: list[bytes]) -> tuple[bytes, ...]:
    parts = b",".join(values).lower().split(b",")
    return tuple(protocol for part in parts if (protocol := part.strip(b" \t")))


def _is_raw(types: list[bytes]) -> bool:
    return len(types) == 1 and types[0].partition(b";")[0].strip(b" \t").lower() in _RAW_STREAMS
