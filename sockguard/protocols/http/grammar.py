"""The grammar of RFC 9112 (HTTP/1.1) and RFC 9110 (fields), as patterns over heads, which are bounded.

Where the specifications leave a recipient a choice to be lenient, there is none here: two readers that are lenient
in different ways do not see the same requests. Each pattern runs in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sockguard.protocols.http.limits import MAX_LENGTH_DIGITS

# token = 1*tchar; tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~"
#                          / DIGIT / ALPHA                                                       (RFC 9110, 5.6.2)
_TCHAR: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN: Final = re.compile(_TCHAR + rb"++")

# request-line = method SP request-target SP HTTP-version                                           (RFC 9112, 3)
# HTTP-version = HTTP-name "/" DIGIT "." DIGIT; HTTP-name = %s"HTTP"                              (RFC 9112, 2.3)
REQUEST_LINE: Final = re.compile(rb"(" + _TCHAR + rb"++) ([!-~]++) HTTP/([0-9])\.([0-9])")

# status-line = HTTP-version SP status-code SP [ reason-phrase ]                                    (RFC 9112, 4)
# reason-phrase = 1*( HTAB / SP / VCHAR / obs-text )
# The SP before a missing reason is often missing, too; nothing else can be meant then.
STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*+))?")

# *( field-line CRLF ); field-line = field-name ":" OWS field-value OWS; field-name = token         (RFC 9112, 5)
# field-value = *field-content, of VCHAR, obs-text, SP and HTAB                                   (RFC 9110, 5.5)
# So no space before the colon, no folding (obs-fold), no bare CR or LF.
FIELD_LINES: Final = re.compile(rb"(?:" + _TCHAR + rb"++:[\t -~\x80-\xff]*+\r\n)*")

# What no head can contain, wherever it ends: a line feed or a carriage return that is not half of a CRLF.
BARE: Final = re.compile(rb"[^\r]\n|\r[^\n]")

# Content-Length = 1*DIGIT                                                                        (RFC 9110, 8.6)
CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)

# chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF; chunk-size = 1*HEXDIG                    (RFC 9112, 7.1)
# chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )
# Extensions are dropped, so they are not read further; the white space before them is "bad" (BWS), and refused.
CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*+)?")

# Host = uri-host [ ":" port ]                                                                    (RFC 9110, 7.2)
# The characters of a reg-name, an IP-literal and a port (RFC 3986, 3.2.2); no userinfo.
HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*+")


class BadLine(ValueError):
    """A bare CR or LF, or no end within the limit. ``too_long``: the latter."""

    def __init__(self, text: str, *, too_long: bool = False) -> None:
        super().__init__(text)
        self.too_long = too_long


def find_end(data: memoryview, looked: int, mark: bytes, limit: int) -> int:
    """Return where the first ``mark`` (CRLF, or two of them) ends; 0: it has not come yet.

    looked: so many bytes of ``data`` were there the last time; they are not searched again. Raises BadLine.
    """
    start = max(looked - len(mark) + 1, 0)
    tail = bytes(data[start:limit])
    at = tail.find(mark)
    if at >= 0:
        return start + at + len(mark)
    if BARE.search(tail) is not None or data[0] == 0x0A:
        raise BadLine("a bare carriage return or line feed")
    if len(data) >= limit:
        raise BadLine(f"no end within {limit} bytes", too_long=True)
    return 0


def read_fields(block: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """Read ``*( field-line CRLF )``; None if it is anything else. The caller looks at MAX_FIELDS.

    For each line: the name in lower case, the name as it came, the value without outer white space.
    """
    if FIELD_LINES.fullmatch(block) is None:
        return None
    fields = []
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        fields.append((name.lower(), name, value.strip(b" \t")))
    return fields


def read_tokens(values: Iterable[bytes]) -> set[bytes] | None:
    """Read ``#token`` (RFC 9110, 5.6.1), over all lines of a field, in lower case; None if it is anything else."""
    tokens = set()
    for value in values:
        for part in value.split(b","):
            token = part.strip(b" \t")
            if token:
                if TOKEN.fullmatch(token) is None:
                    return None
                tokens.add(token.lower())
    return tokens
