"""What a carrier does with the descriptors of a message: passes them on, keeps them, closes them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable

import pytest

from sockguard.carriers.jobs import Job, Op, Problem, Report
from sockguard.privsep.channel import close_all
from tests.unit.carriers.conftest import Loop, Pair, fill

WHO = (1000, 0)
MakePair = Callable[..., Pair]


def pipe_to_pass(*socks: tuple[socket.socket, bytes]) -> int:
    """Send the reading end of a new pipe to each of these, with that data; gives the writing end."""
    reader, writer = os.pipe()
    for sock, data in socks:
        socket.send_fds(sock, [data], [reader])
    os.close(reader)
    return writer


def is_closed_everywhere(writer: int) -> bool:
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_carry(loop: Loop, make_pair: MakePair, kind: int) -> None:
    """A message goes on with its descriptors, and is gone from the queue when that is told; then it has no copy."""
    source, target = make_pair(kind), make_pair(kind)
    records = kind == socket.SOCK_SEQPACKET
    if records:
        source.ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    writer = pipe_to_pass((source.peer, b"message"))
    source.peer.send(b"next")
    job = Job(Op.CARRY, 0, 7 if records else 65536, records=records)
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)) == Report(False, Problem.NONE, False, 7, 1)
    assert source.ours.recv(100) == b"next"
    data, fds, _, _ = socket.recv_fds(target.peer, 100, 10)
    assert (data, len(fds)) == (b"message", 1)
    close_all(fds)
    loop.until(lambda: is_closed_everywhere(writer))
    os.close(writer)


def test_no_room(loop: Loop, make_pair: MakePair) -> None:
    """Then nothing is taken, and nothing is lost: it goes when there is room."""
    source, target = make_pair(), make_pair()
    writer = pipe_to_pass((source.peer, b"message"))
    os.close(writer)
    fill(target.ours)
    job = Job(Op.CARRY, 0, 65536)
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)).problem is Problem.FULL
    target.peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while target.peer.recv(1 << 16):
            pass
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)) == Report(False, Problem.NONE, False, 7, 1)
    data, fds, _, _ = socket.recv_fds(target.peer, 100, 10)
    assert (data, len(fds)) == (b"message", 1)
    close_all(fds)


def test_nobody_takes_it(loop: Loop, make_pair: MakePair) -> None:
    source, target = make_pair(), make_pair()
    os.close(pipe_to_pass((source.peer, b"message")))
    target.peer.close()
    job = Job(Op.CARRY, 0, 65536)
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)).problem is Problem.GONE


def test_another_sender(loop: Loop, make_pair: MakePair) -> None:
    """Where only one uid may send, the message of another one stays where it is."""
    source, target = make_pair(), make_pair()
    source.ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    os.close(pipe_to_pass((source.peer, b"message")))
    job = Job(Op.CARRY, 0, 65536, sender=os.geteuid() + 1)
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)).problem is Problem.SENDER
    job = Job(Op.CARRY, 0, 65536, sender=os.geteuid())
    assert loop.done(loop.carry(WHO, job, source.ours, target.ours)).problem is Problem.NONE


def test_kept_until_sent_or_dropped(loop: Loop, make_pair: MakePair) -> None:
    """Descriptors are kept in their order, by the number of a connection, and sent with the bytes that are given."""
    source, target = make_pair(), make_pair()
    writers = [pipe_to_pass((source.peer, b"%d" % number)) for number in range(4)]
    for number in range(4):
        report = loop.done(loop.take(WHO, Job(Op.TAKE, 7, 1), source.ours))
        assert report == Report(False, Problem.NONE, False, 1, 1), number
    loop.carriers.drop(WHO, 7, 1)
    sent = loop.send(WHO, Job(Op.SEND, 7, 2), target.ours, b"two of them")
    loop.carriers.drop(WHO, 7, 1)
    assert loop.done(sent) == Report(False, Problem.NONE, False, 11, 2)
    loop.until(lambda: is_closed_everywhere(writers[0]) and is_closed_everywhere(writers[3]))
    assert not is_closed_everywhere(writers[1])
    data, fds, _, _ = socket.recv_fds(target.peer, 100, 10)
    assert (data, len(fds)) == (b"two of them", 2)
    for fd, writer in zip(fds, writers[1:3], strict=True):
        os.write(writer, b"!")
        assert os.read(fd, 1) == b"!"
    close_all(fds)
    loop.until(lambda: all(map(is_closed_everywhere, writers)))
    close_all(writers)


def test_kept_where_there_is_no_room(loop: Loop, make_pair: MakePair) -> None:
    """What could not be sent is kept, and can be sent later."""
    source, target = make_pair(), make_pair()
    os.close(pipe_to_pass((source.peer, b"x")))
    loop.done(loop.take(WHO, Job(Op.TAKE, 7, 1), source.ours))
    fill(target.ours)
    assert loop.done(loop.send(WHO, Job(Op.SEND, 7, 1), target.ours, b"x")).problem is Problem.FULL
    other = make_pair()
    assert loop.done(loop.send(WHO, Job(Op.SEND, 7, 1), other.ours, b"x")) == Report(False, Problem.NONE, False, 1, 1)
