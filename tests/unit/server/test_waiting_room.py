"""Clients whose program is looked up wait each by itself, up to what their user may have."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio
import trio.testing

from sockguard.identity import peercred
from sockguard.identity.peer import Unknown
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.server import waiting_room
from sockguard.server.waiting_room import WaitingRoom
from tests.unit.server.conftest import Control, allow, config, proxy

BY_PROGRAM = Rule("a", Action.ALLOW, Who(Users(anyone=True), executables=("/bin/x",)))


class Case:
    """A room before a proxy of which one user may have two connections; nobody's program is known before ``known``."""

    def __init__(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, *rules: Rule) -> None:
        self.made = Control(config(proxy("web", *(rules or (BY_PROGRAM,)), max_connections_per_user=2)))
        self.known = trio.Event()
        self.done = 0
        self.peers: list[socket.socket] = []
        self.uid = 1
        monkeypatch.setattr(peercred, "credentials", lambda _: (1, self.uid, 0))
        monkeypatch.setattr(self.made.relays, "executable", self._executable, raising=False)
        self.room = WaitingRoom(self.made.admissions["web"], nursery, self._done)

    async def _executable(self, *_: object) -> Unknown:
        await self.known.wait()
        return Unknown("nobody knows")

    def _done(self) -> None:
        self.done += 1

    async def arrive(self, uid: int) -> None:
        self.uid = uid
        client, peer = socket.socketpair()
        self.peers.append(peer)
        await self.room.arrive(client, "")

    def denied(self) -> list[tuple[Any, Any]]:
        return [(told["uid"], told["cause"]) for told in self.made.audit.named("connection_denied")]

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.made.close()


async def test_one_user_waits_and_another_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond what a user may have open is turned away at once."""
    async with trio.open_nursery() as nursery:
        case = Case(nursery, monkeypatch)
        for uid in (1, 1, 1, 2):
            await case.arrive(uid)
        assert case.denied() == [(1, "limit")]
        assert case.done == 0
        await trio.testing.wait_all_tasks_blocked()
        case.known.set()
    assert [cause for _, cause in case.denied()] == ["limit", "rules", "rules", "rules"]
    assert case.done == 3
    assert case.room._by_user == {}
    case.close()


async def test_a_room_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accept loop stands still until somebody has left."""
    monkeypatch.setattr(waiting_room, "MAX_WAITING", 1)
    async with trio.open_nursery() as nursery:
        case = Case(nursery, monkeypatch)
        await case.arrive(1)
        nursery.start_soon(case.arrive, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert case.room._count == 1
        assert 2 not in case.room._by_user
        case.known.set()
    assert len(case.denied()) == 2
    case.close()


async def test_those_who_wait_are_dropped_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        case = Case(nursery, monkeypatch)
        await case.arrive(1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert case.peers[0].recv(1) == b""
    assert case.denied() == []
    case.close()


async def test_without_rules_on_programs_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        case = Case(nursery, monkeypatch, allow("nobody", os.getuid() + 77))
        await case.arrive(1)
        assert case.denied() == [(1, "rules")]
        assert case.done == 0
    case.close()
