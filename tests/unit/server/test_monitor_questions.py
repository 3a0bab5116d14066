"""Control's questions to the monitor: each gets its own answer, whatever becomes of the one who asked."""

from __future__ import annotations

import socket

import trio
import trio.testing

from sockguard.identity.peer import Unknown
from sockguard.privsep import channel
from sockguard.privsep.messages import CONTROL_TO_MONITOR, Alive, Facts, Heartbeat, ProcessFacts
from sockguard.server.privileges import FromMonitor
from tests.unit.server.conftest import allow, proxy

PROXY = proxy("web", allow("all"))
USER = 4242


async def _next_question(monitor: socket.socket) -> None:
    await trio.lowlevel.wait_readable(monitor)
    received = channel.receive(monitor, CONTROL_TO_MONITOR)
    assert received is not None
    assert isinstance(received[0], Facts)
    channel.close_all(received[1])


async def test_question_that_nobody_waits_for() -> None:
    """An answer that comes after its asker was cancelled is nobody's: the next client is not taken for that one."""
    ours, monitor = channel.pair()
    client, _peer = socket.socketpair()
    privileges = FromMonitor(ours)
    found = []

    async def ask_and_be_cancelled(scope: trio.CancelScope) -> None:
        with scope:
            await privileges.executable(PROXY, client, USER)

    with monitor, client, _peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(privileges.run)
            scope = trio.CancelScope()
            nursery.start_soon(ask_and_be_cancelled, scope)
            await _next_question(monitor)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            channel.send(monitor, ProcessFacts("", "first"))

            async def ask() -> None:
                found.append(await privileges.executable(PROXY, client, USER))

            nursery.start_soon(ask)
            await _next_question(monitor)
            channel.send(monitor, ProcessFacts("", "second"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        privileges.close()
    assert found == [Unknown("second")]


async def test_answer_for_one_who_is_to_end() -> None:
    """Whoever is to end while the monitor looks a program up hears of that, not of the program: nobody is let in."""
    ours, monitor = channel.pair()
    client, _peer = socket.socketpair()
    privileges = FromMonitor(ours)
    found = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await privileges.executable(PROXY, client, USER))

    with monitor, client, _peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(privileges.run)
            scope = trio.CancelScope()
            nursery.start_soon(ask, scope)
            await _next_question(monitor)
            scope.cancel()
            channel.send(monitor, ProcessFacts("/usr/bin/program", ""))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        privileges.close()
    assert scope.cancelled_caught
    assert found == []


async def test_the_monitor_asks_whether_control_is_alive() -> None:
    """It is answered by the event loop, also while a question of control's own is open."""
    ours, monitor = channel.pair()
    client, _peer = socket.socketpair()
    privileges = FromMonitor(ours)
    with monitor, client, _peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(privileges.run)
            nursery.start_soon(privileges.executable, PROXY, client, USER)
            await _next_question(monitor)
            for number in (1, 2):
                channel.send(monitor, Heartbeat(number))
                await trio.lowlevel.wait_readable(monitor)
                assert channel.receive(monitor, CONTROL_TO_MONITOR) == (Alive(number), [])
            channel.send(monitor, ProcessFacts("/usr/bin/program", ""))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        privileges.close()


async def test_telling_when_the_monitor_has_gone() -> None:
    """There is nobody to tell: nothing is raised, and the end goes on."""
    ours, monitor = channel.pair()
    monitor.close()
    privileges = FromMonitor(ours)
    await privileges.tell("stopping", "x")
    privileges.close()
