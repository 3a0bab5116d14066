"""What the monitor has accepted arrives with its proof; nobody comes in by a proxy that was removed meanwhile."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from sockguard.config.settings import Listen, ListenKind, Proxy
from sockguard.server.guards import Guards
from sockguard.server.listener import Arrival
from sockguard.server.privileges import Privileges
from tests.unit.server.conftest import Control, allow, config, proxy


class Monitor:
    """Accepts when a test says so (a fake of the monitor's answer)."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.asked = trio.Event()
        self.answer = trio.Event()

    async def accept(self, _: Proxy, most: int) -> list[Arrival]:
        with trio.CancelScope(shield=True):  # as a question to the monitor is
            self.asked.set()
            await self.answer.wait()
        return [Arrival(self.listener.accept()[0], "a proof")]


class Case:
    """One client that waits in the listening socket of a proxy whose service is to see it."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        shown = replace(
            proxy("web", allow("all"), identity="client", allow_root_identity=True),
            listen=Listen(ListenKind.PATH, str(folder / "s")),
        )
        self.made = Control(config(shown))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "s"))
        self.listener.listen()
        self.listener.setblocking(False)
        self.monitor = Monitor(self.listener.dup())
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(5)
        self.client.connect(str(folder / "s"))

        async def at_once() -> None:
            pass

        privileges = cast(Privileges, self.monitor)
        self.guards = Guards(nursery, lambda: None, at_once, self.made.disposer, privileges)
        self.guards.add(self.made.admissions["web"], self.listener)

    def close(self) -> None:
        self.monitor.listener.close()
        self.listener.close()
        self.client.close()
        self.made.close()


@pytest.fixture
async def case(folder: Path, nursery: trio.Nursery) -> AsyncIterator[Case]:
    made = Case(folder, nursery)
    yield made
    made.close()


async def test_it_arrives_with_its_proof(case: Case) -> None:
    await case.monitor.asked.wait()
    case.monitor.answer.set()
    with trio.fail_after(10):
        while not len(case.made.connections):
            await trio.sleep(0.01)
    (connection,) = case.made.connections
    assert connection.proof == "a proof"


async def test_the_proxy_was_removed_meanwhile(case: Case) -> None:
    """The client sees the end, and is no connection; it was not admitted by what holds no more."""
    await case.monitor.asked.wait()
    arrived, _ = case.listener.accept()  # before the listener is ended, as by the monitor
    case.monitor.listener.close()
    case.monitor.listener = cast(socket.socket, Accepted(arrived))
    case.guards.remove("web")
    case.monitor.answer.set()
    await trio.testing.wait_all_tasks_blocked()
    assert case.client.recv(1) == b""
    assert len(case.made.connections) == 0
    assert case.made.audit.told == []


class Accepted:
    """A listening socket of which the next connection has been accepted already."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def accept(self) -> tuple[socket.socket, str]:
        return self._sock, ""

    def close(self) -> None:
        self._sock.close()
