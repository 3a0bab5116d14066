"""Bounds in bytes and seconds, and where a client's end leaves a request."""

from __future__ import annotations

import pytest

from sockguard.protocols.base import CLIENT
from sockguard.protocols.http import limits
from sockguard.protocols.http.body import MAX_STEPS
from sockguard.protocols.http.grammar import read_tokens
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, PIECES, Rules, get, in_all_ways, play, status
from tests.unit.protocols.playbook import Play


def test_a_head_has_thirty_seconds_from_its_first_byte() -> None:
    one = play(Rules("/a"))
    assert not one.clock, "an idle connection may wait"
    one.client(b"G")
    assert one.clock == limits.HEAD_SECONDS
    one.time_passes()
    assert status(one.to_client) == 408
    one.client_ends()
    assert one.outcome == "timeout"


def test_the_time_is_over_when_the_head_is_whole() -> None:
    one = play(Rules("/a"), piece=1)
    one.client(get("/a"))
    assert not one.clock
    one.backend(OK)
    assert not one.clock
    one.client(b"GET")
    assert one.clock


def test_the_time_runs_on_from_the_first_byte() -> None:
    one = play(Rules("/a"))
    one.client(b"G")
    one.clock = 12.0
    one.client(b"ET")
    assert one.clock == 12.0


def test_a_judged_body_has_its_time_too() -> None:
    one = play(Rules("/a", bodies={"/a": b""}))
    one.client(get("/a", "Content-Length: 9", method="POST"))
    one.time_passes()
    assert status(one.to_client) == 408
    assert not one.to_backend


def test_a_denied_body_has_its_time_too() -> None:
    one = play(Rules())
    one.client(get("/a", "Content-Length: 9", method="POST"))
    one.time_passes()
    assert one.outcome == "timeout"
    assert one.to_client.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("piece", [0, 1, 1000])
def test_a_head_has_a_size(piece: int) -> None:
    longest = get("/a", "X: " + "x" * (limits.MAX_HEAD - len(get("/a", "X: "))))
    assert len(longest) == limits.MAX_HEAD
    one = play(Rules("/a"), piece=piece)
    one.client(longest)
    assert one.to_backend == longest
    one = play(Rules("/a"), piece=piece)
    one.client(longest.replace(b"X: ", b"X: x"))
    assert status(one.to_client) == 431
    assert not one.to_backend
    one.client_ends()
    assert one.outcome == "limit"


def test_a_head_has_so_many_fields() -> None:
    fields = ["a: b"] * (limits.MAX_FIELDS - 1)
    one = play(Rules("/a"))
    one.client(get("/a", *fields))
    assert one.to_backend
    one = play(Rules("/a"))
    one.client(get("/a", *fields, "a: b"))
    assert status(one.to_client) == 431


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01", b"\r\n", b" GET / HTTP/1.1", b"GET /\n", b"GET / HTTP/1.1\r\nA: b\nC", b"GET /\r "]
)
def test_what_can_be_no_head_is_refused_before_its_end(data: bytes) -> None:
    one = in_all_ways(Rules, lambda one: one.client(data))
    assert status(one.to_client) == 400


# Where the client ends


def test_a_client_that_ends_between_requests_ends_the_connection() -> None:
    one = play(Rules("/a"))
    one.client(get("/a"))
    one.backend(OK)
    one.client_ends()
    assert one.end_of_it == ("closed", "")


def test_a_client_that_half_closes_gets_its_answers() -> None:
    def script(one: Play) -> None:
        one.client(get("/a") + get("/a") + get("/no") + get("/no"))
        one.client_ends()
        one.backend(OK)
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert [m.start for m in oracle.responses(one.to_client, *["GET"] * 4, closed=False)] == [200, 200, 403, 403]
    assert one.end_of_it == ("closed", "")
    assert not one.half_closed(1), "Go's net/http would cancel the request"


@pytest.mark.parametrize(
    "data",
    [
        b"GET",
        get("/a")[:-1],
        get("/a", "Content-Length: 2", method="POST") + b"h",
        get("/a", "Transfer-Encoding: chunked", method="POST") + b"1\r\nh\r\n0\r\n",
        get("/body", "Content-Length: 2", method="POST") + b"h",
    ],
)
@pytest.mark.parametrize("before", [b"", get("/a")])
def test_a_client_that_ends_amid_a_request_is_told(data: bytes, before: bytes) -> None:
    def script(one: Play) -> None:
        one.client(before + data)
        one.client_ends()
        if before:
            one.backend(OK)

    for piece in PIECES:
        one = play(Rules("/a", bodies={"/body": b"x"}), piece=piece)
        script(one)
        assert [m.start for m in oracle.responses(one.to_client, *["GET"] * (1 + bool(before)))][-1] == 400
        assert one.outcome == "malformed"


def test_a_client_that_ends_amid_a_denied_body_has_had_its_answer() -> None:
    one = play(Rules())
    one.client(get("/a", "Content-Length: 2", method="POST") + b"h")
    one.client_ends()
    assert one.outcome == "malformed"
    assert one.to_client.count(b"HTTP/1.1 ") == 1


def test_close_is_heeded() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", "Connection: keep-alive, CLOSE") + get("/a"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == get("/a", "Connection: close")
    assert one.to_client == OK.replace(b"Content", b"Connection: close\r\nContent")
    assert one.half_closed(CLIENT)


def test_what_is_read_away_counts_with_its_framing() -> None:
    """Chunks of one byte and a long extension are no way to keep a denied connection reading."""
    one = play(Rules())
    one.client(get("/no", "Transfer-Encoding: chunked", method="POST"))
    one.client((b"1;" + b"x" * 1000 + b"\r\ny\r\n") * 70)
    assert one.half_closed(CLIENT)


def test_the_options_of_a_connection_are_looked_up_and_not_searched() -> None:
    """A head has room for 31,000 of them, and each of its other fields is looked for among them: 95 ms, in a list."""
    assert isinstance(read_tokens([b"close, keep-alive", b"x"]), set)
    assert read_tokens([b"!," * 31_000 + b"A"]) == {b"!", b"a"}


def test_few_chunks_are_read_in_one_go() -> None:
    """A chunk of the loop's has room for 10,000 of one byte; others have their turn between, and no byte is lost."""
    one = play(Rules("/a"))
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    one.client(head)
    chunks = b"1\r\nx\r\n" * (MAX_STEPS // 3)
    data = memoryview(bytearray(chunks + chunks + b"0\r\n\r\n"))
    assert one.inspector.received(CLIENT, data, 0) == len(chunks)
    assert one.inspector.received(CLIENT, data[len(chunks) :], 0) == len(chunks)
    assert one.inspector.received(CLIENT, data[2 * len(chunks) :], 0) == 5
    body = one.to_backend.partition(b"\r\n\r\n")[2]
    assert body.count(b"x") == 2 * (MAX_STEPS // 3)
    assert body.endswith(b"0\r\n\r\n")
