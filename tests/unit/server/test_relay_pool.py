"""A relay that says what it must not is ended and replaced, and takes nothing along but its own connections."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio

from sockguard.audit import AuditLog, to_json
from sockguard.config.settings import Config, Daemon, Log
from sockguard.errors import SockguardError
from sockguard.privsep import channel
from sockguard.privsep.messages import (
    CONTROL_TO_RELAY,
    Closed,
    ConnectionsTaken,
    Fault,
    Generation,
    GenerationTaken,
    Hello,
    Message,
)
from sockguard.server.connections import Connections
from sockguard.server.metrics import NullMetrics
from sockguard.server.privileges import Privileges
from sockguard.server.record import Record
from sockguard.server.relays import RelayPool


class Relays:
    """Stands in for what starts relays (a fake: no real relay misbehaves on demand). The test is the relay."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.killed: list[int] = []
        self.fail_from = 1_000_000

    async def spawn_relay(self, number: int) -> socket.socket:
        if number >= self.fail_from:
            self.fail_from += 2  # one failure more after this
            raise SockguardError("a relay cannot be started: no more processes")
        ours, theirs = channel.pair()
        self.ends.append(theirs)
        channel.send(theirs, Hello(100))
        return ours

    async def end_relay(self, number: int) -> None:
        self.killed.append(number)

    def relay_status(self, number: int) -> int | None:
        return None

    async def started(self, count: int) -> None:
        """Until that many have been started, and given the generation in force."""
        with trio.fail_after(10):
            while len(self.ends) < count:
                await trio.sleep(0.01)
            await trio.lowlevel.wait_readable(self.ends[-1])
        received = channel.receive(self.ends[-1], CONTROL_TO_RELAY)
        assert received is not None
        assert isinstance(received[0], Generation)
        channel.close_all(received[1])


@pytest.fixture
async def relays() -> AsyncIterator[Relays]:
    """One relay, up and with its generation taken."""
    null = os.open(os.devnull, os.O_WRONLY)
    audit = AuditLog(null, to_json, on_room=lambda: None, on_failure=lambda _: None)
    made = Relays()
    pool = RelayPool(
        Config(Daemon(), Log(), {}), cast(Privileges, made), audit, Connections(Record(audit, NullMetrics()))
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, 1)
        await made.started(1)
        channel.send(made.ends[0], GenerationTaken(1))
        yield made
        nursery.cancel_scope.cancel()
    for end in made.ends:
        end.close()
    os.close(null)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1),
        GenerationTaken(2),
        ConnectionsTaken(1),
        ConnectionsTaken(0),
        Closed(((1, 0, 0, "closed"),)),
        Closed(((1, 0, "closed"),)),
        Closed((("1", 0, 0, "closed"),)),
    ],
    ids=repr,
)
async def test_a_message_out_of_its_time_ends_the_relay(relays: Relays, message: Message) -> None:
    """What is on the list but cannot be true just now ends that relay, and another is started: nothing else ends."""
    channel.send(relays.ends[0], message)
    await relays.started(2)
    assert relays.killed == [1]


@pytest.mark.parametrize("data", [b"nonsense", b'["signal", "terminate"]', b'["done", 0]', b"[" * 60_000])
async def test_a_packet_off_the_list_ends_the_relay(relays: Relays, data: bytes) -> None:
    """A packet that is no message of a relay ends that relay."""
    relays.ends[0].send(data)
    await relays.started(2)
    assert relays.killed == [1]


async def test_uninvited_descriptors_end_the_relay(relays: Relays) -> None:
    """A relay passes no fds, ever: one that does is ended, and the fds are closed."""
    reader, writer = os.pipe()
    socket.send_fds(relays.ends[0], [b'["connections_taken", 1]'], [reader])
    os.close(reader)
    await relays.started(2)
    assert relays.killed == [1]
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)


async def test_a_relay_that_just_ends_is_replaced(relays: Relays) -> None:
    """Also one that says why; there is nothing left to kill then."""
    channel.send(relays.ends[0], Fault("Traceback: out of luck"))
    relays.ends[0].close()
    await relays.started(2)
    assert relays.killed == []


async def test_a_relay_that_cannot_be_started_is_tried_again(relays: Relays) -> None:
    """Want of processes ends nothing: control goes on with the relays it has, and tries again."""
    relays.fail_from = 2
    relays.ends[0].close()
    await relays.started(2)
    assert relays.killed == [2]  # there may have been one, half started
