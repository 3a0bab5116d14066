"""Passed descriptors, however connections die: none is lost that should arrive, and none stays with sockguard."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from sockguard.privsep.channel import close_all
from tests.support.clients import connect
from tests.support.identities import open_folder, wait_until
from tests.support.passing import MOST, Tracer, guarding, open_files, receive, send
from tests.support.services import serving

pytestmark = pytest.mark.root

CONNECTIONS: Final = 10_000
BATCH: Final = 50


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


# What the client does with its connection, and the service, each by the letter that the client sends first.


def service(sock: socket.socket) -> None:
    sock.settimeout(60)
    letter = sock.recv(1, socket.MSG_PEEK)
    if letter == b"r":  # a reset: what has come stays unread
        return
    if letter == b"n":  # reads nothing, until the client has gone
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        poll.poll(60_000)
        return
    data, fds, _, _ = socket.recv_fds(sock, 1 << 16, MOST)
    try:
        if letter in b"eoh":  # echo, with what came along
            send(sock, data, fds)
            if letter == b"h":
                send(sock, b"more", fds)
                while receive(sock):
                    pass
        while letter in b"ek" and receive(sock):
            pass
    finally:
        close_all(fds)


def early(sock: socket.socket, fd: int) -> None:
    """Sends and closes at once."""
    send(sock, b"c", [fd, fd])


def late(sock: socket.socket, fd: int) -> None:
    """Sends, gets it back, closes."""
    send(sock, b"e", [fd])
    receive(sock)


def client_reset(sock: socket.socket, fd: int) -> None:
    """Closes with the answer unread."""
    send(sock, b"o", [fd] * 3)
    sock.recv(1, socket.MSG_PEEK)


def backend_reset(sock: socket.socket, fd: int) -> None:
    """Sends to a service that closes with everything unread."""
    send(sock, b"r", [fd])
    try:
        while receive(sock):
            pass
    except ConnectionResetError:
        pass


def half_open(sock: socket.socket, fd: int) -> None:
    """Ends its own direction, and reads the other to its end."""
    send(sock, b"h", [fd])
    sock.shutdown(socket.SHUT_WR)
    while receive(sock):
        pass


def unread(sock: socket.socket, fd: int) -> None:
    """Leaves many on their way to a service that reads none."""
    for _ in range(10):
        send(sock, b"n", [fd] * 20)


def unused(_: socket.socket, __: int) -> None:
    """Sends nothing."""


WAYS: Final[list[Callable[[socket.socket, int], None]]] = [
    *(early, late, client_reset, backend_reset, half_open, unread, unused, early, late),
]


def killed(public: Path, fd: int) -> None:
    """A client process with connections of every kind, killed with all of them open."""
    pid = os.fork()
    if pid == 0:
        socks = [connect(public, 60) for _ in range(BATCH)]
        for number, sock in enumerate(socks):
            for _ in range(number % 4):
                send(sock, b"kn"[number % 2 :][:1], [fd] * (1 + number % 3))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_ten_thousand_connections(tracer: Tracer) -> None:
    """Whatever way they end, afterwards every process of the daemon has as many files open as before, and of the
    descriptor that all of them passed no copy is left."""
    with open_folder() as folder, serving(folder / "private", service), guarding(folder, folder / "private") as daemon:
        public = folder / "public"

        def batch(number: int) -> None:
            if number % 10 == 9:
                killed(public, tracer.reader)
                return
            socks = [connect(public, 60) for _ in range(BATCH)]
            for index, sock in enumerate(socks):
                with sock:
                    WAYS[index % len(WAYS)](sock, tracer.reader)

        def all_told(count: int) -> bool:
            return sum(b'"connection_closed"' in line for line in list(daemon.lines)) >= count

        for number in (0, 9):  # what is opened on first use is open from here on
            batch(number)
        wait_until(lambda: all_told(2 * BATCH), "the first ones have ended", 30)
        before = {**open_files(daemon), -1: 0}  # some of what they passed may still be being closed
        for number in range(CONNECTIONS // BATCH):
            batch(number)
        wait_until(lambda: all_told(CONNECTIONS + 2 * BATCH), "all have ended", 60)
        tracer.finish()
        wait_until(lambda: open_files(daemon) == before, "as many files are open as before", 30)
        outcomes = {event["outcome"] for event in daemon.events("connection_closed")}
        assert {"closed", "client_reset", "backend_reset"} <= outcomes <= {"closed", "client_reset", "backend_reset"}


def test_a_drain_takes_all_along(tracer: Tracer) -> None:
    """Connections that are cut at the end of a drain, with descriptors on their way both ways, leave none behind."""

    def both(sock: socket.socket) -> None:
        send(sock, b"x", [tracer.reader] * 5)
        send(sock, b"x", [tracer.reader] * 5)
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        poll.poll(60_000)

    with open_folder() as folder, serving(folder / "private", both), ExitStack() as socks:
        with guarding(folder, folder / "private") as daemon:
            for _ in range(100):
                sock = socks.enter_context(connect(folder / "public", 60))
                send(sock, b"y", [tracer.reader] * 10)
                sock.recv(1, socket.MSG_PEEK)
        ends = daemon.events("connection_closed")
        assert [event["outcome"] for event in ends] == ["drain_timeout"] * 100
        socks.close()
        tracer.finish()


@pytest.mark.parametrize("size", [1, 40], ids=["one byte", "more"])
def test_two_guards_in_a_row(tracer: Tracer, size: int) -> None:
    """Each of two daemons, one behind the other, sees that the next takes what it passes on: thousands of descriptors
    get through, in messages of all sizes, both ways."""
    counts = [MOST] * 20 + [1] * 1500 + [100] * 20

    def back(sock: socket.socket) -> None:
        """What came, each message with its descriptors."""
        while True:
            data, fds, _, _ = socket.recv_fds(sock, size, MOST)
            if not data:
                return
            assert len(data) == size
            send(sock, data, fds)
            close_all(fds)

    def count(sock: socket.socket) -> list[int]:
        got: list[int] = []
        while len(got) < len(counts):
            data, fds, flags, _ = socket.recv_fds(sock, size, MOST)
            close_all(fds)
            assert len(data) == size
            assert not flags & socket.MSG_CTRUNC
            got.append(len(fds))
        return got

    with (
        open_folder() as folder,
        serving(folder / "private", back),
        guarding(folder, folder / "private", relays=1, listen="inner"),
        guarding(folder, folder / "inner", relays=1, listen="outer"),
        connect(folder / "outer", 60) as sock,
    ):

        def write() -> None:
            for number in counts:
                send(sock, b"m" * size, [tracer.reader] * number)

        writer = threading.Thread(target=write)
        writer.start()
        assert count(sock) == counts
        writer.join()
    tracer.finish()
