"""Messages over a pipe: whole and in order, however the bytes come through, and refused before they take memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.errors import ChannelError
from sockguard.privsep.messages import RELAY_TO_CONTROL, Fault, Hello, Pong, Stop
from sockguard.privsep.packets import MAX_PACKET, Message, encode
from sockguard.privsep.pipe import Inlet, Outlet

LEAST: Final = 4096
"""Bytes that the smallest pipe holds (pipe(7))."""


class Ends:
    """A pipe of the smallest size, with an end for each."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl(self.writer, F_SETPIPE_SZ, LEAST)
        self.inlet = Inlet(self.reader, RELAY_TO_CONTROL)
        self.outlet = Outlet(self.writer)

    def write(self, data: bytes) -> None:
        assert os.write(self.writer, data) == len(data)

    def hang_up(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def as_long_as(size: int) -> Fault:
    """A message whose packet has just that many bytes."""
    message = Fault("x" * (size - len(encode(Fault("")))))
    assert len(encode(message)) == size
    return message


def drained(ends: Ends) -> list[Message]:
    """All that arrives while both ends go on in turn."""
    found = []
    while True:
        flushed = ends.outlet.flush()
        try:
            while (message := ends.inlet.receive()) is not None:
                found.append(message)
        except BlockingIOError:
            if flushed:
                return found


# ── both ends ──


def test_messages_arrive_in_order(ends: Ends) -> None:
    """Each as it was sent; then there is none yet, which is not the end."""
    sent = [Hello(7, "seccomp"), Pong(2**40), Fault("é\udcff\n"), Pong(0)]
    for message in sent:
        ends.outlet.send(message)
    assert [ends.inlet.receive() for _ in sent] == sent
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            ends.inlet.receive()


def test_neither_end_blocks(ends: Ends) -> None:
    """Whoever made the pipe need not have said so."""
    assert not os.get_blocking(ends.reader)
    assert not os.get_blocking(ends.writer)


@pytest.mark.parametrize("size", [100, LEAST - 4, LEAST - 3, LEAST, 3 * LEAST, MAX_PACKET])
def test_a_message_longer_than_there_is_room(ends: Ends, size: int) -> None:
    """It goes out part by part; flush says when all of it has gone."""
    message = as_long_as(size)
    ends.outlet.send(message)
    assert ends.outlet.flush() is (size + 4 <= LEAST)
    assert drained(ends) == [message]
    assert ends.outlet.flush() is True


def test_a_full_pipe(ends: Ends) -> None:
    """A message that cannot even begin is taken over all the same; the next is not, and leaves no trace."""
    ends.write(framed(encode(as_long_as(LEAST - 4))))
    waits, refused = Pong(1), Pong(2)
    ends.outlet.send(waits)
    assert ends.outlet.flush() is False
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            ends.outlet.send(refused)
    assert drained(ends) == [as_long_as(LEAST - 4), waits]
    ends.outlet.send(refused)
    assert drained(ends) == [refused]


def test_the_rest_of_a_message_goes_before_the_next(ends: Ends) -> None:
    """While one is half written the next is refused, not mixed with it; with room again, send writes both itself."""
    long, short = as_long_as(LEAST + 100), Pong(1)
    ends.outlet.send(long)
    with pytest.raises(BlockingIOError):
        ends.outlet.send(short)
    with pytest.raises(BlockingIOError):
        ends.inlet.receive()  # what there is is no message yet, but there is room now
    ends.outlet.send(short)
    assert [ends.inlet.receive(), ends.inlet.receive()] == [long, short]


@given(
    sizes=st.lists(st.integers(30, 3 * LEAST), max_size=12),
    turns=st.lists(st.booleans(), max_size=60),
)
def test_any_order_of_turns(sizes: list[int], turns: list[bool]) -> None:
    """Whoever has its turn when: every message that was taken over arrives, once, whole and in order."""
    ends = Ends()
    try:
        waiting = [as_long_as(size) for size in sizes]
        sent: list[Message] = []
        found: list[Message | None] = []
        for writes in turns:
            try:
                if not writes:
                    found.append(ends.inlet.receive())
                elif waiting:
                    ends.outlet.send(waiting[0])
                    sent.append(waiting.pop(0))
            except BlockingIOError:
                pass
        assert [*found, *drained(ends)] == sent
    finally:
        ends.close()


def test_a_message_that_is_too_long_is_not_sent(ends: Ends) -> None:
    """It is refused whole; what comes behind it is as if it had never been."""
    with pytest.raises(ChannelError, match=f"is over {MAX_PACKET}"):
        ends.outlet.send(Fault("x" * MAX_PACKET))
    ends.outlet.send(Pong(1))
    assert drained(ends) == [Pong(1)]


def test_nobody_reads(ends: Ends) -> None:
    """The writer is told, at a message and at the rest of one."""
    ends.outlet.send(as_long_as(2 * LEAST))
    os.close(ends.reader)
    ends.reader = -1
    with pytest.raises(BrokenPipeError):
        ends.outlet.flush()
    with pytest.raises(BrokenPipeError):
        ends.outlet.send(Pong(1))


def test_close(ends: Ends) -> None:
    """Its descriptor is closed: whoever writes hears of it."""
    ends.inlet.close()
    ends.reader = -1
    with pytest.raises(BrokenPipeError):
        ends.outlet.send(Pong(1))


# ── what is read, of whoever writes ──


@pytest.mark.parametrize("step", [1, 3, 5])
def test_split_reads(ends: Ends, step: int) -> None:
    """There is no message until its last byte is there, wherever it is split."""
    data = framed(encode(Hello(1000, "seccomp")))
    for at in range(0, len(data), step):
        with pytest.raises(BlockingIOError):
            ends.inlet.receive()
        ends.write(data[at : at + step])
    assert ends.inlet.receive() == Hello(1000, "seccomp")


def test_two_messages_and_a_half_at_once(ends: Ends) -> None:
    """They are told one by one, and the rest is kept for when it is whole."""
    data = framed(encode(Pong(3)))
    ends.write(framed(encode(Pong(1))) + framed(encode(Pong(2))) + data[:7])
    assert [ends.inlet.receive(), ends.inlet.receive()] == [Pong(1), Pong(2)]
    with pytest.raises(BlockingIOError):
        ends.inlet.receive()
    ends.write(data[7:])
    assert ends.inlet.receive() == Pong(3)


@pytest.mark.parametrize("length", [MAX_PACKET + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_is_too_much(ends: Ends, length: int) -> None:
    """Refused as soon as it is told: not a byte behind it is waited for."""
    ends.write(struct.pack("!I", length))
    with pytest.raises(ChannelError, match=f"a message of {length} bytes, which is over {MAX_PACKET}"):
        ends.inlet.receive()


def test_the_greatest_length(ends: Ends) -> None:
    """MAX_PACKET itself is none too much, and is waited for."""
    ends.write(struct.pack("!I", MAX_PACKET))
    with pytest.raises(BlockingIOError):
        ends.inlet.receive()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b'["no_such_message", 1]',
        encode(Stop()),  # of the other direction
        b'["pong"]',
        b'["pong", "1"]',
        b'["pong", 1, 2]',
        b"[" * 4000,
        b"\xff\xfe",
    ],
    ids=lambda data: repr(data)[:30],
)
def test_what_is_no_message_of_the_table(ends: Ends, data: bytes) -> None:
    """Refused by the same rules as a packet of a channel; an empty one is no end."""
    ends.write(framed(data))
    with pytest.raises(ChannelError):
        ends.inlet.receive()


def test_the_end(ends: Ends) -> None:
    """What was said before it is heard first; then it is the end, however often it is asked for."""
    ends.outlet.send(Pong(1))
    ends.outlet.send(Pong(2))
    ends.hang_up()
    assert [ends.inlet.receive() for _ in range(4)] == [Pong(1), Pong(2), None, None]


@pytest.mark.parametrize("length", [1, 3, 4, 10])
def test_the_end_in_the_midst_of_a_message(ends: Ends, length: int) -> None:
    """A part is nothing that was said."""
    ends.write(framed(encode(Pong(1))) + framed(encode(Pong(2)))[:length])
    ends.hang_up()
    assert [ends.inlet.receive() for _ in range(3)] == [Pong(1), None, None]


def test_whoever_writes_without_end_is_read_in_parts(ends: Ends) -> None:
    """What is read beyond a message is bounded, however much is there to be read."""
    fcntl(ends.writer, F_SETPIPE_SZ, 1 << 20)
    message = framed(encode(Pong(1)))
    count = (1 << 19) // len(message)
    ends.write(message * count)
    assert ends.inlet.receive() == Pong(1)
    left = 0
    while True:
        try:
            left += len(os.read(ends.reader, 1 << 20))
        except BlockingIOError:
            break
    assert left >= count * len(message) - (MAX_PACKET + 4 + 64 * 1024)
