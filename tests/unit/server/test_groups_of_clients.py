"""Clients with very many groups: what control keeps of them, what it reads, and who comes when."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from sockguard.identity import peercred
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.server.connections import Connection
from sockguard.server.turns import Turns
from sockguard.server.waiting_room import WaitingRoom
from tests.unit.server.conftest import Control, allow, config, proxy

UID = 4242
MANY = range(200_000, 200_000 + peercred.NGROUPS_MAX)


def by_groups(*gids: int, action: Action = Action.ALLOW) -> Rule:
    return Rule("by-group", action, Who(groups=frozenset(gids)))


@contextlib.contextmanager
def clients(groups: range, count: int) -> Iterator[list[socket.socket]]:
    """Connections, as they are accepted, of one process of that user."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen(count)
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups(groups)
                os.setresgid(UID, UID, UID)
                os.setresuid(UID, UID, UID)
                made = [socket.socket(socket.AF_UNIX) for _ in range(count)]
                for one in made:
                    one.connect(listener.getsockname())
                made[0].recv(1)
            finally:
                os._exit(0)
        listener.settimeout(60)
        accepted = [listener.accept()[0] for _ in range(count)]
        try:
            yield accepted
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


async def admitted(made: Control, groups: range, count: int) -> list[Connection]:
    with clients(groups, count) as accepted:
        for client in accepted:
            await made.admissions["web"].arrive(client)
    return list(made.connections)


@pytest.mark.root
@pytest.mark.parametrize("rule", [allow("a", UID), by_groups(MANY[5])], ids=["by user", "by group"])
async def test_what_is_kept_of_many_groups(rule: Rule) -> None:
    """They took 4 MiB a connection."""
    made = Control(config(proxy("web", rule)))
    one, other = await admitted(made, MANY, 2)
    assert sys.getsizeof(one.peer.groups) < 1000
    assert one.peer.groups is other.peer.groups
    assert one.groups is other.groups
    made.close()


@pytest.mark.root
async def test_equal_groups_of_ordinary_clients_are_one_object() -> None:
    made = Control(config(proxy("web", allow("a", UID))))
    one, other = await admitted(made, MANY[:1000], 2)
    assert one.peer.groups is other.peer.groups
    assert one.groups is other.groups
    made.close()


@pytest.mark.root
@pytest.mark.parametrize("count", [100, peercred.NGROUPS_MAX])
async def test_rules_that_name_other_groups_later(count: int) -> None:
    """Of few groups it is known whether the new one is among them; of many it is not, and then a deny acts."""
    made = Control(config(proxy("web", allow("a", UID))))
    (one,) = await admitted(made, MANY[:count], 1)
    admission = one.admission
    for rules, few in (
        ((by_groups(MANY[5]),), True),
        ((by_groups(7),), False),
        ((allow("a", UID), by_groups(MANY[5], action=Action.DENY)), False),
        ((allow("a", UID), by_groups(7, action=Action.DENY)), True),
    ):
        admission.renew(proxy("web", *rules), admission._accounts)
        assert admission.still_admits(one) == (few and count == 100)
    admission.renew(proxy("web", allow("a", UID)), admission._accounts)
    assert admission.still_admits(one)
    made.close()


@pytest.mark.root
async def test_groups_are_not_read_of_a_user_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Control(config(proxy("web", by_groups(MANY[5]), max_connections_per_user=1)))
    reads = 0
    raw = peercred.raw_groups

    def counted(sock: socket.socket) -> object:
        nonlocal reads
        reads += 1
        return raw(sock)

    monkeypatch.setattr(peercred, "raw_groups", counted)
    assert len(await admitted(made, MANY, 5)) == 1
    assert reads == 1
    assert [told["cause"] for told in made.audit.named("connection_denied")] == ["limit"] * 4
    made.close()


@pytest.mark.root
async def test_whoever_has_many_groups_keeps_nobody_in_front_of_the_door() -> None:
    """Reading them waits for its turn, so that an ordinary client that comes behind is judged first."""
    made = Control(config(proxy("web", Rule("a", Action.ALLOW, Who(Users(anyone=True))), by_groups(7))))
    with clients(MANY, 3) as crowd, clients(range(5), 1) as (ordinary,):
        async with trio.open_nursery() as nursery:
            room = WaitingRoom(made.admissions["web"], nursery, lambda: None)
            for client in (*crowd, ordinary):
                await room.arrive(client, "")
            assert [one.groups.asked for one in made.connections if one.groups] == [None]
        assert len(made.connections) == 4
    made.close()


async def test_users_come_in_turn() -> None:
    """However many one user has waiting, another is next but one; and what nobody waits in is forgotten."""
    turns = Turns()
    all_there = trio.Event()
    order: list[int] = []

    async def work(user: int) -> None:
        async with turns.one(user):
            await all_there.wait()
            order.append(user)

    async with trio.open_nursery() as nursery:
        for user in (1, 1, 1, 1, 2):
            nursery.start_soon(work, user)
            await trio.testing.wait_all_tasks_blocked()
        all_there.set()
    assert order == [1, 2, 1, 1, 1]
    assert turns._queues == {}


async def test_a_turn_that_is_given_up_is_the_next_one_s() -> None:
    """Who is cancelled while it waits holds nobody up."""
    turns = Turns()
    done: list[int] = []

    async def work(user: int, scope: trio.CancelScope) -> None:
        with scope:
            async with turns.one(user):
                done.append(user)

    given_up = [trio.CancelScope(), trio.CancelScope()]
    async with trio.open_nursery() as nursery, turns.one(1):
        for scope in (*given_up, trio.CancelScope()):
            nursery.start_soon(work, 1, scope)
        await trio.testing.wait_all_tasks_blocked()
        for scope in given_up:
            scope.cancel()
    assert done == [1]
    assert turns._queues == {}
