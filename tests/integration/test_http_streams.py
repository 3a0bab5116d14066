"""What flows through an `http` proxy, and when: heads, bodies as they come, tunnels, flat memory, time limits."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import connect
from tests.support.daemon import Daemon, running
from tests.support.http_services import Answer, LeaveError, Recorder, Seen, Wire, plainly, recording, statuses
from tests.support.identities import open_folder, status, wait_started
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

RULES = """[
  "GET,HEAD /small", "GET /late", "GET /stream", "GET /close", "POST /body", "POST /both", "GET /hints",
  { methods = ["POST"], path = "/tunnel", upgrade = ["tcp"] },
]"""
CONFIG = f"""
protocol = "http"
[[proxy.http.allow]]
users = ["*"]
http = {RULES}
"""
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BIG = 100 << 20
GROWTH = 24 << 10
"""KiB by which a relay may grow under a body of BIG bytes: buffers and the interpreter's own, not the body."""


@dataclass(slots=True)
class Bed:
    recorder: Recorder
    public: Path
    daemon: Daemon

    @contextlib.contextmanager
    def answering(self, answer: Answer) -> Iterator[socket.socket]:
        """Meanwhile the service answers like that; gives a connected client."""
        self.recorder.clear()
        self.recorder.answer = answer
        try:
            with connect(self.public, 20) as sock:
                yield sock
        finally:
            self.recorder.answer = plainly
        assert not self.recorder.faults


@contextlib.contextmanager
def guarding(more: str = "") -> Iterator[Bed]:
    with open_folder() as folder:
        private, public = private_folder(folder, 0) / "http.sock", folder / "public" / "http.sock"
        public.parent.mkdir()
        file = folder / "sockguard.toml"
        file.write_text(
            f'[daemon]\nrelays = 1\n[proxy.http]\nlisten = "{public}"\nbackend = "{private}"\n{more}\n{CONFIG}'
        )
        with recording(private) as recorder, running(file, public) as daemon:
            wait_started(daemon)
            yield Bed(recorder, public, daemon)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with guarding() as made:
        yield made


def ask(sock: socket.socket, line: str, *fields: str, body: bytes = b"") -> None:
    sock.sendall("\r\n".join((f"{line} HTTP/1.1", "Host: x", *fields, "", "")).encode() + body)


def until(sock: socket.socket, text: bytes) -> bytes:
    """All that comes up to and with that text."""
    got = b""
    while text not in got:
        data = sock.recv(65536)
        assert data, got
        got += data
    return got


def rest(sock: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            got += data
    return got


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


def test_leave_to_send_a_body_is_the_services(bed: Bed) -> None:
    """Expect: 100-continue reaches the service; its 100 reaches the client before any of the body is sent."""

    def answer(wire: Wire, seen: Seen) -> None:
        assert seen.values("expect") == ["100-continue"]
        wire.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        plainly(wire, seen)

    with bed.answering(answer) as sock:
        ask(sock, "POST /body", "Content-Length: 4", "Expect: 100-continue")
        assert statuses(until(sock, b"\r\n\r\n")) == [100]
        sock.sendall(b"body")
        assert statuses(until(sock, b"ok\n")) == [200]
    assert bed.recorder.requests[0].body == b"body"


def test_leave_that_is_not_given(bed: Bed) -> None:
    """A final answer instead of a 100: the client has it at once, and what it sends next is no body of anything."""

    def answer(wire: Wire, seen: Seen) -> None:
        wire.sock.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n")
        wire.sock.shutdown(socket.SHUT_RDWR)

    with bed.answering(answer) as sock:
        ask(sock, "POST /body", "Content-Length: 30", "Expect: 100-continue")
        assert statuses(until(sock, b"no\n")) == [417]
        with contextlib.suppress(OSError):
            ask(sock, "GET /small")
        assert statuses(rest(sock)) == []
    assert len(bed.recorder.requests) == 1


def _tunnel(wire: Wire, seen: Seen) -> None:
    """As an exec does: 101, echo, and behind the client's end one thing more."""
    wire.body(seen)
    wire.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    while data := wire.sock.recv(65536):
        wire.sock.sendall(data)
    time.sleep(0.3)
    wire.sock.sendall(b"behind the end\n")
    wire.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("body", [b"", b'{"Detach":false,"Tty":false}'])
def test_a_tunnel_and_its_half_close(bed: Bed, body: bytes) -> None:
    """Behind the 101 bytes are the ends' own; the client's end reaches the service, whose output still comes."""
    with bed.answering(_tunnel) as sock:
        ask(sock, "POST /tunnel", "Connection: Upgrade", "Upgrade: tcp", f"Content-Length: {len(body)}")
        time.sleep(0.1)
        sock.sendall(body)
        assert statuses(until(sock, b"\r\n\r\n")) == [101]
        for data in (b"typed\n", b"GET /secrets HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 100):
            sock.sendall(data)
            got = b""
            while len(got) < len(data):
                got += sock.recv(65536)
            assert got == data
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b"behind the end\n"
    assert bed.recorder.requests[0].body == body


def test_an_end_right_behind_the_101(bed: Bed) -> None:
    """The docker CLI half-closes at once when it has no input: all of the output still arrives."""
    with bed.answering(_tunnel) as sock:
        ask(sock, "POST /tunnel", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
        until(sock, b"\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b"behind the end\n"


def relay_kib(daemon: Daemon) -> int:
    (pid,) = daemon.pids()["sockguard-relay"]
    return int(status(pid)["VmHWM"].split()[0])


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_do_not_grow_the_relay(bed: Bed, chunked: bool) -> None:
    """A hundred megabytes, to a service and from one that is slow to take them, need no memory of their size."""
    part = bytes(1 << 16)

    def take(wire: Wire, seen: Seen) -> None:
        time.sleep(0.3)
        left = BIG - len(wire.ahead)
        while left > 0:
            left -= len(wire.sock.recv(1 << 20))
        if not chunked:
            wire.sock.sendall(HEAD + b"Content-Length: 3\r\n\r\nok\n")
        raise LeaveError

    def give(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        wire.sock.sendall(CHUNKED if chunked else HEAD + b"Content-Length: %d\r\n\r\n" % BIG)
        for _ in range(BIG // len(part)):
            wire.sock.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked:
            wire.sock.sendall(b"0\r\n\r\n")

    before = relay_kib(bed.daemon)
    with bed.answering(take) as sock:
        ask(sock, "POST /body", "Transfer-Encoding: chunked" if chunked else f"Content-Length: {BIG}")
        with contextlib.suppress(ConnectionError):  # in chunks the framing is still under way when all is taken
            for _ in range(BIG // len(part)):
                sock.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            if not chunked:
                assert statuses(until(sock, b"ok\n")) == [200]
    with bed.answering(give) as sock:
        ask(sock, "GET /stream")
        got = len(until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")[2])
        time.sleep(0.3)
        while got < BIG:
            data = sock.recv(1 << 20)
            assert data
            got += len(data)
    assert relay_kib(bed.daemon) - before < GROWTH


def test_time_limits_do_not_cut_a_stream() -> None:
    """With an idle limit of a second a stream, a tunnel and a long wait go on; a kept connection ends."""
    go = threading.Event()

    def slow(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        wire.sock.sendall(CHUNKED if seen.target == "/stream" else b"")
        assert go.wait(20)
        if seen.target == "/stream":
            wire.sock.sendall(b"5\r\nlater\r\n0\r\n\r\n")
        else:
            plainly(wire, seen)

    with guarding('idle_timeout = "1s"') as bed, bed.answering(slow) as stream, connect(bed.public, 20) as wait:
        ask(stream, "GET /stream")
        until(stream, b"\r\n\r\n")
        ask(wait, "GET /late")
        with connect(bed.public, 20) as tunnel:
            while len(bed.recorder.requests) < 2:
                time.sleep(0.01)
            bed.recorder.answer = _tunnel
            ask(tunnel, "POST /tunnel", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
            until(tunnel, b"\r\n\r\n")
            time.sleep(3.5)
            tunnel.sendall(b"still there")
            assert until(tunnel, b"there") == b"still there"
        go.set()
        assert until(stream, b"0\r\n\r\n").endswith(b"later\r\n0\r\n\r\n")
        assert statuses(until(wait, b"ok\n")) == [200]
        assert rest(stream) == b""  # idle now: closed within the limit
        bed.daemon.wait_for("connection_closed", lambda event: event["outcome"] == "idle_timeout")


def test_a_head_has_thirty_seconds(bed: Bed) -> None:
    """408 for a request that does not get on with its head; an answer that takes longer than that is not cut."""

    def slow(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        time.sleep(33)
        plainly(wire, seen)

    with bed.answering(slow) as waiting, connect(bed.public, 60) as never:
        waiting.settimeout(60)
        ask(waiting, "GET /late")
        never.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n")
        assert statuses(rest(never)) == [408]
        assert statuses(until(waiting, b"ok\n")) == [200]
