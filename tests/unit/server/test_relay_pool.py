"""A relay that says what it must not is ended and replaced, and takes nothing along but its own connections."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import pytest

from sockguard.privsep import channel
from sockguard.privsep.messages import Closed, ConnectionsTaken, Fault, GenerationTaken, Hello, Message
from tests.unit.server.conftest import Make, Relays, config


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
