"""Connecting to the private socket: a full backlog and a restart are waited out, each for its own time, no longer."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sockguard.privsep import foreign
from sockguard.server import backend
from sockguard.server.backend import RESTART_SECONDS, Unavailable


def attempt(path: Path) -> Callable[[], Awaitable[socket.socket | int]]:
    """What the daemon does with ``identity = "proxy"``."""

    async def once() -> socket.socket | int:
        return backend.try_connect(str(path))

    return once


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "private"


def listening(path: Path, backlog: int = 128) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(backlog)
    return sock


@pytest.fixture
def full(path: Path) -> Iterator[socket.socket]:
    """A service whose backlog is full: it holds one more than it says."""
    with listening(path, 0) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        yield listener


async def test_a_service_that_is_there(path: Path) -> None:
    """Connected at once, non-blocking, to whoever listens."""
    with listening(path) as listener:
        sock = await backend.connect(attempt(path), 5)
        assert isinstance(sock, socket.socket)
        with sock, listener.accept()[0] as accepted:
            assert not sock.getblocking()
            sock.send(b"x")
            assert accepted.recv(10) == b"x"


async def test_a_full_backlog_is_never_taken_for_a_connection(path: Path, full: socket.socket) -> None:
    """One attempt at a full backlog is EAGAIN, not a socket."""
    assert backend.try_connect(str(path)) == errno.EAGAIN


async def test_a_full_backlog_is_waited_out(
    path: Path, full: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """It takes connect_timeout, no less and little more, and then says backend_timeout with its reason."""
    start = trio.current_time()
    assert await backend.connect(attempt(path), 5) == Unavailable("backend_timeout", "its backlog was full for 5 s")
    assert 5 <= trio.current_time() - start < 5.2


async def test_room_in_the_backlog_is_found(
    path: Path, full: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """As soon as the service accepts, the one that waits gets in."""

    async def accept_later() -> None:
        await trio.sleep(3)
        full.accept()[0].close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_later)
        sock = await backend.connect(attempt(path), 5)
        assert isinstance(sock, socket.socket)
        assert 3 <= trio.current_time() < 3.2
        sock.close()


async def test_a_service_that_is_down(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """No path, or nobody behind it: RESTART_SECONDS, then backend_unavailable with the system's word."""
    assert await backend.connect(attempt(path), 5) == Unavailable("backend_unavailable", "No such file or directory")
    assert RESTART_SECONDS <= trio.current_time() < RESTART_SECONDS + 0.2
    listening(path).close()
    assert await backend.connect(attempt(path), 5) == Unavailable("backend_unavailable", "Connection refused")


async def test_a_short_connect_timeout_bounds_the_restart_too(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody waits for longer than connect_timeout."""
    assert isinstance(await backend.connect(attempt(path), 0.3), Unavailable)
    assert trio.current_time() < 0.5


async def test_a_service_that_restarts(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A service that comes back within RESTART_SECONDS gets its client."""

    async def start_later() -> None:
        await trio.sleep(0.5)
        nursery.start_soon(hold, listening(path))

    async def hold(listener: socket.socket) -> None:
        with listener:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_later)
        sock = await backend.connect(attempt(path), 5)
        assert isinstance(sock, socket.socket)
        sock.close()
        nursery.cancel_scope.cancel()


async def test_no_restart_cures_a_wrong_path(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """What waiting cannot change is said at once: a socket of another type."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        answer = await backend.connect(attempt(path), 5)
    assert answer == Unavailable("backend_unavailable", os.strerror(errno.EPROTOTYPE))
    assert trio.current_time() == 0


@pytest.mark.parametrize("seconds", [5.0])
async def test_no_descriptor_is_an_errno_and_waited_out(
    path: Path, autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    """Without a free descriptor an attempt raises nothing; connect waits for one until connect_timeout."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening(path):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert backend.try_connect(str(path)) == errno.EMFILE
            answer = await backend.connect(attempt(path), seconds)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answer == Unavailable("out_of_files", os.strerror(errno.EMFILE))
    assert seconds <= trio.current_time() < seconds + 0.2


async def test_an_attempt_leaves_no_descriptor(path: Path, full: socket.socket) -> None:
    """A failed attempt closes its socket (an unclosed one is a ResourceWarning, and that an error)."""
    lowest = os.dup(0)
    os.close(lowest)
    for _ in range(10):
        assert backend.try_connect(str(path)) == errno.EAGAIN
    again = os.dup(0)
    os.close(again)
    assert again == lowest


async def test_many_that_wait_share_their_attempts(autojump_clock: trio.testing.MockClock) -> None:
    """A service that hangs costs control no more than MAX_ATTEMPTS_PER_SECOND, however many clients wait for it."""
    attempts = 0

    async def full() -> socket.socket | int:
        nonlocal attempts
        attempts += 1
        return errno.EAGAIN

    async def wait() -> None:
        assert isinstance(await backend.connect(full, 30), Unavailable)

    async with trio.open_nursery() as nursery:
        for _ in range(3000):
            nursery.start_soon(wait)
        await trio.sleep(10)  # the first attempts of each come faster
        before = attempts
        await trio.sleep(10)
        assert attempts - before <= 10 * backend.MAX_ATTEMPTS_PER_SECOND + 3000  # one round, at the edge
        assert attempts > before


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("refuse_fds", [True, False])
async def test_descriptors_of_the_service(path: Path, kind: socket.SocketKind, refuse_fds: bool) -> None:
    """Where they are to be refused, the kernel does it from the first moment on, if it can (Linux 6.16)."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        foreign.refuse_all(listener)
        possible = foreign.takes_none(listener)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        listener.listen()
        sock = backend.try_connect(str(path), kind, refuse_fds=refuse_fds)
        assert isinstance(sock, socket.socket)
        with sock, listener.accept()[0] as accepted:
            assert foreign.takes_none(sock) is (refuse_fds and possible)
            if refuse_fds and possible:
                with pytest.raises(PermissionError):
                    socket.send_fds(accepted, [b"x"], [0])
            else:
                socket.send_fds(accepted, [b"x"], [0])
