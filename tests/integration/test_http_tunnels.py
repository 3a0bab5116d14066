"""Tunnels through an `http` proxy, memory under large bodies, and the idle limit."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import connect
from tests.support.daemon import Daemon
from tests.support.http_services import LeaveError, Seen, Wire, plainly, statuses
from tests.support.http_stage import CHUNKED, HEAD, Bed, ask, guarding, rest, until
from tests.support.identities import status, wait_until
from tests.support.reloading import sockguard

pytestmark = pytest.mark.root

BIG = 100 << 20
GROWTH = 24 << 10
"""KiB by which a relay may grow under a body of BIG bytes: buffers and the interpreter's own, not the body."""


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with guarding() as made:
        yield made


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
    """With an idle limit of a second a stream, a tunnel and a long wait go on; a kept connection ends.

    The limit comes by a reload, when all are under way: they may be idle for longer before that.
    """
    go = threading.Event()

    def slow(wire: Wire, seen: Seen) -> None:
        if seen.target == "/tunnel":
            _tunnel(wire, seen)
            return
        wire.body(seen)
        wire.sock.sendall(CHUNKED if seen.target == "/stream" else b"")
        assert go.wait(120)  # a reload comes before that
        if seen.target == "/stream":
            wire.sock.sendall(b"5\r\nlater\r\n0\r\n\r\n")
        else:
            plainly(wire, seen)

    with guarding() as bed, bed.answering(slow) as stream, connect(bed.public, 20) as wait:
        ask(stream, "GET /stream")
        until(stream, b"\r\n\r\n")
        ask(wait, "GET /late")
        with connect(bed.public, 20) as tunnel:
            wait_until(lambda: len(bed.recorder.requests) == 2, "both have reached the service")
            ask(tunnel, "POST /tunnel", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
            until(tunnel, b"\r\n\r\n")
            bed.configure('idle_timeout = "1s"')
            done = sockguard("reload", "--control", bed.daemon.config.with_name("run") / "control.sock")
            assert done.returncode == 0, done.stderr
            time.sleep(3.5)
            tunnel.sendall(b"still there")
            assert until(tunnel, b"there") == b"still there"
        go.set()
        assert until(stream, b"0\r\n\r\n").endswith(b"later\r\n0\r\n\r\n")
        assert statuses(until(wait, b"ok\n")) == [200]
        assert rest(stream) == b""  # idle now: closed within the limit
        with connect(bed.public, 20) as idle:
            assert rest(idle) == b""
        bed.daemon.wait_for("connection_closed", lambda event: event["outcome"] == "idle_timeout")
