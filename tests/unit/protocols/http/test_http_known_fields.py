"""Fields that are known again behind another request line, and heads of which only the length is new."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import RequestRules
from sockguard.protocols.http import limits
from sockguard.protocols.http.head import Fields, RequestHead, read_request
from sockguard.protocols.http.inspector import HttpInspector
from sockguard.protocols.http.known import Known, has_credentials, part_length
from sockguard.protocols.http.responses import Refused
from tests.unit.protocols.http.exchanges import OK, get, result
from tests.unit.protocols.http.ruling import allow, compiled
from tests.unit.protocols.playbook import Play

LINES = [
    b"GET /a HTTP/1.1",
    b"GET /b?x=1 HTTP/1.1",
    b"POST http://other/a HTTP/1.1",
    b"GET /a HTTP/1.0",
    b"GET /../a HTTP/1.1",
    b"CONNECT a HTTP/1.1",
    b"GET /a HTTP/2.0",
    b"GET  /a HTTP/1.1",
]
FIELDS = [
    b"Host: x\r\n",
    b"Host: y\r\n",
    b"A: b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 77\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 007\r\n",
    b"Content-Length: \r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"content-length: 5\r\n",
    b"Content-Length:5\r\n",
    b"Content-Length: 1" + b"0" * limits.MAX_LENGTH_DIGITS + b"\r\n",
    b"X: y\r\n\r\n",
    b"\n",
    b"\r\n",
    b"Connection: a, close\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n",
    b"Connection: content-length\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Type: application/json\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Authorization: x\r\n",
]


def read(head: bytes, known: Known[Fields] | None) -> RequestHead | tuple[int, str]:
    try:
        return read_request(head, known)
    except Refused as refused:
        return refused.status, str(refused)


BLOCKS = st.lists(st.sampled_from(FIELDS), max_size=5).map(b"".join)
LIKELY = st.builds(
    bytes.__add__, st.just(b"Host: x\r\n"), st.lists(st.sampled_from(FIELDS[2:8]), max_size=3).map(b"".join)
)


@given(st.lists(st.tuples(st.sampled_from(LINES[:4]) | st.sampled_from(LINES), BLOCKS | LIKELY), max_size=30))
def test_a_request_is_read_as_if_nothing_were_known(heads: list[tuple[bytes, bytes]]) -> None:
    known: Known[Fields] = Known()
    for line, block in heads * 2:
        head = line + b"\r\n" + block + b"\r\n"
        assert read(head, known) == read(head, None)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("other", FIELDS)
def test_no_field_is_taken_for_another(field: bytes, other: bytes) -> None:
    """In each place among the fields: what was read before leaves no mark on what is read next."""
    for form in (b"Host: x\r\n%sA: b\r\n", b"Host: x\r\nA: b\r\n%s", b"%sHost: x\r\n"):
        known: Known[Fields] = Known()
        for line in LINES:
            for one in (field, other):
                head = line + b"\r\n" + form % one + b"\r\n"
                assert read(head, known) == read(head, None)


def test_fields_are_read_once_for_all_paths_and_lengths() -> None:
    known: Known[Fields] = Known()
    for number in range(3):
        read_request(get(f"/{number}", f"Content-Length: {number}", method="POST"), known)
        read_request(get(f"/{number}", "X: y"), known)
        read_request(get(f"/{number}", "X: y", version="1.0"), known)
    assert len(known) == 2


@pytest.mark.parametrize(
    "name",
    ["Authorization", "X-Registry-Auth", "X-Registry-Config", "X-Vault-Token", "Private-Token", "X-Api-Key", "COOKIE",
     "X_Auth1"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}Host: x\r\n", "Host: x\r\n{}", "Host: x\r\nContent-Length: 5\r\n{}"])
def test_fields_with_credentials_are_not_kept(name: str, form: str) -> None:
    """Wherever they stand, the first line and what follows a length included."""
    known: Known[Fields] = Known()
    head = f"POST /a HTTP/1.1\r\n{form.format(f'{name}: abc{chr(13)}{chr(10)}')}\r\n".encode()
    assert has_credentials(head)
    assert read_request(head, known).private
    assert not known


def test_many_and_long_fields_are_not_all_kept() -> None:
    known: Known[Fields] = Known()
    for number in range(limits.MAX_KNOWN + 1):
        read_request(get("/", f"X: {number}"), known)
    assert len(known) == 1
    read_request(get("/", "X: " + "y" * limits.MAX_KNOWN_HEAD), known)
    assert len(known) == 1


def test_a_head_of_all_its_bytes_is_none_that_lacks_a_length() -> None:
    """Whatever a client writes where the digits were, or instead of their line, finds no such entry."""
    whole = b"\r\nHost: x\r\nContent-Length: 5\r\nA: b\r\n"
    key, length = part_length(whole)
    assert isinstance(key, tuple)
    assert (key, length) == ((b"\r\nHost: x", b"\r\nA: b\r\n"), 5)
    for other in (b"", b"\r\nContent-Length: ", b"\r\nContent-Length: x"):
        head = key[0] + other + key[1]
        assert part_length(head) == (head, None)


def response(*fields: bytes, status: bytes = b"200 OK", body: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(line + b"\r\n" for line in fields) + b"\r\n" + body


RESPONSES = [
    OK,
    response(b"Content-Length: 3", body=b"abc"),
    response(b"Content-Length: 3", b"A: b", body=b"abc"),
    response(b"Content-Length: 0", b"A: b"),
    response(b"Content-Length: 02", b"A: b", body=b"ab"),
    response(b"Content-Length: 2", b"content-length: 2", body=b"ab"),
    response(b"Content-Length: x", b"A: b"),
    response(b"Content-Length: ", b"A: b"),
    response(b"content-length: 2", b"A: b", body=b"ab"),
    response(b"A: b"),
    response(b"Content-Length: 0", status=b"204 X"),
    response(b"Content-Length: 1", status=b"204 X"),
    response(b"Content-Length: 0", status=b"103 X") + OK,
    response(b"Content-Length: 1", status=b"103 X") + OK,
    response(b"Content-Length: 1", status=b"304 X"),
    response(b"Content-Length: 2", status=b"304 X"),
    response(b"Content-Length: 2", b"Connection: close", body=b"ab"),
    response(b"Content-Length: 3", b"Connection: close", body=b"abc"),
]


@given(
    st.lists(st.tuples(st.sampled_from(["GET", "HEAD", "POST"]), st.sampled_from(RESPONSES)), max_size=12),
    st.sampled_from([0, 0, 1]),
)
def test_a_response_is_read_as_if_nothing_were_known(exchanges: list[tuple[str, bytes]], piece: int) -> None:
    """Each on a connection of its own: all of one proxy, and all that know nothing of another."""
    shared = dict[str, Any]()
    for number, (method, answer) in enumerate(exchanges * 2):
        plays = []
        for known in (shared, dict[str, Any]()):
            one = Play(HttpInspector, cast("RequestRules", compiled(allow())), piece=piece, shared=known)
            one.client(get(f"/{number}", method=method))
            one.backend(answer)
            plays.append(result(one))
        assert plays[0] == plays[1]


def test_responses_that_differ_in_length_have_one_entry() -> None:
    shared = dict[str, Any]()
    play = Play(HttpInspector, cast("RequestRules", compiled(allow())), shared=shared)
    for length in range(5):
        play.client(get("/"))
        play.backend(response(b"Content-Length: %d" % length, b"A: b", body=bytes(length)))
    assert len(shared["responses"]) == 2  # with the first of them, whole
    play.client(get("/"))
    play.backend(response(b"Set-Cookie: a", b"Content-Length: 1", body=b"a"))
    assert len(shared["responses"]) == 2
    assert play.end_of_it is None


def test_the_rules_of_the_request_say_whether_its_answer_may_be_a_tunnel() -> None:
    """Those that have come since can only end it (test_http_renewal.py)."""
    raw = response(b"Content-Type: application/vnd.docker.raw-stream")
    may = compiled(allow({"methods": ["POST"], "path": "/t", "upgrade": ["tcp"]}))
    may_not = compiled(allow("POST /t"))
    for before, after in ((may, may_not), (may_not, may)):
        play = Play(HttpInspector, cast("RequestRules", before))
        play.client(get("/t", method="POST"))
        play.inspector.new_rules(cast("RequestRules", after), enforce=True, tell_allowed=False)
        play.backend(raw)
        assert play.tunnel(0) is False
        assert play.end_of_it == (
            ("revoked", "no rule allows it: allow would, but not with this Upgrade") if before is may else None
        )


def test_a_target_with_an_authority_takes_the_place_of_host_for_itself_alone() -> None:
    known: Known[Fields] = Known()
    targets = ("/a", "http://other/a", "/b")
    assert [read_request(get(target), known).host for target in targets] == [b"x", b"other", b"x"]
    assert len(known) == 1
