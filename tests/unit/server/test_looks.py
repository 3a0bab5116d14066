"""Looks at programs' files: a user has two at a time, and waits for nobody's but its own."""

from __future__ import annotations

import socket

import trio
import trio.testing

from sockguard.privsep import channel
from sockguard.privsep.messages import CONTROL_TO_MONITOR, Done, Facts, Looked
from sockguard.server.looks import HANGS, LOOK_SECONDS, MAX_A_USER, Looks
from sockguard.server.privileges import FromMonitor
from tests.unit.server.conftest import allow, proxy

PROXY = proxy("web", allow("all"))


async def test_a_users_looks_wait_for_that_users() -> None:
    looks = Looks()
    begun: list[int] = []

    async def begin(user: int) -> None:
        await looks.begin(user)
        begun.append(user)

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_A_USER + 1):
            nursery.start_soon(begin, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert begun == [1] * MAX_A_USER
        await begin(2)
        looks.end(1)
        await trio.testing.wait_all_tasks_blocked()
        assert begun.count(1) == MAX_A_USER + 1
    for user in (1, 1, 2):
        looks.end(user)
    assert (looks._under_way, looks._waiting) == ({}, {})


async def test_one_that_waits_is_cancelled() -> None:
    """Nothing is kept of it, and it takes nobody's turn."""
    looks = Looks()
    for _ in range(MAX_A_USER):
        await looks.begin(1)
    with trio.move_on_after(0):
        await looks.begin(1)
    looks.end(1)
    await looks.begin(1)
    for _ in range(MAX_A_USER):
        looks.end(1)
    assert (looks._under_way, looks._waiting) == ({}, {})


async def test_a_look_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    """Its client is told after its time. It counts until the monitor says how it ended; others of that user wait, and
    are told in their turn; another user's client is not concerned.
    """
    ours, monitor = channel.pair()
    monitor.setblocking(False)
    client, peer = socket.socketpair()
    privileges = FromMonitor(ours)
    found: list[tuple[int, object]] = []
    asked: list[int] = []

    async def look(user: int) -> None:
        found.append((user, await privileges.executable(PROXY, client, user)))

    async def answer() -> None:
        while True:
            await trio.lowlevel.wait_readable(monitor)
            received = channel.receive(monitor, CONTROL_TO_MONITOR)
            assert received is not None
            assert isinstance(received[0], Facts)
            channel.close_all(received[1])
            asked.append(received[0].number)
            channel.send(monitor, Done(0))
            if len(asked) > MAX_A_USER:
                channel.send(monitor, Looked(asked[-1], "/bin/x", ""))

    with monitor, client, peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(privileges.run)
            nursery.start_soon(answer)
            async with trio.open_nursery() as waiting:
                for _ in range(MAX_A_USER + 2):
                    waiting.start_soon(look, 1)
                while len(asked) < MAX_A_USER:
                    await trio.testing.wait_all_tasks_blocked()
                before = trio.current_time()
                await look(2)
                assert found == [(2, "/bin/x")]
                assert trio.current_time() == before
            assert found[1:] == [(1, HANGS)] * (MAX_A_USER + 2)
            assert trio.current_time() - before <= LOOK_SECONDS
            await look(1)
            assert (found[-1], len(asked)) == ((1, HANGS), MAX_A_USER + 1)
            for number in asked[:MAX_A_USER]:
                channel.send(monitor, Looked(number, "", "it has gone"))
            await look(1)
            assert found[-1] == (1, "/bin/x")
            nursery.cancel_scope.cancel()
        privileges.close()
