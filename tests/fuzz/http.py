"""The parsers of HTTP."""

from __future__ import annotations

from typing import Any, Final, cast

from sockguard.protocols.base import RequestRules, RequestVerdict
from sockguard.protocols.http.body import BadChunk, ChunkReader, Piece
from sockguard.protocols.http.grammar import BadLine
from sockguard.protocols.http.head import read_request
from sockguard.protocols.http.inspector import HttpInspector
from sockguard.protocols.http.known import Known
from sockguard.protocols.http.request import Request
from sockguard.protocols.http.response_head import read_response
from sockguard.protocols.http.responses import BadResponse, Refused
from sockguard.protocols.http.target import read_target
from tests.fuzz.target import Target
from tests.unit.protocols.http import oracle
from tests.unit.protocols.playbook import Play

_POST: Final = b"POST /a%2fb;c?d=e HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n"
_CHUNKS: Final = b"5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n"
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x\r\nX: y\r\n\r\nok"


class _Allow:
    """Stands for HttpRules: what is fuzzed is the reader. /no is denied, /body by its body, and any Upgrade."""

    def __init__(self) -> None:
        self.known: Known[Any] = Known()

    def judge(self, request: Request) -> RequestVerdict:
        allowed = "/no" not in request.paths and not request.upgrade
        return RequestVerdict(allowed, None, "")

    def wants_body(self, request: Request) -> bool:
        return "/body" in request.paths

    def judge_body(self, request: Request, body: bytes) -> RequestVerdict:
        return RequestVerdict(body == b"good" and self.judge(request).allowed, None, "")

    def meant(self, request: Request) -> Request:
        return request

    def allows_h2c(self, request: Request) -> bool:
        return False


def _target(data: bytes) -> None:
    if all(0x21 <= byte < 0x7F for byte in data):
        target = read_target(data)
        assert read_target(target.forwarded).paths == target.paths


def _request(data: bytes) -> None:
    """What is read is written so that h11, and we again, read the same."""
    head = read_request(data)
    plain = head.serialise(None)
    assert oracle.requests(plain)[0].start == (head.method, head.target)
    assert read_request(plain).serialise(None) == plain


def _response(data: bytes) -> None:
    head = read_response(data, "GET")
    if head.status >= 200 and head.length == 0:
        assert oracle.responses(head.serialise(close=False, dechunked=False), "GET")[0].start == head.status


def _chunks(data: bytes) -> None:
    """At once and byte by byte: the same body and the same end."""
    whole, pieces = ChunkReader(), ChunkReader()
    expected: list[Piece] = []
    used = whole.read(memoryview(data), expected)
    waiting, found, total = b"", list[Piece](), 0
    for byte in data:
        waiting += bytes((byte,))
        count = pieces.read(memoryview(waiting), found)
        waiting = waiting[count:]
        total += count
        if pieces.done:
            break
    assert (total, pieces.done, b"".join(found)) == (used, whole.done, b"".join(expected))


def _connection(data: bytes) -> None:
    """A client's stream, and then a service's: at once and byte by byte, to one end. (But for bytes behind a response
    that come with it, or too late to be seen.)
    """
    client, _, backend = data.partition(b"\0")
    ends = []
    for piece in (0, 1):
        one = Play(HttpInspector, cast("RequestRules", _Allow()), piece=piece)
        for come, ended, stream in ((one.client, one.client_ends, client), (one.backend, one.backend_ends, backend)):
            if one.end_of_it is None:
                come(stream)
            if one.end_of_it is None:
                ended()
        oracle.begun(one.to_backend)
        ends.append((one.outcome, one.audits))
    assert backend or ends[0] == ends[1]


TARGETS: Final = {
    "http-target": Target(_target, (Refused,), (b"/a%2fb/c?d=%20;e", b"http://h:1/a", b"/..;/%2e%3a")),
    "http-request": Target(
        _request,
        (Refused,),
        (_POST, b"GET / HTTP/1.0\r\nUpgrade: h2c\r\nConnection: Upgrade, a\r\nHTTP2-Settings: A\r\n\r\n"),
    ),
    "http-response": Target(_response, (BadResponse,), (_OK[:-2], b"HTTP/1.0 204 X\r\nUpgrade: a\r\n\r\n")),
    "http-chunks": Target(_chunks, (BadChunk, BadLine), (_CHUNKS, b"1\r\nx\r\n1\r\ny\r\n0\r\n\r\n")),
    "http-connection": Target(
        _connection,
        (),
        (
            _POST + _CHUNKS + b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n\0" + _OK,
            b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ngood\0HTTP/1.1 103 X\r\n\r\n" + _OK,
            b"POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbad!GET / HTTP/1.0\r\n\r\n",
        ),
    ),
}
