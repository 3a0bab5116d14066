"""What flows through an `http` proxy, and when: heads, bodies as they come, leave to send them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.http_services import LeaveError, Seen, Wire, plainly, statuses
from tests.support.http_stage import CHUNKED, HEAD, Bed, ask, guarding, rest, until
from tests.support.identities import wait_until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with guarding() as made:
        yield made


def test_a_head_is_sent_before_its_body(bed: Bed) -> None:
    """The head arrives while the body is not there yet, and each chunk while the next one is not."""
    go = threading.Semaphore(0)

    def answer(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        wire.sock.sendall(CHUNKED)
        for text in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"):
            assert go.acquire(timeout=20)
            wire.sock.sendall(text)

    with bed.answering(answer) as sock:
        ask(sock, "GET /late")
        head = until(sock, b"\r\n\r\n")
        assert head.startswith(HEAD)
        assert b"chunked" in head
        for text in (b"one\r\n", b"two\r\n", b"0\r\n\r\n"):
            go.release()
            assert until(sock, text).endswith(text)
        ask(sock, "GET /late")
        until(sock, b"\r\n\r\n")
        for _ in range(3):
            go.release()
        until(sock, b"0\r\n\r\n")


def test_a_body_in_chunks_both_ways_at_once(bed: Bed) -> None:
    """Each chunk of a request is answered before the next is sent: nothing waits for a whole body."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.sock.sendall(CHUNKED)
        used = len(wire.raw) - len(wire.ahead)
        while b"0\r\n\r\n" not in wire.raw:
            assert wire.more()
            new, used = wire.raw[used:], len(wire.raw)
            wire.sock.sendall(b"%x\r\n%s\r\n" % (len(new), new))
        wire.sock.sendall(b"0\r\n\r\n")
        raise LeaveError

    with bed.answering(answer) as sock:
        ask(sock, "POST /both", "Transfer-Encoding: chunked")
        until(sock, b"\r\n\r\n")
        for word in (b"ping1", b"ping2", b"ping3"):
            sock.sendall(b"5\r\n%s\r\n" % word)
            until(sock, word)
        sock.sendall(b"0\r\n\r\n")
        assert b"0\r\n\r\n" in rest(sock)


def test_head_has_no_body(bed: Bed) -> None:
    """With a length or without, the answer to a HEAD ends with its head, and the next one follows."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        if seen.method == "HEAD":
            wire.sock.sendall(HEAD + (b"Content-Length: 1000\r\n\r\n" if len(bed.recorder.requests) == 1 else b"\r\n"))
        else:
            plainly(wire, seen)

    with bed.answering(answer) as sock:
        for _ in range(2):
            ask(sock, "HEAD /small")
            assert until(sock, b"\r\n\r\n").startswith(HEAD)
        ask(sock, "GET /small")
        assert until(sock, b"ok\n").startswith(HEAD)


@pytest.mark.parametrize("status_line", [b"204 No Content", b"304 Not Modified"])
def test_answers_that_have_no_body(bed: Bed, status_line: bytes) -> None:
    """The connection goes on behind a 204 and a 304 (RFC 9112, section 6.3)."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        wire.sock.sendall(b"HTTP/1.1 " + status_line + b"\r\n\r\n")

    with bed.answering(answer) as sock:
        for _ in range(2):
            ask(sock, "GET /small")
            assert statuses(until(sock, b"\r\n\r\n")) == [int(status_line[:3])]


def test_an_answer_that_ends_with_the_connection(bed: Bed) -> None:
    """Without a length it goes on to the end of the connection, and then the client's ends too."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        wire.sock.sendall(HEAD + b"\r\n" + b"x" * (1 << 20))
        wire.sock.shutdown(socket.SHUT_RDWR)

    with bed.answering(answer) as sock:
        ask(sock, "GET /close")
        assert rest(sock).count(b"x") == 1 << 20


def test_an_answer_that_is_cut_does_not_look_whole(bed: Bed) -> None:
    """A service that ends in the middle of a body: no byte too many, no last chunk, and the connection ends."""
    for head, part in ((HEAD + b"Content-Length: 100\r\n\r\n", b"x" * 50), (CHUNKED, b"32\r\n" + b"x" * 50)):

        def answer(wire: Wire, seen: Seen, head: bytes = head, part: bytes = part) -> None:
            wire.body(seen)
            wire.sock.sendall(head + part)
            wire.sock.shutdown(socket.SHUT_RDWR)

        with bed.answering(answer) as sock:
            ask(sock, "GET /small")
            got = rest(sock)
            assert statuses(got) == [200]
            assert not got.endswith(b"0\r\n\r\n")


def test_informational_answers_come_before_the_final_one(bed: Bed) -> None:
    """103 and 100 are passed on, each at its time."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        wire.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")
        plainly(wire, seen)

    with bed.answering(answer) as sock:
        ask(sock, "GET /hints")
        assert statuses(until(sock, b"ok\n")) == [103, 103, 200]
        ask(sock, "GET /hints")
        assert statuses(until(sock, b"ok\n")) == [103, 103, 200]


def test_leave_to_send_a_body_is_the_guards(bed: Bed) -> None:
    """Expect: 100-continue goes no further than here: the client has its 100 at once, and the service the body.

    What a service makes of bytes behind a refusal of its own is not known, so it is not asked.
    """
    with bed.answering(plainly) as sock:
        for _ in range(2):
            ask(sock, "POST /body", "Content-Length: 4", "Expect: 100-continue")
            assert statuses(until(sock, b"\r\n\r\n")) == [100]
            sock.sendall(b"body")
            assert statuses(until(sock, b"ok\n")) == [200]
    assert [(seen.body, seen.values("expect")) for seen in bed.recorder.requests] == [(b"body", [])] * 2


def test_an_answer_before_the_body(bed: Bed) -> None:
    """A service that refuses a body that it has not read: the client has its answer at once, and what the client sends
    next is no request of its own."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.sock.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n")
        wire.sock.shutdown(socket.SHUT_RDWR)
        raise LeaveError

    with bed.answering(answer) as sock:
        ask(sock, "POST /body", "Content-Length: 30", "Expect: 100-continue")
        assert statuses(until(sock, b"no\n")) == [100, 417]
        with contextlib.suppress(OSError):
            ask(sock, "GET /small")
        assert statuses(rest(sock)) == []
    assert bed.recorder.lines == ["POST /body"]


def test_leave_is_not_given_for_what_is_denied(bed: Bed) -> None:
    """403 instead of 100, and the connection ends: whether a body follows cannot be known."""
    with bed.answering(plainly) as sock:
        ask(sock, "POST /denied", "Content-Length: 4", "Expect: 100-continue")
        assert statuses(rest(sock)) == [403]
    wait_until(lambda: [wire.ended for wire in bed.recorder.wires] == [True], "the service has seen all that there is")
    assert not bed.recorder.requests
