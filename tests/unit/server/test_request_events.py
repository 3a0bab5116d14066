"""What relays tell of requests: recorded with what control knows, believed in nothing else, and never without bound."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from sockguard.carriers.master import Master
from sockguard.identity.accounts import Accounts
from sockguard.privsep import channel
from sockguard.privsep.messages import (
    CREDITS,
    MAX_OVERDRAFT,
    MAX_REASON,
    Closed,
    Credits,
    GenerationTaken,
    Requests,
    Row,
    in_packets,
)
from sockguard.privsep.messages import Generation as GenerationMessage
from sockguard.protocols.base import MAX_REQUEST_TEXT
from sockguard.server.daemon import Daemon
from sockguard.server.privileges import Privileges
from sockguard.server.relays import RelayPool
from sockguard.server.separation import Separation
from tests.unit.server.conftest import SECONDS, Control, Make, Relays, allow, config, proxy

WEB = proxy("web", allow("everyone"), allow("ops", 7))
BUS = proxy("bus", allow("bus-users"), protocol="dbus")
PG = proxy("pg", allow("pg-users"), protocol="stream")
LEAST_GIVEN = CREDITS // 4


async def up(made: Control, *proxies: str) -> None:
    """Have a connection of uid 7 on each of these proxies, numbered from 1, in the relay's hands."""
    await made.relays.told(Credits)
    for name in proxies:
        made.admit(7, name)
        await made.relays.handed()


def row(*changed: Any, at: int = 0) -> Row:
    """A row that is right, from that field on as changed."""
    right: list[int | str] = [1, "denied", "ops", "no allow rule matches", "GET /x"]
    right[at : at + len(changed)] = changed
    return tuple(right)


async def test_events(control: Make) -> None:
    """Each kind is an event with the peer, the protocol and both texts as they came; no rule is none."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.relays.say(
            Requests((row(), row("would_deny", "", at=1), row("allowed", "everyone", "allowed by everyone", at=1)))
        )
        await made.until(lambda: bool(made.audit.named("request_allowed")))
        same = {"proxy": "web", "connection": 1, "uid": 7, "gid": 7, "user": None, "pid": 1}
        assert made.audit.told[1:] == [
            {
                "event": event,
                **same,
                "rule": rule,
                "reason": reason,
                "protocol": "http",
                "request": "GET /x",
            }
            for event, rule, reason in (
                ("request_denied", "ops", "no allow rule matches"),
                ("would_deny", None, "no allow rule matches"),
                ("request_allowed", "everyone", "allowed by everyone"),
            )
        ]
        assert (made.record.of("web").requests_denied, made.record.of("web").requests_would_deny) == (1, 1)
        assert (made.record.of("web").denied, made.record.of("web").would_deny) == (0, 0)
        (denial,) = made.record.denials
        assert {key: denial[key] for key in ("cause", "rule", "request")} == {
            "cause": "request",
            "rule": "ops",
            "request": "GET /x",
        }


@pytest.mark.parametrize(
    "lie",
    [
        row(9),
        row(2),  # another relay's
        row(3, "denied", "pg-users"),  # nobody inspects it
        row(3, "denied", ""),
        row("accepted", at=1),
        row("", at=1),
        row("no-such-rule", at=2),
        row("bus-users", at=2),  # another proxy's
        row("x" * (MAX_REQUEST_TEXT + 1), at=3),
        row("x" * (MAX_REQUEST_TEXT + 1), at=4),
        row(1, at=4),
        row("1"),
        row()[:4],
        (*row(), ""),
    ],
    ids=lambda lie: repr(lie)[:40],
)
async def test_a_lie_ends_the_relay(control: Make, lie: Row) -> None:
    """Foreign connections, foreign rules, too much text, another shape: nothing of it is recorded, nor what follows."""
    async with control(config(WEB, BUS, PG), 2) as made:
        await made.relays.told(Credits, 1)
        await up_on_two(made)
        made.relays.say(Requests((lie, row())))
        await made.until(lambda: made.relays.killed == [1])
        assert not made.audit.named("request_denied")
        assert {event["connection"] for event in made.audit.named("connection_closed")} == {1, 3}
        assert made.connections.get(2) is not None


async def up_on_two(made: Control) -> None:
    """Connections 1 (web) and 3 (pg) in the first relay's hands, 2 (bus) in the second's."""
    await made.relays.told(Credits)
    for name, relay in (("web", 0), ("bus", 1), ("pg", 0)):
        made.admit(7, name)
        await made.relays.handed(relay)


async def test_the_longest_texts_are_taken(control: Make) -> None:
    """What the bound allows, of any characters."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        texts = ("\U0010ffff" * MAX_REQUEST_TEXT, "\udcff" * MAX_REQUEST_TEXT)
        made.relays.say(Requests((row(*texts, at=3),)))
        await made.until(lambda: bool(made.audit.named("request_denied")))
        (event,) = made.audit.named("request_denied")
        assert (event["reason"], event["request"]) == texts


async def test_rules_of_the_generation_before(control: Make) -> None:
    """Requests that cross a reload name rules as the relay knew them; two reloads later they are a lie."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        for number in (2, 3):
            made.pool.new_generation(config(proxy("web", allow(f"rule{number}"))))
            await made.relays.told(GenerationMessage)
        made.relays.say(Requests((row("everyone", at=2),)))
        made.relays.say(GenerationTaken(2))
        made.relays.say(Requests((row("everyone", at=2), row("rule2", at=2))))
        made.relays.say(GenerationTaken(3))
        made.relays.say(Requests((row("rule2", at=2), row("rule3", at=2))))
        await made.until(lambda: len(made.audit.named("request_denied")) == 5)
        made.relays.say(Requests((row("everyone", at=2),)))
        await made.until(lambda: made.relays.killed == [1])
        assert len(made.audit.named("request_denied")) == 5


async def test_after_its_end_a_connection_has_no_requests(control: Make) -> None:
    """Requests come before the end of their connection; afterwards they are a lie."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.relays.say(Requests((row(),)))
        made.relays.say(Closed(((1, 1, 2, "malformed", "a header line without a colon"),)))
        made.relays.say(Requests((row(),)))
        await made.until(lambda: made.relays.killed == [1])
        assert len(made.audit.named("request_denied")) == 1


# ── how connections end ──


async def test_the_reason_of_an_end(control: Make) -> None:
    """It is told when there is one, and left out when there is none."""
    async with control(config(PG)) as made:
        await up(made, "pg", "pg")
        made.relays.say(Closed(((1, 1, 2, "malformed", "x" * MAX_REASON), (2, 1, 2, "closed", ""))))
        await made.until(lambda: not len(made.connections))
        first, second = made.audit.named("connection_closed")
        assert (first["outcome"], first["reason"]) == ("malformed", "x" * MAX_REASON)
        assert second["outcome"] == "closed"
        assert "reason" not in second


@pytest.mark.parametrize(
    "end",
    [
        (2, 0, 0, "closed", ""),
        (1, -1, 0, "closed", ""),
        (1, 0, -1, "closed", ""),
        (1, 0, 0, "gone", ""),
        (1, 0, 0, "relay_lost", ""),
        (1, 0, 0, "closed", "x" * (MAX_REASON + 1)),
        (1, 0, 0, "closed"),
        (1, 0, 0, "closed", 0),
    ],
    ids=lambda end: repr(end)[:40],
)
async def test_an_end_that_cannot_be_ends_the_relay(control: Make, end: Row) -> None:
    """And its connection is counted out as lost with it: a lie leaves nothing behind that counts as open."""
    async with control(config(PG)) as made:
        await up(made, "pg")
        made.relays.say(Closed((end,)))
        await made.until(lambda: made.relays.killed == [1])
        await made.until(lambda: not len(made.connections))
        (event,) = made.audit.named("connection_closed")
        assert event["outcome"] == "relay_lost"
        assert made.admissions["pg"].limits.total == 0


# ── credits ──


async def send(made: Control, count: int) -> None:
    """Tell of so many requests, and wait until control has heard of all."""
    told = made.audit.told
    wanted = len(told)
    for message in in_packets(Requests, [row()] * count):
        made.relays.say(message)
        wanted += len(message.rows)
        await made.until(lambda wanted=wanted: len(told) >= wanted)  # type: ignore[misc]


def given(made: Control) -> int:
    """Credits given since this was asked last."""
    return sum(message.count for message in made.relays.heard() if isinstance(message, Credits))


async def test_credits_come_back_for_what_was_recorded(control: Make) -> None:
    """A relay that is told of CREDITS has so many at any time, give or take what is not worth a message yet."""
    async with control(config(WEB)) as made:
        assert await made.relays.told(Credits) == Credits(CREDITS)
        made.admit(7)
        await made.relays.handed()
        left = CREDITS
        for count in (LEAST_GIVEN - 1, 1, LEAST_GIVEN, CREDITS - 1, 1, CREDITS):
            await send(made, count)
            left += given(made) - count
            assert CREDITS - LEAST_GIVEN < left <= CREDITS
        assert made.relays.killed == []


async def test_a_full_queue_gives_no_credits(control: Make) -> None:
    """While events cannot be written, none are given back; with room again, all of them at once."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.audit.full = True
        await send(made, CREDITS)
        assert given(made) == 0
        made.pool.give_credits()
        assert given(made) == 0
        made.audit.full = False
        made.pool.give_credits()
        assert given(made) == CREDITS
        made.pool.give_credits()
        assert given(made) == 0


async def test_a_relay_that_starts_while_the_queue_is_full_waits(control: Make) -> None:
    """One that dies again and again cannot fill the queue by the credits of its successors."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.audit.full = True
        made.relays.end()
        await made.until(lambda: len(made.relays.ends) == 2)
        await made.relays.generation(1)
        await made.until(lambda: len(list(made.pool)) == 1)
        assert [message for message in made.relays.heard(1) if isinstance(message, Credits)] == []
        made.audit.full = False
        made.pool.give_credits()
        assert await made.relays.told(Credits, 1) == Credits(CREDITS)


async def test_overdraft(control: Make) -> None:
    """What was read already may be told beyond the credits, as far as MAX_OVERDRAFT; one more ends the relay."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.audit.full = True
        await send(made, CREDITS + MAX_OVERDRAFT)
        assert made.relays.killed == []
        made.relays.say(Requests((row(),)))
        await made.until(lambda: made.relays.killed == [1])
        assert len(made.audit.named("request_denied")) == CREDITS + MAX_OVERDRAFT


async def test_an_overdraft_is_paid_first(control: Make) -> None:
    """However much was overdrawn, a relay has CREDITS when there is room again, and no more."""
    async with control(config(WEB)) as made:
        await up(made, "web")
        made.audit.full = True
        await send(made, CREDITS + 100)
        made.audit.full = False
        made.pool.give_credits()
        assert given(made) == CREDITS + 100


async def test_the_daemon_gives_credits_when_the_queue_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit log says so in its own thread; the pool hears of it in trio's. Else relays would stand for ever."""
    given = trio.Event()
    monkeypatch.setattr(RelayPool, "give_credits", lambda _: given.set())
    ours, theirs = channel.pair()
    with ours, theirs:
        master = Master(ours, ours, [], 0)
        rights = cast(Privileges, Relays())
        daemon = Daemon("f", config(WEB), Accounts.from_system(), rights, Separation(False, 0, 0), master)
        await trio.to_thread.run_sync(daemon._audit._on_room)
        with trio.fail_after(SECONDS):
            await given.wait()
