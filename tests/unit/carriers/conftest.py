"""Carriers as a relay has them: real processes, and an event loop of the test's own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from sockguard.carriers import master, pool
from sockguard.carriers.jobs import Job, Report
from sockguard.carriers.pool import Account, Carrier, Carriers

SECONDS = 20.0


class Loop:
    """What a relay's event loop is to its carriers; it runs only while the test waits for something."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.master = master.start(pool.SLOTS)
        self.master.wait_ready()
        self.carriers = Carriers(self.master, self)
        self.readers: list[Carrier] = []

    def listen_to(self, sock: socket.socket, reader: Carrier) -> None:
        self.readers.append(reader)
        self._selector.register(sock, selectors.EVENT_READ, reader)

    def leave(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def call_on_time(self) -> None:
        """Here time is told at each turn."""

    def until(self, condition: Callable[[], bool]) -> None:
        """Run until it holds."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            for key, _ in self._selector.select(0.02):
                key.data.pump()
            self.carriers.on_time()

    def carry(self, account: Account, job: Job, source: socket.socket, target: socket.socket) -> list[Report]:
        """Ask for it; what is reported appears in the list."""
        reports: list[Report] = []
        self.carriers.carry(account, job, source, target, reports.append)
        return reports

    def take(
        self, account: Account, job: Job, source: socket.socket, lost: Callable[[], None] = lambda: None
    ) -> list[Report]:
        reports: list[Report] = []
        self.carriers.take(account, job, source, reports.append, lost)
        return reports

    def send(self, account: Account, job: Job, target: socket.socket, content: bytes) -> list[Report]:
        reports: list[Report] = []
        self.carriers.send(account, job, target, content, reports.append)
        return reports

    def done(self, reports: list[Report]) -> Report:
        """The one report that comes."""
        self.until(lambda: bool(reports))
        (report,) = reports
        return report

    def close(self) -> None:
        self._selector.close()
        self.master.close()


def fill(sock: socket.socket) -> None:
    """Send until there is no room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Pair:
    """A connection: the end of a peer, and ours."""

    def __init__(self, kind: int) -> None:
        self.peer, self.ours = socket.socketpair(type=kind)
        self.ours.setblocking(False)
        self.peer.settimeout(SECONDS)

    def close(self) -> None:
        self.peer.close()
        self.ours.close()


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(kind: int = socket.SOCK_STREAM) -> Pair:
        made.append(Pair(kind))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


class Lingering:
    """A TCP socket with data that nobody reads: its last close waits for so many seconds, or until ``release``."""

    def __init__(self, seconds: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock = socket.create_connection(listener.getsockname())
            self._reader, _ = listener.accept()
        self.sock.setblocking(False)
        fill(self.sock)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))

    def give(self, sock: socket.socket, data: bytes = b"x") -> None:
        """Send it to there, and keep no copy."""
        socket.send_fds(sock, [data], [self.sock.fileno()])
        self.sock.close()

    def release(self) -> None:
        """Whoever waits in its close need wait no longer."""
        if self._reader.fileno() >= 0:
            self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._reader.close()


@pytest.fixture
def lingering() -> Iterator[Callable[[], Lingering]]:
    made: list[Lingering] = []

    def make() -> Lingering:
        made.append(Lingering(60))
        return made[-1]

    yield make
    for each in made:
        each.release()
        each.sock.close()
