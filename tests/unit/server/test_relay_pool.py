"""A relay that says what it must not is ended and replaced, and takes nothing along but its own connections."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sockguard.errors import ChannelError
from sockguard.privsep import channel
from sockguard.privsep.messages import (
    Closed,
    ConnectionsTaken,
    Credits,
    Fault,
    Generation,
    GenerationTaken,
    Hello,
    Message,
    Requests,
)
from sockguard.privsep.packets import MAX_PACKET
from sockguard.server.metrics import Metrics
from sockguard.server.relays import HEARTBEAT_SECONDS
from tests.unit.server.conftest import Make, Relays, allow, config, proxy


@pytest.fixture
async def relays(control: Make) -> AsyncIterator[Relays]:
    """One relay, up and with its generation taken."""
    async with control(config()) as made:
        yield made.relays


@pytest.mark.parametrize(
    "message",
    [
        Hello(1),
        GenerationTaken(2),
        ConnectionsTaken(1),
        ConnectionsTaken(0),
        Closed(((1, 0, 0, "closed", ""),)),
        Closed(((1, 0, 0, "closed"),)),
        Closed((("1", 0, 0, "closed", ""),)),
    ],
    ids=repr,
)
async def test_a_message_out_of_its_time_ends_the_relay(relays: Relays, message: Message) -> None:
    """What is on the list but cannot be true just now ends that relay, and another is started: nothing else ends."""
    relays.say(message)
    await relays.started(2)
    assert relays.killed == [1]


@pytest.mark.parametrize("data", [b"nonsense", b'["signal", "terminate"]', b'["done", 0]', b"[" * 60_000])
async def test_a_packet_off_the_list_ends_the_relay(relays: Relays, data: bytes) -> None:
    """A packet that is no message of a relay ends that relay."""
    relays.say_packet(data)
    await relays.started(2)
    assert relays.killed == [1]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", struct.pack("!I", MAX_PACKET + 1)], ids=["most", "one more"])
async def test_a_length_that_cannot_be_ends_the_relay(relays: Relays, data: bytes) -> None:
    """At once: what it says that it would send is not waited for, nor kept."""
    relays.say_bytes(data)
    await relays.started(2)
    assert relays.killed == [1]


async def test_a_relay_that_ends_in_the_midst_of_a_message_is_replaced(relays: Relays) -> None:
    """What there is of the message is nothing that was said."""
    relays.say_bytes(struct.pack("!I", 20) + b'["hello", 1')
    relays.end()
    await relays.started(2)
    assert relays.killed == [1]


async def test_a_relay_that_just_ends_is_replaced(relays: Relays) -> None:
    """Also one that says why. It is killed all the same: that its pipe has ended says nothing of its process."""
    relays.say(Fault("Traceback: out of luck"))
    relays.end()
    await relays.started(2)
    assert relays.killed == [1]


async def test_an_empty_packet_ends_the_relay(relays: Relays) -> None:
    """It is no message, and not the end of what a relay says either."""
    relays.say_packet(b"")
    await relays.started(2)
    assert relays.killed == [1]


async def test_a_relay_that_retires_is_gone_for_good(control: Make) -> None:
    """Where a protocol has come, the relay that cannot read it ends, whatever it does behind its pipe."""
    async with control(config()) as made:
        made.pool.new_generation(config(proxy("web", allow("a"))))
        made.relays.end()
        await made.relays.started(2)
        await made.until(lambda: bool(made.relays.killed))
        assert made.relays.killed == [1]


async def test_connections_of_dead_relays_are_told_though_the_monitor_has_gone(
    control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can kill a relay then, and everything ends; but what ends has its events."""

    async def gone(_: int) -> None:
        raise ChannelError("the monitor has gone")

    async with control(config(proxy("web", allow("a"))), 2) as made:
        for relay in (0, 1):
            made.admit(1)
            await made.relays.told(Credits, relay)
            await made.relays.handed(relay)
        monkeypatch.setattr(made.relays, "end_relay", gone)
        for relay in (0, 1):
            made.relays.end(relay)
        await made.until(lambda: not len(made.connections))
        assert [event["outcome"] for event in made.audit.named("connection_closed")] == ["relay_lost"] * 2


@pytest.mark.parametrize("number", [2**63, 10**400], ids=["2**63", "10**400"])
async def test_more_bytes_than_can_be_end_the_relay(control: Make, number: int) -> None:
    """Totals, metrics and whoever reads JSON go on with numbers that are some."""
    async with control(config(proxy("web", allow("a")))) as made:
        made.record.metrics = Metrics()
        connection = made.admit(1)
        await made.relays.told(Credits)
        await made.relays.handed()
        made.relays.say(Closed(((connection.number, 0, number, "closed", ""),)))
        await made.relays.started(2)
        assert made.relays.killed == [1]
        assert made.record.of("web").bytes_from_backend == 0


async def test_what_a_relay_said_before_it_died_is_heard(control: Make) -> None:
    """Also where it has left something unread."""
    async with control(config(proxy("web", allow("a")))) as made:
        connection = made.admit(1)
        await made.relays.told(Credits)
        await made.relays.handed()
        (relay,) = made.pool
        await made.until(lambda: not relay.batch)
        made.relays.say(Requests(((connection.number, "denied", "a", "why", "GET /"),)))
        made.relays.say(Closed(((connection.number, 10, 20, "closed", ""),)))
        made.admit(1)  # unread
        made.relays.end()
        await made.relays.started(2)
        assert [event["request"] for event in made.audit.named("request_denied")] == ["GET /"]
        assert [event["outcome"] for event in made.audit.named("connection_closed")] == ["closed", "relay_lost"]


async def test_a_protocol_that_comes_while_a_relay_starts(control: Make) -> None:
    """It has not loaded that protocol and never can: another one is started instead."""
    async with control(config()) as made:
        made.relays.end()
        await made.until(lambda: len(made.relays.ends) == 2)
        message, fds = await made.relays.next(1)
        channel.close_all(fds)
        made.pool.new_generation(config(proxy("web", allow("a"))))
        assert isinstance(message, Generation)
        made.relays.say(GenerationTaken(message.number), 1)
        await made.relays.started(3)
        assert made.relays.protocols == ["", "", "http"]
        assert made.relays.killed == [1, 2]


async def test_a_relay_that_cannot_be_started_is_tried_again(relays: Relays) -> None:
    """Want of processes ends nothing: control goes on with the relays it has, and tries again."""
    relays.fail_from = 2
    relays.end()
    await relays.started(2)
    assert relays.killed == [1, 2]  # there may have been one, half started


@pytest.mark.parametrize("what", ["heartbeat", "new rules"])
async def test_what_a_relay_said_until_it_was_killed_is_heard(
    control: Make, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, what: str
) -> None:
    """Nobody waits for its end then, but what it has said is not lost: neither events nor how connections ended."""
    before = config(proxy("web", allow("a")))
    async with control(before) as made:
        first, second = made.admit(1), made.admit(1)
        await made.relays.told(Credits)
        for _ in range(2):
            await made.relays.handed()

        async def end_relay(number: int) -> None:
            if not made.relays.killed:
                made.relays.say(Requests(((first.number, "denied", "a", "why", "GET /"),)))
                made.relays.say(Closed(((first.number, 10, 20, "closed", ""),)))
                made.relays.say_bytes(b"\0")  # and what was to come
            made.relays.killed.append(number)

        monkeypatch.setattr(made.relays, "end_relay", end_relay)
        if what == "new rules":
            made.pool.new_generation(before)
            await made.pool.settled()
        with trio.fail_after(2 * HEARTBEAT_SECONDS):
            while len(made.relays.ends) < 2:
                await trio.sleep(0.1)
        assert [event["request"] for event in made.audit.named("request_denied")] == ["GET /"]
        told = {event["connection"]: event["outcome"] for event in made.audit.named("connection_closed")}
        assert told == {first.number: "closed", second.number: "relay_lost"}
