"""Heads of requests: what is refused, what is read, what h11 thinks of both, and what of them is passed on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.http.head import CHUNKED, Fields, read_request
from sockguard.protocols.http.known import Known
from sockguard.protocols.http.responses import Refused
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import get

PASSED_ON = re.compile(rb"[A-Za-z0-9-]+")
PROXY = (b"proxy", b"proxy-")
PLAIN = get("/a", "Accept: */*")


def refusal(head: bytes) -> int:
    """The status it is refused with; 0: it is not."""
    try:
        read_request(head)
    except Refused as refused:
        return refused.status
    return 0


@pytest.mark.parametrize(
    "head",
    [
        # the request line
        b"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b" GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a http/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/01.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1,1\r\nHost: x\r\n\r\n",
        b"G(T /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET\x00 /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xe4 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\n",
        # field lines
        get("/a", "A : b"),
        get("/a", "A\t: b"),
        get("/a", " A: b"),
        get("/a", "A: b", " c"),
        get("/a", "A: b", "\tc: d"),
        get("/a", "A: b\nC: d"),
        get("/a", "A: b\rC: d"),
        get("/a", "A: b\r\r"),
        get("/a", "A: \x00"),
        get("/a", "A: \x0b"),
        get("/a", "A: \x7f"),
        get("/a", "A"),
        get("/a", ": b"),
        get("/a", "A(: b"),
        get("/a", "\xe4: b"),
        # Host
        get("/a", host=""),
        get("/a", "Host: x"),
        get("/a", "Host: x", "host: y"),
        get("/a", host="Host: x y"),
        get("/a", host="Host: x/y"),
        get("/a", host="Host: u@x"),
        get("/a", host="Host: x\ty"),
        get("/a", "Host: x", "Host: x", version="1.0", host=""),
        # framing
        get("/a", "Content-Length: 1", "Content-Length: 1"),
        get("/a", "Content-Length: 1", "content-length: 2"),
        get("/a", "Content-Length: 1, 1"),
        get("/a", "Content-Length: 1,"),
        get("/a", "Content-Length:"),
        get("/a", "Content-Length: +1"),
        get("/a", "Content-Length: -1"),
        get("/a", "Content-Length: 0x1"),
        get("/a", "Content-Length: 1_0"),
        get("/a", "Content-Length: 1 0"),
        get("/a", "Content-Length: 1.0"),
        get("/a", "Content-Length: \xb2"),
        get("/a", "Content-Length: 1\x0b"),
        get("/a", "Content-Length: 1000000000000000000000"),
        get("/a", "Transfer-Encoding: chunked", "Content-Length: 1"),
        get("/a", "Content-Length: 0", "Transfer-Encoding: chunked"),
        get("/a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        get("/a", "Transfer-Encoding: identity", "Transfer-Encoding: chunked"),
        get("/a", "Transfer-Encoding: gzip, chunked"),
        get("/a", "Transfer-Encoding: chunked, chunked"),
        get("/a", "Transfer-Encoding: chunked,"),
        get("/a", "Transfer-Encoding: identity"),
        get("/a", "Transfer-Encoding: xchunked"),
        get("/a", "Transfer-Encoding: chunked;q=1"),
        get("/a", 'Transfer-Encoding: "chunked"'),
        get("/a", "Transfer-Encoding: \x0bchunked"),
        get("/a", "Transfer-Encoding:"),
        get("/a", "Transfer-Encoding: chunked", version="1.0"),
        # names that services take for others, and fields that Connection must not take away
        get("/a", "Content_Length: 1"),
        get("/a", "Transfer_Encoding: chunked"),
        get("/a", "Content-Length: 1", "Connection: Content-Length"),
        get("/a", "Transfer-Encoding: chunked", "Connection: close, transfer-encoding"),
        get("/a", "Connection: Host"),
        get("/a", "Connection: content-type"),
        get("/a", "Connection: content-encoding"),
        get("/a", "Content_Encoding: gzip"),
        get("/a", "Content.Length: 1"),
        get("/a", "Content!Length: 1"),
        get("/a", "Connection: a b"),
        get("/a", "Connection: a;b"),
        get("/a", "Content-Type: a/b", "Content-Type: application/json"),
    ],
)
def test_doubts_are_refused(head: bytes) -> None:
    assert refusal(head) == 400


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ([], None),
        (["Content-Length: 0"], 0),
        (["Content-Length: 007"], 7),
        (["content-length:7 \t"], 7),
        (["Transfer-Encoding: chunked"], CHUNKED),
        (["TRANSFER-ENCODING:\tCHUNKED "], CHUNKED),
    ],
)
def test_lengths(fields: list[str], length: int | None) -> None:
    head = read_request(get("/a", *fields))
    assert head.length == length
    assert head.request.has_body == bool(length)


def test_what_is_judged() -> None:
    head = read_request(
        get(
            "/%61?x=1", "Upgrade: TCP", "Connection: upgrade", "Content-Type: a/b; c", "Content-Length: 1", method="PUT"
        )
    )
    request = head.request
    assert (request.method, request.paths, request.query) == ("PUT", ("/a",), (("x", "1"),))
    assert (request.upgrade, request.has_body, request.content_type) == (("tcp",), True, "a/b; c")
    assert head.text == "PUT /a?x=1 upgrade=tcp"


def test_methods_are_exact() -> None:
    assert read_request(get("/a", method="get")).request.method == "get"
    assert read_request(get("/a", method="GETS")).serialise(None).startswith(b"GETS /a HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "field",
    [
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: x",
        "TE: trailers",
        "Trailer: X",
        "Upgrade: tcp",
        "HTTP2-Settings: AA",
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "x_http_method_override: DELETE",
        "X-HTTP_Method-Override: DELETE",
        "X-Original-URL: /b",
        "X-Rewrite-URL: /b",
        "X-Script-Name: /b",
        "Proxy: http://b",
        "SCRIPT_NAME: /a",
        "script_name:",
        "PATH_INFO: /b",
        "wsgi.url_scheme: x",
        "X_Y: z",
        "_: z",
        "X.Y: z",
        "X!Y: z",
        "X'Y: z",
        "X.HTTP.Method.Override: DELETE",
        "Script_Name: /a\r\nSCRIPT_NAME: /b",
    ],
)
def test_fields_that_go_no_further(field: str) -> None:
    assert read_request(get("/a", "A: b", field, "C: d")).serialise(None) == get("/a", "A: b", "C: d")


def test_fields_that_connection_names_go_no_further() -> None:
    head = read_request(get("/a", "X-a: b", "C: d", "Connection: x-A,,", "Connection: y", "Y: z"))
    assert head.serialise(None) == get("/a", "C: d")


def test_other_fields_go_on_as_they_came() -> None:
    fields = (
        "Accept: a",
        "Accept: b",
        "Cookie: \xe4=\t1",
        "X-Y-2: z",
        "Authorization: Basic x",
        "Content-Encoding: gzip",
    )
    assert read_request(get("/a", *fields)).serialise(None) == get("/a", *fields)


@pytest.mark.parametrize(
    ("method", "fields", "last"),
    [
        *((method, ["Content-Length: 1"], True) for method in ("GET", "HEAD", "DELETE", "OPTIONS", "X", "get", "post")),
        *((method, ["Content-Length: 1"], False) for method in ("POST", "PUT", "PATCH", "PROPFIND")),
        ("GET", ["Transfer-Encoding: chunked"], True),
        ("POST", ["Transfer-Encoding: chunked"], False),
        ("GET", ["Content-Length: 0"], False),
        ("GET", [], False),
    ],
)
def test_nothing_follows_a_body_that_is_not_the_custom(method: str, fields: list[str], last: bool) -> None:
    """A service may leave it unread, and take it for the next request: it is told that none comes."""
    head = read_request(get("/a", *fields, method=method))
    assert head.last is last
    assert not head.close
    assert (b"\r\nConnection: close\r\n" in head.serialise(head.length)) is last


@pytest.mark.parametrize("method", ["COPY", "MOVE", "move"])
def test_a_destination_is_judged_as_well(method: str) -> None:
    for to in ("/b%2fc", "http://h/b%2fc", "HTTPS://h:1/b%2fc?x"):
        head = read_request(get("/a", f"Destination: {to}", method=method), known := Known[Fields]())
        assert head.request.paths == ("/a", "/b%2Fc", "/b/c")
        assert f"\r\nDestination: {to}\r\n".encode() in head.serialise(None), "as it came"
        assert read_request(get("/a", f"Destination: {to}", method=method), known) == head
        assert read_request(get("/a", f"Destination: {to}", method="PUT"), known).request.paths == ("/a",)
    for fields in (["Destination: /a/../b"], ["Destination: /a", "Destination: /b"], ["Destination:"],
                   ["Destination: /a b"], ["Destination: \xe4"], ["Destination: b"]):  # fmt: skip
        assert refusal(get("/a", *fields, method=method)) == 400
        assert refusal(get("/a", *fields, method="PUT")) == 0


FIELD = st.one_of(
    st.sampled_from(
        [
            "Host: x", "Host: y", "Host:", "Content-Length: 3", "Content-Length: 0", "Content-Length: +3",
            "Content-Length: 3, 3", "Content-Length : 3", "Content_Length: 3", "Transfer-Encoding: chunked",
            "Transfer-Encoding: Chunked", "Transfer-Encoding: gzip", "Transfer-Encoding:\x0bchunked", " folded: x",
            "Connection: close", "Connection: Upgrade", "Upgrade: tcp", "Expect: 100-continue", "A: b\nC: d", "A: b\r",
            "Connection: content-length", "X: \x00", "X: \xe4", "TE: trailers",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=12),
)  # fmt: skip
LINE = st.one_of(
    st.sampled_from(
        ["GET /a HTTP/1.1", "POST /a HTTP/1.1", "GET /a HTTP/1.0", "GET /a HTTP/1.2", "GET http://h/a HTTP/1.1"]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
)


@given(st.text(st.sampled_from("aZ09-_.!#$%&'*+^`|~"), min_size=1, max_size=12))
def test_names_that_go_on_are_those_that_no_service_takes_for_others(name: str) -> None:
    """Letters, digits and hyphens, as nginx has it by default: for all else CGI has another name."""
    try:
        sent = read_request(get("/a", f"{name}: z")).serialise(None)
    except Refused:
        return
    assert (f"\r\n{name}: z\r\n".encode() in sent) is (PASSED_ON.fullmatch(name.encode()) is not None)


@given(LINE, st.lists(FIELD, max_size=5), st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n"]))
def test_what_h11_refuses_is_refused_and_what_is_read_h11_reads_alike(
    line: str, fields: list[str], body: bytes
) -> None:
    data = "".join(f"{one}\r\n" for one in [line, *fields, ""]).encode("latin-1")
    end = data.find(b"\r\n\r\n") + 4
    try:
        head = read_request(data[:end])
    except Refused:
        return
    if end != len(data):
        return
    framed = {None: b"", 0: b"", 3: b"abc", CHUNKED: b"3\r\nabc\r\n0\r\n\r\n"}.get(head.length)
    if framed is None:
        return
    (theirs,) = oracle.requests(data + framed)
    (ours,) = oracle.requests(head.serialise(head.length) + framed)
    assert isinstance(theirs.start, tuple)
    assert theirs.start[0] == head.method == head.request.method.encode()
    assert theirs.body == ours.body
    assert ours.start == (head.method, head.target)
    dropped = {b"connection", b"upgrade", b"te", b"host", b"expect"}
    assert [f for f in ours.fields if f[0] not in dropped] == sorted(
        (f for f in theirs.fields if f[0] not in dropped and PASSED_ON.fullmatch(f[0]) and f[0][:6] not in PROXY),
        key=lambda f: f[0] in (b"content-length", b"transfer-encoding"),
    )
    assert [f for f in ours.fields if f[0] == b"host"]


def test_serialised_heads_are_read_alike_again() -> None:
    for fields in (["Upgrade: tcp", "Connection: upgrade, close"], ["A: b", "Content-Length: 3"], []):
        once = read_request(get("/a%2fb?c", *fields)).serialise(None)
        assert read_request(once).serialise(None) == once
