"""The channel: one message a packet, exactly the fds that belong to it, and none left open when it is refused."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
from array import array
from collections.abc import Iterator
from typing import Final

import pytest

from sockguard.errors import ChannelError
from sockguard.privsep import channel
from sockguard.privsep.messages import (
    CONTROL_TO_RELAY,
    MAX_BATCH,
    MAX_PACKET,
    RELAY_TO_CONTROL,
    Connections,
    Fault,
    Generation,
    Hello,
    Stop,
)

Ends = tuple[socket.socket, socket.socket]
NO_FD: Final[list[int]] = []


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = channel.pair()
    with ours, theirs:
        ours.settimeout(5)
        yield ours, theirs


def send_raw(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else [])


def all_copies_closed(writer: int) -> bool:
    """True when no read end of that pipe is open any more (pipe(7): POLLERR)."""
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


def test_a_message_and_its_fds_arrive(ends: Ends) -> None:
    """The receiver gets the message and copies of the fds in their order, close-on-exec."""
    files = [os.memfd_create(f"f{i}") for i in range(4)]
    channel.send(ends[1], Connections(((1, 1, 0, 0), (2, 1, 0, 0))), files)
    received = channel.receive(ends[0], CONTROL_TO_RELAY)
    assert received is not None
    message, fds = received
    assert message == Connections(((1, 1, 0, 0), (2, 1, 0, 0)))
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in files]
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
    channel.close_all(files + fds)


def test_a_whole_batch_fits_one_packet(ends: Ends) -> None:
    """MAX_BATCH connections, two fds each, travel in one message."""
    fd = os.memfd_create("f")
    channel.send(ends[1], Connections(((1, 1, 0, 0),) * MAX_BATCH), [fd] * 2 * MAX_BATCH)
    received = channel.receive(ends[0], CONTROL_TO_RELAY)
    assert received is not None
    assert len(received[1]) == 2 * MAX_BATCH
    channel.close_all([fd, *received[1]])


def test_end_of_channel_is_none(ends: Ends) -> None:
    """A closed other end is None, not an error."""
    ends[1].close()
    assert channel.receive(ends[0], RELAY_TO_CONTROL) is None


def test_nothing_to_read_is_blocking_io(ends: Ends) -> None:
    """On a non-blocking end an empty channel is BlockingIOError, which is not the end of it."""
    ends[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive(ends[0], RELAY_TO_CONTROL)


def test_sending_the_wrong_number_of_fds_is_refused(ends: Ends) -> None:
    """A message goes out only with as many fds as it says."""
    with pytest.raises(ChannelError, match="carries 1 fds, not 0"):
        channel.send(ends[1], Generation(1), [])
    with pytest.raises(ChannelError, match="carries 0 fds, not 1"):
        channel.send(ends[1], Hello(1), [0])


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (b'["hello", 1]', 1),
        (b'["connections_taken", 1]', 200),
        (b"nonsense", 3),
        (b'["stop"]', 1),
        (b'["generation", 1]', 1),
    ],
    ids=["uninvited", "many uninvited", "no message", "other direction", "other direction, rightly counted"],
)
def test_fds_of_a_refused_message_are_closed(ends: Ends, data: bytes, fds: int) -> None:
    """A message that is refused leaves no descriptor open: a relay cannot fill control's table."""
    reader, writer = os.pipe()
    send_raw(ends[1], data, [reader] * fds)
    os.close(reader)
    with pytest.raises(ChannelError):
        channel.receive(ends[0], RELAY_TO_CONTROL)
    assert all_copies_closed(writer)
    os.close(writer)


def test_missing_fds_are_refused(ends: Ends) -> None:
    """A message that came without the fds it needs is not handed on."""
    send_raw(ends[1], b'["connections", [[1, 1, 0, 0]]]', NO_FD)
    with pytest.raises(ChannelError, match="0 fds instead of 2"):
        channel.receive(ends[0], CONTROL_TO_RELAY)


def test_fds_with_an_empty_packet_are_closed(ends: Ends) -> None:
    """An empty packet reads as the end, and takes nothing with it."""
    reader, writer = os.pipe()
    send_raw(ends[1], b"", [reader])
    os.close(reader)
    assert channel.receive(ends[0], RELAY_TO_CONTROL) is None
    assert all_copies_closed(writer)
    os.close(writer)


def test_a_longer_packet_is_refused_whole(ends: Ends) -> None:
    """A packet over MAX_PACKET is refused, though its beginning may read well; its fds are closed."""
    reader, writer = os.pipe()
    send_raw(ends[1], b'["hello", 1]' + b" " * MAX_PACKET, [reader])
    os.close(reader)
    with pytest.raises(ChannelError, match="cut short"):
        channel.receive(ends[0], RELAY_TO_CONTROL)
    assert all_copies_closed(writer)
    os.close(writer)


def test_no_room_for_fds_is_told(ends: Ends) -> None:
    """A message whose fds could not all be received is refused, and those that were are closed."""
    reader, writer = os.pipe()
    send_raw(ends[1], b'["connections", [[1,1,0,0],[2,1,0,0],[3,1,0,0]]]', [reader] * 6)
    os.close(reader)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(writer)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 2, hard))
    try:
        with pytest.raises(ChannelError, match="cut short"):
            channel.receive(ends[0], CONTROL_TO_RELAY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all_copies_closed(writer)
    os.close(writer)


def test_a_full_channel_blocks_nobody(ends: Ends) -> None:
    """On a non-blocking end a full channel is BlockingIOError, and what went before arrives whole."""
    ends[1].setblocking(False)
    sent = 0

    def fill() -> None:
        nonlocal sent
        for _ in range(10_000):
            channel.send(ends[1], Fault("x" * 4000))
            sent += 1

    with pytest.raises(BlockingIOError):
        fill()
    for _ in range(sent):
        assert channel.receive(ends[0], RELAY_TO_CONTROL) == (Fault("x" * 4000), [])


def test_sending_to_a_dead_end_is_an_oserror(ends: Ends) -> None:
    """No SIGPIPE: the writer gets EPIPE."""
    ends[0].close()
    with pytest.raises(BrokenPipeError):
        channel.send(ends[1], Stop())


def test_pair_does_not_survive_exec(ends: Ends) -> None:
    """No program that a process starts inherits a channel by accident."""
    assert not any(os.get_inheritable(sock.fileno()) for sock in ends)
