"""Heads of responses: what h11 refuses is refused, and what is read h11 reads alike, before and after."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.http.head import CHUNKED
from sockguard.protocols.http.response_head import TO_THE_END, read_response
from sockguard.protocols.http.responses import BadResponse
from tests.unit.protocols.http import oracle

LINE = st.one_of(
    st.sampled_from(
        [
            "HTTP/1.1 200 OK",
            "HTTP/1.0 200 OK",
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 304 X",
            "HTTP/1.1 404",
            "HTTP/1.2 200 X",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
FIELD = st.one_of(
    st.sampled_from(
        [
            "Content-Length: 3", "Content-Length: 0", "Content-Length: +3", "Content-Length: 3, 3",
            "Content-Length : 3", "Transfer-Encoding: chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding: gzip",
            " folded: x",
            "Connection: close", "Connection: keep-alive", "Connection: x", "X: y", "A: b\nC: d", "A: b\r", "X: \x00",
            "Upgrade: tcp", "Content-Type: a/b", "Connection: content-length",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=12),
)  # fmt: skip
BODIES = {3: b"abc", 0: b"", CHUNKED: b"3\r\nabc\r\n0\r\n\r\n", TO_THE_END: b"abc"}


@given(LINE, st.lists(FIELD, max_size=4), st.sampled_from(["GET", "HEAD"]))
def test_what_h11_refuses_is_refused_and_what_is_read_h11_reads_alike(
    line: str, fields: list[str], method: str
) -> None:
    data = "".join(f"{one}\r\n" for one in [line, *fields, ""]).encode("latin-1")
    end = data.find(b"\r\n\r\n") + 4
    try:
        head = read_response(data[:end], method)
    except BadResponse:
        return
    body = BODIES.get(head.length)
    if body is None or head.status < 200 or end != len(data):
        return
    (theirs,) = oracle.responses(data + body, method)
    (ours,) = oracle.responses(head.serialise(close=head.close, dechunked=False) + body, method)
    assert theirs.start == ours.start == head.status
    assert theirs.body == ours.body
    dropped = {b"connection", b"upgrade", b"keep-alive", b"content-length", b"transfer-encoding", b"te", b"trailer"}
    assert [f for f in ours.fields if f[0] not in dropped] == [
        f for f in theirs.fields if f[0] not in dropped and ("Connection: x" not in fields or f[0] != b"x")
    ]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
@pytest.mark.parametrize("field", ["", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"])
def test_whether_a_body_follows_is_what_h11_thinks(method: str, status: int, field: str) -> None:
    data = f"HTTP/1.1 {status} X\r\n{field}\r\n".encode()
    if status == 204 and field:
        with pytest.raises(BadResponse):
            read_response(data, method)
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    assert isinstance(client.next_event(), h11.Response)
    assert (client.next_event() is h11.NEED_DATA) == (read_response(data, method).length != 0)
