"""What relays are told of rules: everything before it is used, and the same to all of them."""

from __future__ import annotations

import os

import pytest

from sockguard.privsep.messages import Assign, Close, Closed, ConnectionsTaken, Credits, RuleSets
from sockguard.privsep.messages import Connections as Batch
from sockguard.privsep.messages import Generation as GenerationMessage
from sockguard.protocols.base import RequestRule
from sockguard.server import rule_sets
from tests.unit.server.conftest import Control, Make, allow, config, deny, proxy

GET = ({"path": "/x"},)
RULES = (allow("a", 1, 2), allow("b", 2, what=GET), deny("c", 3, what=GET), allow("all"))


async def test_content(control: Make) -> None:
    """Rules and options go to relays for inspected protocols only; the uid that the service sees goes with them."""
    proxies = (
        proxy("web", *RULES, enforce=False, idle_timeout=1.0, options={"strip_prefix": "docker-version"}),
        proxy("pg", allow("pg"), protocol="stream", identity="client", fds="refuse", sender="same-user"),
    )
    async with control(config(*proxies, requests="all")) as made:
        made.pool.new_generation(config(*proxies, requests="all"))
        await made.relays.told(Credits)
        number, content = await made.relays.generation()
    web, pg = content.proxies
    assert (number, content.log_allowed, content.sets, content.connections) == (2, True, [], {})
    assert (web.enforce, web.options, web.backend_uid, web.idle_ticks) == (
        False,
        {"strip_prefix": "docker-version"},
        os.geteuid(),
        4,
    )
    assert web.rules == (
        RequestRule("a", False, None),
        RequestRule("b", False, [{"path": "/x"}]),
        RequestRule("c", True, [{"path": "/x"}]),
        RequestRule("all", False, None),
    )
    assert (pg.enforce, pg.options, pg.backend_uid, pg.rules) == (True, {}, None, ())
    assert (pg.refuse_fds, pg.same_user) == (True, True)


async def test_requests_that_are_allowed_are_told_only_if_the_file_says_so(control: Make) -> None:
    """[log] requests = "denied" is the default."""
    async with control(config(proxy("web", *RULES))) as made:
        made.pool.new_generation(config(proxy("web", *RULES)))
        await made.relays.told(Credits)
        assert (await made.relays.generation())[1].log_allowed is False


async def test_a_set_is_told_before_it_is_used_and_once(control: Make) -> None:
    """Each relay learns of new sets before the connections that have them; known ones are not told again."""
    async with control(config(proxy("web", *RULES), proxy("pg", *RULES, protocol="stream"))) as made:
        await made.relays.told(Credits)
        made.admit(1)
        assert await made.relays.told(RuleSets) == RuleSets(((0, 0, "0,3"),))
        assert (await made.relays.taken()).rows[0][2:] == (0, 0, 1, 1)
        made.admit(1)
        assert (await made.relays.taken()).rows[0][2:] == (0, 0, 1, 1)
        made.admit(2)
        assert await made.relays.told(RuleSets) == RuleSets(((1, 0, "0,1,3"),))
        assert (await made.relays.taken()).rows[0][2:] == (0, 1, 2, 2)
        made.admit(4, "pg")
        assert (await made.relays.taken()).rows[0][2:] == (1, 0, 4, 4)  # nobody reads its requests


async def test_a_relay_is_told_whom_a_connection_counts_for(control: Make) -> None:
    """The uid that the kernel tells, and behind it the user: of a sub-uid, its owner."""
    async with control(config(proxy("pg", allow("pg"), protocol="stream"))) as made:
        await made.relays.told(Credits)
        made.admit(100_001, "pg", owner=1000)
        assert (await made.relays.taken()).rows[0][4:] == (100_001, 1000)
        made.admit(1000, "pg")
        assert (await made.relays.taken()).rows[0][4:] == (1000, 1000)


async def test_every_relay_knows_every_set(control: Make) -> None:
    """A number means the same to all: what one relay was told first, another is told before it goes on."""
    async with control(config(proxy("web", *RULES)), 2) as made:
        for relay in (0, 1):
            await made.relays.told(Credits, relay)
        for uid in (1, 2):
            made.admit(uid)
        told = [await made.relays.told(RuleSets, relay) for relay in (0, 1)]
        assert told[0] == RuleSets(((0, 0, "0,3"),))
        assert told[1] == RuleSets(((0, 0, "0,3"), (1, 0, "0,1,3")))
        assert [(await made.relays.taken(relay)).rows[0][3] for relay in (0, 1)] == [0, 1]


async def test_a_relay_that_starts_later_gets_all_sets(control: Make) -> None:
    """A replacement is not told set by set."""
    async with control(config(proxy("web", *RULES))) as made:
        await made.relays.told(Credits)
        made.admit(1)
        await made.relays.told(RuleSets)
        made.relays.end()
        await made.until(lambda: len(made.relays.ends) == 2)
        _, content = await made.relays.generation(1)
        assert (content.sets, content.connections) == ([(0, (0, 3))], {})
        await made.relays.told(Credits, 1)
        made.admit(1)
        assert (await made.relays.taken(1)).rows[0][3] == 0


async def test_a_relay_switches_all_at_once(control: Make) -> None:
    """A generation has the sets of the live connections of the relay that it goes to, and of no other."""
    async with control(config(proxy("web", *RULES), proxy("pg", allow("pg"), protocol="stream")), 2) as made:
        ours, theirs = [made.admit(uid) for uid in (1, 2)]
        plain = made.admit(1, "pg")
        closing = made.admit(1)
        for relay in (0, 1):
            await made.relays.told(Credits, relay)
            told = [await made.relays.told(RuleSets, relay)]
            await made.relays.taken(relay)
            if relay == 0:  # before its second batch: it is told all sets that there are
                told.append(await made.relays.told(RuleSets, relay))
            await made.relays.taken(relay)
            assert [len(message.rows) for message in told] == ([1, 1] if relay == 0 else [2])
        made.pool.close(closing, "revoked")
        theirs.rules = (3,)
        made.pool.new_generation(config(proxy("web", *RULES), proxy("pg", allow("pg"), protocol="stream")))
        assert plain.rules == ()
        _, content = await made.relays.generation(0)
        assert (content.sets, content.connections) == ([(0, (0, 3))], {ours.number: 0})
        await made.relays.told(Close, 1)
        _, content = await made.relays.generation(1)
        assert (content.sets, content.connections) == ([(0, (0, 3)), (0, (3,))], {theirs.number: 1})


async def test_assign(control: Make) -> None:
    """Other rules for a live connection: the set is told first, and only to the relay that has the connection."""
    async with control(config(proxy("web", *RULES)), 2) as made:
        connections = [made.admit(1) for _ in range(2)]
        for relay in (0, 1):
            await made.relays.told(Credits, relay)
            await made.relays.told(RuleSets, relay)
            await made.relays.taken(relay)
        connections[1].rules = (3,)
        made.pool.assign([connections[1]])
        assert await made.relays.told(RuleSets, 1) == RuleSets(((1, 0, "3"),))
        assert await made.relays.told(Assign, 1) == Assign(((connections[1].number, 1),))
        assert Assign not in map(type, made.relays.heard(0))


async def test_many_are_assigned_in_messages_that_fit(control: Make) -> None:
    """However many a rule's end concerns."""
    async with control(config(proxy("web", *RULES, max_connections_per_user=9999, max_connections=9999))) as made:
        await made.relays.told(Credits)
        made.admit(1, count=100)
        await made.relays.told(RuleSets)
        await made.relays.taken()
        held = list(made.connections)
        for number, connection in enumerate(held):
            connection.rules = (number, *range(10_000, 10_500))
        made.pool.assign(held)
        rows = 0
        while isinstance(message := (await made.relays.next())[0], RuleSets):
            rows += len(message.rows)
        assert isinstance(message, Assign)
        assert (rows, len(message.rows)) == (100, 100)


async def test_no_more_sets(control: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose rules can be told to no relay ends, said plainly; those with known rules come in as before."""
    async with control(config(proxy("web", *RULES))) as made:
        monkeypatch.setattr(rule_sets, "MAX_SETS", 1)
        await made.relays.told(Credits)
        first = made.admit(1)
        await made.relays.told(RuleSets)
        await made.relays.taken()
        refused = made.admit(2)
        await made.until(lambda: made.connections.get(refused.number) is None)
        (event,) = made.audit.named("connection_closed")
        assert (event["outcome"], event["connection"]) == ("out_of_rule_sets", refused.number)
        assert event["reason"] == "there are 1 different sets of rules already: a reload begins anew"
        assert made.admissions["web"].limits.by_user == {1: 1}
        made.admit(1)
        await made.relays.taken()
        await live_connection_without_a_set(made, first.number)


async def live_connection_without_a_set(made: Control, number: int) -> None:
    """One that is live already is closed before anything is assigned, and left out of the next generation."""
    connection = made.connections.get(number)
    assert connection is not None
    connection.rules = (1,)
    made.pool.assign([connection])
    assert await made.relays.told(Close) == Close(((number, "out_of_rule_sets"),))
    assert made.relays.heard() == []
    made.pool.new_generation(config(proxy("web", *RULES)))
    _, content = await made.relays.generation()
    assert content.connections == {number + 2: 0}
    made.relays.say(Closed(((number, 5, 6, "out_of_rule_sets", ""),)))
    await made.until(lambda: made.connections.get(number) is None)
    assert made.relays.killed == []


async def test_batches_go_by_the_generation_in_force(control: Make) -> None:
    """What waits for a relay is told by the numbers of the generation that the relay was told last."""
    async with control(config(proxy("pg", allow("pg"), protocol="stream"), proxy("web", *RULES))) as made:
        await made.relays.told(Credits)
        made.admit(1)
        made.admit(2)  # waits: one batch is under way
        made.pool.new_generation(config(proxy("web", *RULES), proxy("pg", allow("pg"), protocol="stream")))
        assert await made.relays.told(RuleSets) == RuleSets(((0, 1, "0,3"),))
        assert (await made.relays.told(Batch)).rows[0][1:4] == (1, 1, 0)
        _, content = await made.relays.generation()
        assert content.sets == [(0, (0, 3))]
        made.relays.say(ConnectionsTaken(1))
        assert await made.relays.told(RuleSets) == RuleSets(((1, 0, "0,1,3"),))
        assert (await made.relays.taken()).rows[0][1:4] == (2, 0, 1)
        assert GenerationMessage not in map(type, made.relays.heard())
