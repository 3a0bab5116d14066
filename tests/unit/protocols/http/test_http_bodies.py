"""Bodies of requests: in a framing of our own, judged before they are sent, waited for with 100 (Continue)."""

from __future__ import annotations

import pytest

from sockguard.protocols.http import limits
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, PIECES, Rules, get, in_all_ways, play, status
from tests.unit.protocols.playbook import Play


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Content-Length: 00005", b"hello"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: Chunked", b'2;a\r\nhe\r\n03;a="b"\r\nllo\r\n000\r\nX: y\r\nZ:\r\n\r\n'),
    ],
)
def test_bodies_go_on_without_extensions_and_trailers(field: str, body: bytes) -> None:
    sent: set[bytes] = set()

    def script(one: Play) -> None:
        one.client(get("/a", field, method="POST") + body + get("/a"))
        one.backend(OK)
        first, second = oracle.requests(one.to_backend)
        assert first.body == b"hello"
        assert (second.start, second.body) == ((b"GET", b"/a"), b"")
        assert b";" not in one.to_backend
        assert b"Z:" not in one.to_backend
        sent.add(one.to_backend)

    for piece in PIECES:
        script(play(Rules("/a"), piece=piece))
    assert len(sent) == 1 or "hunked" in field


@pytest.mark.parametrize(
    "chunks",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5 ;a\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b";a\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\x00\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",  # a digit to str.isdigit
        b"5;" + b"a" * limits.MAX_CHUNK_LINE + b"\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r \n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\n\n",
        b"0\r\na: " + b"b" * limits.MAX_HEAD + b"\r\n\r\n",
    ],
)
def test_bad_chunks_end_the_connection(chunks: bytes) -> None:
    for piece in (0, 1, 1000) if len(chunks) > 2000 else (0, 1, 2, 7):
        one = play(Rules("/a"), piece=piece)
        one.client(get("/a", "Transfer-Encoding: chunked", method="POST") + chunks + get("/a"))
        assert status(one.to_client) == 400
        assert b"0\r\n\r\n" not in one.to_backend, "the service never sees such a body's end"
        assert one.to_backend.count(b"/a") <= 1
        one.client_ends()
        assert one.outcome == "malformed"


def test_a_long_chunk_line_may_come_byte_by_byte() -> None:
    one = play(Rules("/a"), piece=1)
    one.client(get("/a", "Transfer-Encoding: chunked", method="POST") + b"5;" + b"a" * 1000 + b"\r\nhello\r\n0\r\n\r\n")
    assert oracle.requests(one.to_backend)[0].body == b"hello"


def test_a_body_that_rules_look_into_is_sent_as_it_was_judged() -> None:
    rules = lambda: Rules("/a", bodies={"/a": b"good"})  # noqa: E731
    for field, body in (
        ("Content-Length: 6", b"+good+"),
        ("Transfer-Encoding: chunked", b"2\r\n+g\r\n4\r\nood+\r\n0\r\n\r\n"),
    ):

        def script(one: Play, field: str = field, body: bytes = body) -> None:
            one.client(get("/a", field, method="POST"))
            one.client(body[:-1])
            assert not one.to_backend
            one.client(body[-1:])
            one.backend(OK)

        one = in_all_ways(rules, script)
        assert one.to_backend == get("/a", "Content-Length: 6", method="POST") + b"+good+"
        assert one.to_client == OK


def test_a_body_that_rules_deny_is_never_passed_on() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", "Content-Length: 3", method="POST") + b"bad" + get("/b"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a", "/b", bodies={"/a": b"good"}), script)
    assert [m.start for m in oracle.responses(one.to_client, "POST", "GET", closed=False)] == [403, 200]
    assert one.to_backend == get("/b")


def test_an_encoded_body_is_not_looked_into() -> None:
    """A body can be JSON and, to who decodes it, something else."""
    one = play(Rules("/a", bodies={"/a": b"good"}))
    one.client(get("/a", "Content-Encoding: deflate", "Content-Length: 4", method="POST") + b"good")
    assert status(one.to_client) == 403
    assert not one.to_backend


def test_no_body_is_judged_as_an_empty_one() -> None:
    rules = Rules("/a", bodies={"/a": b""})
    one = play(rules)
    one.client(get("/a", method="POST") + get("/a", "Content-Length: 0", method="POST"))
    one.backend(OK)
    assert one.to_backend == get("/a", method="POST") + get("/a", "Content-Length: 0", method="POST")


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("field", ["Content-Length", "Transfer-Encoding"])
def test_a_body_too_large_to_look_into_is_refused(field: str, enforce: bool) -> None:
    one = play(Rules("/a", bodies={"/a": b""}), enforce=enforce)
    if field == "Content-Length":
        one.client(get("/a", f"Content-Length: {limits.MAX_JUDGED_BODY + 1}", method="POST"))
    else:
        one.client(get("/a", "Transfer-Encoding: chunked", method="POST"))
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        one.client(chunk * (limits.MAX_JUDGED_BODY // 0x10000))
        assert not one.to_client
        one.client(b"1\r\nx\r\n")
    assert status(one.to_client) == 413
    assert not one.to_backend
    one.client_ends()
    assert one.outcome == "limit"


def test_a_body_of_the_largest_size_is_looked_into() -> None:
    one = play(Rules("/a", bodies={"/a": b""}))
    one.client(get("/a", f"Content-Length: {limits.MAX_JUDGED_BODY}", method="POST") + bytes(limits.MAX_JUDGED_BODY))
    assert len(one.to_backend) > limits.MAX_JUDGED_BODY


# Expect: 100-continue


def test_a_client_that_waits_is_told_to_go_on_once_allowed() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", "Expect: 100-Continue", "Content-Length: 2", method="POST"))
        assert one.to_client == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.client(b"hi")
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == get("/a", "Content-Length: 2", method="POST") + b"hi"
    assert [m.start for m in oracle.responses(one.to_client, "POST", closed=False)] == [100, 200]


def test_a_client_that_waits_is_told_to_go_on_for_a_body_that_is_judged() -> None:
    one = play(Rules("/a", bodies={"/a": b"hi"}))
    one.client(get("/a", "Expect: 100-continue", "Content-Length: 2", method="POST"))
    assert one.to_client == b"HTTP/1.1 100 Continue\r\n\r\n"
    one.client(b"hi")
    assert one.to_backend == get("/a", "Content-Length: 2", method="POST") + b"hi"


def test_a_client_that_waits_is_judged_first() -> None:
    one = play(Rules("/a"))
    one.client(get("/no", "Expect: 100-continue", "Content-Length: 99", method="POST"))
    assert status(one.to_client) == 403
    assert b"Connection: close" in one.to_client, "nobody knows whether the body follows"
    one.client(get("/a"))
    assert not one.to_backend


def test_another_expectation_fails() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Expect: 200-ok"))
    assert status(one.to_client) == 417
    assert not one.to_backend
