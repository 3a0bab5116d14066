"""The accept loop: what becomes of a client whose admission fails or is cancelled, and how the loop itself ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sockguard.server import listener


@pytest.fixture
def door(folder: Path) -> Iterator[tuple[socket.socket, Path]]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        sock.listen()
        sock.setblocking(False)
        yield sock, folder / "s"


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.setblocking(False)
    return sock


async def has_ended(sock: socket.socket) -> bool:
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(sock)
    return sock.recv(1) == b""


async def at_once() -> None:
    return


class Dropped:
    """What the loop has dropped: it is closed here, and nowhere else (a fake of Admission.drop)."""

    def __init__(self) -> None:
        self.clients: list[socket.socket] = []

    def __call__(self, client: socket.socket) -> None:
        assert client.fileno() >= 0
        self.clients.append(client)
        client.close()


async def test_a_fault_in_one_admission_ends_that_connection_only(door: tuple[socket.socket, Path]) -> None:
    """The client is closed, never let in, and the next one is looked at."""
    arrived = 0
    dropped = Dropped()

    async def arrive(client: socket.socket, _: str) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 1:
            raise ZeroDivisionError
        client.send(b"x")
        client.close()

    with connected(door[1]) as first, connected(door[1]) as second:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, "p", door[0], arrive, dropped, lambda: None, at_once)
            assert await has_ended(first)
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(second)
            assert second.recv(10) == b"x"
            nursery.cancel_scope.cancel()
    assert len(dropped.clients) == 1


async def test_a_client_in_mid_admission_is_closed_at_the_end(door: tuple[socket.socket, Path]) -> None:
    """Told to end while a client's program is looked up: that client is closed, not left hanging."""
    arrived = trio.Event()
    dropped = Dropped()

    async def arrive(_: socket.socket, __: str) -> None:
        arrived.set()
        await trio.sleep_forever()

    with connected(door[1]) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, "p", door[0], arrive, dropped, lambda: None, at_once)
            await arrived.wait()
            nursery.cancel_scope.cancel()
        assert await has_ended(client)
    assert len(dropped.clients) == 1


async def test_ended_while_an_admission_cannot_be_interrupted(door: tuple[socket.socket, Path]) -> None:
    """Told to end, and its listener closed, while a question waits for its answer come what may: it just ends."""
    asked, answer = trio.Event(), trio.Event()
    dropped = Dropped()

    async def arrive(client: socket.socket, _: str) -> None:
        with trio.CancelScope(shield=True):
            asked.set()
            await answer.wait()
        client.close()

    with connected(door[1]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, "p", door[0], arrive, dropped, lambda: None, at_once)
            await asked.wait()
            nursery.cancel_scope.cancel()
            door[0].close()
            answer.set()
    assert dropped.clients == []


async def test_ended_before_it_began(door: tuple[socket.socket, Path]) -> None:
    """Cancelled, and its listener closed, before its first step: it just ends."""

    async def arrive(_: socket.socket, __: str) -> None:
        raise AssertionError("nobody may come in")

    with connected(door[1]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, "p", door[0], arrive, Dropped(), lambda: None, at_once)
            nursery.cancel_scope.cancel()
            door[0].close()


async def test_nobody_is_accepted_without_room(door: tuple[socket.socket, Path]) -> None:
    """Clients wait in the backlog until there is room for what has to be recorded."""
    room = trio.Event()
    arrived = trio.Event()

    async def arrive(client: socket.socket, _: str) -> None:
        assert room.is_set()
        client.close()
        arrived.set()

    with connected(door[1]) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, "p", door[0], arrive, Dropped(), lambda: None, room.wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                client.recv(1)
            room.set()
            with trio.fail_after(10):
                await arrived.wait()
            nursery.cancel_scope.cancel()
