"""What a client and a service see through the daemon: every byte, each half-close, passed fds, back-pressure."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sockguard.privsep.sockopt import SO_PASSRIGHTS
from tests.support.clients import connect
from tests.support.daemon import Daemon, running
from tests.support.identities import wait_started
from tests.support.services import echo, serving

MEGABYTE: Final = 1 << 20
BLOCK: Final = bytes(range(251)) * 4177  # about 1 MB; a length that divides no buffer
SECONDS: Final = 60.0


def configure(folder: Path, more: str = "") -> Path:
    text = "[daemon]\nrelays = 1\n"
    for name, fds in (("public", "forward"), ("refusing", "refuse")):
        text += f'[proxy.{name}]\nlisten = "{folder}/{name}"\nbackend = "{folder}/private"\nfds = "{fds}"\n{more}\n'
        text += f'[[proxy.{name}.allow]]\nusers = ["*"]\n'
    file = folder / "sockguard.toml"
    file.write_text(text)
    return file


@contextlib.contextmanager
def guarded(folder: Path, handle: Callable[[socket.socket], None]) -> Iterator[Daemon]:
    with (
        serving(folder / "private", handle),
        running(configure(folder), folder / "public", folder / "refusing") as daemon,
    ):
        wait_started(daemon)  # the relay's memory is measured: it has all of its modules by then
        yield daemon


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def send_hashed(sock: socket.socket, megabytes: int) -> str:
    digest = hashlib.sha256()
    for _ in range(megabytes):
        sock.sendall(BLOCK)
        digest.update(BLOCK)
    return digest.hexdigest()


def read_hashed(sock: socket.socket) -> str:
    digest = hashlib.sha256()
    while data := sock.recv(MEGABYTE):
        digest.update(data)
    return digest.hexdigest()


def resident(daemon: Daemon) -> int:
    """Bytes that the relay has in memory."""
    (pid,) = daemon.pids()["sockguard-relay"]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def all_copies_closed(writer: int) -> bool:
    """True when no read end of that pipe is open any more, in any process."""
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


def test_200_megabytes_each_way(folder: Path) -> None:
    """Both directions at the same time, each ended by a half-close of its own: what arrives is what was sent."""
    told: list[str] = []

    def handle(sock: socket.socket) -> None:
        writer = threading.Thread(target=write, args=(sock,))
        writer.start()
        told.append(read_hashed(sock))
        writer.join()

    def write(sock: socket.socket) -> None:
        told_sent.append(send_hashed(sock, 200))
        sock.shutdown(socket.SHUT_WR)

    told_sent: list[str] = []
    with guarded(folder, handle) as daemon, connect(folder / "public", SECONDS) as sock:
        before = resident(daemon)
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append(read_hashed(sock)))
        reader.start()
        sent = send_hashed(sock, 200)
        sock.shutdown(socket.SHUT_WR)
        reader.join()
        closed = daemon.wait_for("connection_closed")
        assert resident(daemon) - before < 10 * MEGABYTE
        wait_until(lambda: bool(told), "the service has read to the end")  # what was passed on is not read by that
    assert told == [sent]
    assert got == told_sent
    total = 200 * len(BLOCK)
    assert (closed["bytes_from_client"], closed["bytes_from_backend"]) == (total, total)
    assert closed["outcome"] == "closed"


@pytest.mark.parametrize("first", ["client", "service"])
def test_half_closes(folder: Path, first: str) -> None:
    """Whoever ends first, the other may go on for as long as it likes, and is heard."""
    order: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        if first == "service":
            sock.sendall(b"said all")
            sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(100):
            order.append(data)
        if first == "client":
            for part in (b"one ", b"two"):
                sock.sendall(part)
        done.set()

    done = threading.Event()
    with guarded(folder, handle) as daemon, connect(folder / "public") as sock:
        if first == "service":
            assert sock.recv(100) == b"said all"
            assert sock.recv(100) == b""
            for _ in range(3):
                sock.sendall(b"still here")
        else:
            sock.sendall(b"request")
        sock.shutdown(socket.SHUT_WR)
        rest = b""
        while data := sock.recv(100):
            rest += data
        assert rest == (b"one two" if first == "client" else b"")
        assert done.wait(SECONDS)
        assert b"".join(order) == (b"request" if first == "client" else b"still here" * 3)
        assert daemon.wait_for("connection_closed")["outcome"] == "closed"


LEAST: Final = MEGABYTE // 4
"""More than one socket takes: so much is taken only where somebody passes it on."""


def offer(sock: socket.socket) -> int:
    """Write up to 1 GB; gives what was taken when nothing more is, however long it takes until LEAST is."""
    offered = 0
    seconds = sock.gettimeout()
    sock.setblocking(False)
    while offered < 1 << 30:
        try:
            offered += sock.send(BLOCK)
        except BlockingIOError:
            if not select.select([], [sock], [], SECONDS if offered <= LEAST else 0.5)[1]:
                break
    sock.settimeout(seconds)
    return offered


def test_back_pressure(folder: Path) -> None:
    """A reader that sleeps slows its writer, either way round; memory stays flat; other connections do not notice."""
    taken: list[int] = []
    go_on = threading.Event()
    rest: list[int] = []

    def handle(sock: socket.socket) -> None:
        kind = sock.recv(1)
        if kind == b"e":
            echo(sock)
            return
        if kind == b"w":
            taken.append(offer(sock))
        go_on.wait(SECONDS)
        if kind == b"r":
            count = 0
            while data := sock.recv(MEGABYTE):
                count += len(data)
            rest.append(count)

    with guarded(folder, handle) as daemon, contextlib.ExitStack() as stack:
        reading, writing, other = (stack.enter_context(connect(folder / "public")) for _ in range(3))
        other.sendall(b"e" + b"x")
        assert other.recv(1) == b"x"
        before = resident(daemon)
        reading.sendall(b"r")
        offered = offer(reading)
        writing.sendall(b"w")
        wait_until(lambda: bool(taken), "the service is blocked")
        assert LEAST < offered < 2 * MEGABYTE
        assert LEAST < taken[0] < 2 * MEGABYTE
        for _ in range(100):
            other.sendall(b"ping")
            assert other.recv(4, socket.MSG_WAITALL) == b"ping"
        assert resident(daemon) - before < 10 * MEGABYTE
        go_on.set()
        reading.shutdown(socket.SHUT_WR)
        wait_until(lambda: rest == [offered], "what was taken arrives")
        got = 0
        while data := writing.recv(MEGABYTE):
            got += len(data)
        assert got == taken[0]


def test_passed_fds(folder: Path) -> None:
    """fds go both ways, at the byte they came with, as many as a message may have, and no copy stays behind."""

    def handle(sock: socket.socket) -> None:
        """Read a header of 4 bytes without room for fds, then a message with them; send them back likewise."""
        while header := sock.recv(4, socket.MSG_WAITALL):
            data, fds, _, _ = socket.recv_fds(sock, 1000, 253)
            sock.sendall(header)
            socket.send_fds(sock, [data], fds)
            for fd in fds:
                os.close(fd)

    with guarded(folder, handle) as daemon:
        reader, writer = os.pipe()
        files = [os.memfd_create(str(number)) for number in range(252)]
        with connect(folder / "public") as sock:
            for fds in ([reader], [reader, *files], [reader] * 3, *[[reader]] * 50):
                sock.sendall(b"head")
                socket.send_fds(sock, [b"message"], fds)
                assert sock.recv(4, socket.MSG_WAITALL) == b"head"
                data, got, _, _ = socket.recv_fds(sock, 1000, 253)
                assert data == b"message"
                assert [os.fstat(fd).st_ino for fd in got] == [os.fstat(fd).st_ino for fd in fds]
                for fd in got:
                    os.close(fd)
        for fd in (reader, *files):
            os.close(fd)
        wait_until(lambda: all_copies_closed(writer), "no copy is left")
        os.close(writer)
        assert daemon.wait_for("connection_closed")["outcome"] == "closed"


def test_fds_die_with_their_connection(folder: Path) -> None:
    """Connections that end with fds on their way, read by nobody: nothing of them stays in any process."""
    silent = threading.Event()

    def handle(_: socket.socket) -> None:
        silent.wait(SECONDS)

    with guarded(folder, handle) as daemon:
        reader, writer = os.pipe()
        for _ in range(20):
            with connect(folder / "public") as sock:
                for _ in range(10):
                    socket.send_fds(sock, [b"x"], [reader] * 5)
        os.close(reader)
        silent.set()
        wait_until(lambda: len(daemon.events("connection_closed")) == 20, "all have ended")
        wait_until(lambda: all_copies_closed(writer), "no copy is left")
        os.close(writer)


def test_refused_fds(folder: Path) -> None:
    """fds = "refuse": the sender gets EPERM where the kernel can say so, else the connection ends, and says why."""
    with guarded(folder, echo) as daemon, connect(folder / "refusing") as sock:
        reader, writer = os.pipe()
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            kernel_refuses = True
        except OSError:
            kernel_refuses = False
        if kernel_refuses:
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [b"x"], [reader])
            sock.sendall(b"bytes go on")
            assert sock.recv(100) == b"bytes go on"
        else:
            socket.send_fds(sock, [b"x"], [reader])
            assert daemon.wait_for("connection_closed")["outcome"] == "fds_refused"
        os.close(reader)
        wait_until(lambda: all_copies_closed(writer), "no copy is left")
        os.close(writer)
