"""What sockguard itself answers: the replies to requests that go no further."""

from __future__ import annotations

import json
from typing import Final

from sockguard.protocols.http.limits import MAX_MESSAGE

REASONS: Final = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    413: b"Content Too Large",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    505: b"HTTP Version Not Supported",
}
"""By status code (RFC 9110, 15; RFC 6585, 5)."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Refused(ValueError):
    """A request that cannot be judged. ``status``: of the reply; the text is for people."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class BadResponse(ValueError):
    """A response that the service should not have sent; the text is for people."""


def reply(status: int, message: str, *, close: bool, to_head: bool = False) -> bytes:
    """Make a whole response: ``{"message": ...}``, the form in which the Docker API tells of errors.

    close: the connection ends with it. to_head: to a HEAD request, so that the body is left out (RFC 9110, 9.3.2).
    """
    body = json.dumps({"message": f"sockguard: {message[:MAX_MESSAGE]}"}).encode("ascii")
    return b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status,
        REASONS[status],
        len(body),
        b"Connection: close\r\n" if close else b"",
        b"" if to_head else body,
    )
