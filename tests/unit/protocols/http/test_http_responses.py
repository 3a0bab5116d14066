"""What a client is sent of a service's responses, and what becomes of those that are no good."""

from __future__ import annotations

import pytest

from sockguard.protocols.base import BACKEND, CLIENT
from sockguard.protocols.http import limits
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, PIECES, Rules, get, in_all_ways, play, status
from tests.unit.protocols.playbook import Play


def answered(response: bytes, *, method: str = "GET", ends: bool = False, piece: int = 0) -> Play:
    """One request, and this from the service."""
    one = play(Rules("/a"), piece=piece)
    one.client(get("/a", method=method))
    one.backend(response)
    if ends and not one.end_of_it:
        one.backend_ends()
    return one


def test_a_response_is_written_anew() -> None:
    response = (
        b"HTTP/1.1 418 I'm  a\tpot\r\nx-a:  b \r\nKeep-Alive: 5\r\n"
        b"Connection: x-b\r\nX-B: c\r\nContent-Length:2\r\n\r\nok"
    )
    for piece in PIECES:
        one = answered(response, piece=piece)
        assert one.to_client == b"HTTP/1.1 418 I'm  a\tpot\r\nx-a: b\r\nContent-Length: 2\r\n\r\nok"
        assert one.end_of_it is None


def test_a_reason_may_be_missing() -> None:
    assert answered(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").to_client.startswith(b"HTTP/1.1 200 \r\n")


def test_a_head_goes_out_before_its_body_has_come() -> None:
    """``docker wait`` is asked before the container starts: its client waits for the head."""
    one = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert one.to_client == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert one.inspector.busy


def test_a_part_of_a_chunk_goes_out_before_its_rest() -> None:
    one = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhello")
    assert b"hello" in one.to_client


def test_chunks_go_on_in_chunks() -> None:
    for piece in PIECES:
        one = answered(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x\r\nabc\r\n0003\r\ndef\r\n0\r\nA: b\r\n\r\n",
            piece=piece,
        )
        (message,) = oracle.responses(one.to_client, "GET", closed=False)
        assert message.body == b"abcdef"
        assert b"A: b" not in one.to_client
        assert b"x" not in one.to_client
        assert not one.inspector.busy


@pytest.mark.parametrize("length", ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
def test_head_and_not_modified_have_no_body(length: str) -> None:
    for method, code in (("HEAD", 200), ("GET", 304)):
        one = answered(f"HTTP/1.1 {code} X\r\n{length}\r\n".encode(), method=method)
        assert one.to_client == f"HTTP/1.1 {code} X\r\n{length}\r\n".encode()
        one.client(get("/a"))
        one.backend(OK)
        assert one.to_client.endswith(OK)
        assert one.end_of_it is None


@pytest.mark.parametrize("length", ["", "Content-Length: 0\r\n"])
def test_no_content_has_none(length: str) -> None:
    one = answered(f"HTTP/1.1 204 No Content\r\n{length}\r\n".encode())
    assert one.to_client == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert not one.inspector.busy


def test_a_response_without_length_lasts_to_the_end() -> None:
    def script(one: Play) -> None:
        one.client(get("/a") + get("/a"))
        one.backend(b"HTTP/1.1 200 OK\r\n\r\nall ")
        one.backend(b"HTTP/1.1 200 OK\r\n\r\n")
        assert one.inspector.busy
        one.backend_ends()

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_client == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall HTTP/1.1 200 OK\r\n\r\n"
    assert one.to_backend.count(b"/a") == 1
    assert one.half_closed(CLIENT)
    one.client_ends()
    assert one.outcome == "closed"


def test_interim_responses_come_through() -> None:
    def script(one: Play) -> None:
        one.client(get("/a"))
        one.backend(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        one.backend(b"HTTP/1.1 102 Processing\r\n\r\n")
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert [m.start for m in oracle.responses(one.to_client, "GET", closed=False)] == [103, 102, 200]


def test_interim_responses_have_a_bound() -> None:
    one = answered(b"HTTP/1.1 102 Processing\r\n\r\n" * limits.MAX_INTERIM + OK)
    assert one.end_of_it is None
    assert one.to_client.endswith(OK)
    one = answered(b"HTTP/1.1 102 Processing\r\n\r\n" * (limits.MAX_INTERIM + 1) + OK)
    assert oracle.responses(one.to_client, "GET")[-1].start == 502


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: a b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
        b"\r\n" + OK,
        b"ok",
    ],
)
def test_a_doubtful_response_is_answered_with_502_and_the_end(response: bytes) -> None:
    for piece in PIECES:
        one = answered(response, ends=True, piece=piece)
        assert status(one.to_client) == 502, piece
        assert oracle.responses(one.to_client, "GET")[0].start == 502
        one.client(get("/a"))
        assert one.to_backend == get("/a")
        one.client_ends()
        assert one.outcome == "backend_malformed"


@pytest.mark.parametrize(
    ("response", "method"),
    [
        (OK + b"x", "GET"),
        (OK + OK, "GET"),
        (b"HTTP/1.1 204 No Content\r\n\r\n" + OK, "GET"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + OK, "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HEAD"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok", "GET"),
    ],
)
def test_more_than_one_final_response_is_no_good(response: bytes, method: str) -> None:
    one = answered(response, method=method)
    assert status(one.to_client) == 502
    for piece in PIECES[1:]:
        one = answered(response, method=method, piece=piece)
        assert one.outcome == "backend_malformed" or one.half_closed(CLIENT)
        assert one.to_client.count(b"HTTP/1.1 ") == 1
        one.client(get("/a")) if one.end_of_it is None else None
        assert one.to_backend == get("/a", method=method)


def test_a_502_to_head_has_no_body() -> None:
    assert answered(b"ok\r\n\r\n", method="HEAD").to_client.endswith(b"\r\n\r\n")


def test_what_nobody_asked_for_ends_the_connection() -> None:
    one = play(Rules("/a"))
    one.backend(OK)
    assert one.outcome == "backend_malformed"
    assert not one.to_client


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\nhello",
        b"zz\r\n",
        b"5\r\nhello\r\n0\r\nbad\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
    ],
)
def test_bad_chunks_of_a_service_look_like_no_success(chunks: bytes) -> None:
    for piece in PIECES:
        one = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, piece=piece)
        one.client_ends() if one.end_of_it is None else None
        assert one.outcome == "backend_malformed"
        assert b"\r\n0\r\n\r\n" not in one.to_client


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\no",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ],
)
def test_a_cut_body_is_no_success(response: bytes) -> None:
    for piece in PIECES:
        one = answered(response, ends=True, piece=piece)
        assert one.outcome == "backend_malformed"
        assert one.to_client.startswith(b"HTTP/1.1 200 OK")


def test_a_cut_head_is_answered() -> None:
    one = answered(b"HTTP/1.1 200 OK\r\nContent-", ends=True)
    assert status(one.to_client) == 502


def test_no_response_is_none() -> None:
    """A client that is cut off on an idle connection may try again; told of an error it would not."""
    one = answered(b"", ends=True)
    assert not one.to_client
    assert one.half_closed(CLIENT)
    one.client_ends()
    assert one.outcome == "backend_malformed"


def test_a_head_of_a_response_has_a_size() -> None:
    for piece in (0, 1000):
        one = answered(b"HTTP/1.1 200 OK\r\nX: " + b"x" * limits.MAX_HEAD, piece=piece)
        assert status(one.to_client) == 502


def test_a_head_of_a_response_has_so_many_fields() -> None:
    assert status(answered(b"HTTP/1.1 204 X\r\n" + b"a: b\r\n" * limits.MAX_FIELDS + b"\r\n").to_client) == 204
    assert status(answered(b"HTTP/1.1 204 X\r\n" + b"a: b\r\n" * (limits.MAX_FIELDS + 1) + b"\r\n").to_client) == 502


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_a_service_s_close_is_heeded(head: bytes) -> None:
    def script(one: Play) -> None:
        one.client(get("/a") + get("/a"))
        one.backend(head + b"Content-Length: 2\r\n\r\nok")

    one = in_all_ways(lambda: Rules("/a"), script)
    assert b"\r\nConnection: close\r\n" in one.to_client
    assert one.half_closed(CLIENT)
    assert one.to_backend == get("/a")


def test_an_old_service_may_keep_alive() -> None:
    one = answered(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    one.client(get("/a"))
    assert one.to_backend == get("/a") * 2


def test_an_idle_service_that_ends_ends_the_connection() -> None:
    one = answered(OK, ends=True)
    assert one.half_closed(CLIENT)
    one.client_ends()
    assert one.end_of_it == ("closed", "")


# A response before the request is whole


def test_an_early_response_leaves_the_body_to_come() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", "Content-Length: 10", method="POST") + b"12345")
        one.backend(OK)
        assert one.to_client == OK
        one.client(b"67890" + get("/a"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert [m.body for m in oracle.requests(one.to_backend)] == [b"1234567890", b""]
    assert one.to_client == OK * 2


def test_an_early_response_is_followed_by_no_other() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Content-Length: 10", method="POST") + b"12345")
    one.backend(OK)
    one.backend(OK)
    assert one.end_of_it == ("backend_malformed", "the service sent what nobody had asked for")
    assert one.to_client == OK


def test_a_body_that_turns_out_bad_behind_an_early_response_gets_no_second_one() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n")
    one.backend(OK)
    one.client(b"zz\r\n")
    assert one.to_client == OK
    assert one.outcome == "malformed"


def test_a_bad_request_behind_a_response_gets_its_own() -> None:
    one = answered(OK)
    one.client(b"bad\r\n\r\n")
    assert [m.start for m in oracle.responses(one.to_client, "GET", "GET")] == [200, 400]


def test_an_early_response_that_closes_reaches_the_client() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Content-Length: 100000", method="POST") + b"12345")
    one.backend(b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert status(one.to_client) == 413
    assert one.half_closed(CLIENT)
    assert not one.half_closed(BACKEND)
