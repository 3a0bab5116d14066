"""A connection of records through a relay: its two ends must not be able to tell it from a SOCK_SEQPACKET pair."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sockguard.carriers import master, pool
from sockguard.privsep import channel
from sockguard.privsep.channel import close_all
from sockguard.privsep.messages import RELAY_TO_CONTROL, Stop
from sockguard.privsep.pipe import Inlet, Outlet
from sockguard.relay.loop import Loop
from sockguard.relay.records import RecordSide
from tests.unit.relay.conftest import SECONDS, End, RelayUnderTest

WaitUntil = Callable[[Callable[[], bool]], None]
PLAIN, REFUSE = 0, 1
LARGE: Final = 1 << 25
both_ways = pytest.mark.parametrize("first", ["client", "backend"])


@pytest.fixture(scope="module")
def shared() -> Iterator[RelayUnderTest]:
    """One relay for all tests: what one leaves behind is the next one's trouble."""
    made = RelayUnderTest()
    made.configure(1, {"protocol": "seqpacket"}, {"protocol": "seqpacket", "fds": "refuse"})
    yield made
    made.close()


def ends(relay: RelayUnderTest, first: str, proxy: int = PLAIN) -> tuple[int, End, End]:
    number, client, backend = relay.link(proxy=proxy, kind=socket.SOCK_SEQPACKET)
    return (number, client, backend) if first == "client" else (number, backend, client)


def no_copy_left(writer: int) -> Callable[[], bool]:
    """For wait_until: is every copy of that pipe's read end closed?"""
    poll = select.poll()
    poll.register(writer, 0)
    return lambda: poll.poll(0) == [(writer, select.POLLERR)]


def largest(sock: End) -> int:
    """The longest record that this end can send, after it has asked for as much SO_SNDBUF as it may have."""
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, most)
    fits, too_long = 0, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    data = bytes(too_long)
    with contextlib.ExitStack() as stack:
        one, other = map(stack.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, most)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            try:
                one.send(memoryview(data)[:middle])
            except OSError:  # EMSGSIZE, or ENOBUFS beyond what the kernel allocates at a time
                too_long = middle
            else:
                fits = middle
                other.recv(1)
    return fits


@both_ways
def test_boundaries(shared: RelayUnderTest, first: str) -> None:
    """Records of any length that an ordinary socket can send arrive as they were sent, the empty ones too."""
    number, one, other = ends(shared, first)
    with one, other:
        sizes = [0, 1, 0, 0, 2, 4096, 65_535, 65_536, 65_537, 0, 150_000, 1]
        for size in sizes:
            data = os.urandom(size)
            one.send(data)
            assert other.recv(LARGE) == data
        for size in sizes[:9]:  # and when they queue up
            one.send(b"x" * size)
        assert [len(other.recv(LARGE)) for _ in range(9)] == sizes[:9]
        one.shutdown(socket.SHUT_WR)
        assert other.recv(10) == b""
        other.close()
        total = sum(sizes) + sum(sizes[:9])
        assert shared.end_of(number) == (*((total, 0) if first == "client" else (0, total)), "closed")


@both_ways
def test_records_as_large_as_the_system_allows(shared: RelayUnderTest, first: str) -> None:
    """A sender that raised its SO_SNDBUF to net.core.wmem_max gets its largest record through; a longer one is its
    own error, as it is without a relay."""
    _, one, other = ends(shared, first)
    with one, other:
        most = largest(one)
        for size in (300_000, most, 5, most):
            data = os.urandom(1024) * (size // 1024) + b"e" * (size % 1024)
            one.send(data)
            assert other.recv(LARGE) == data
        with pytest.raises(OSError, match=r"too long|No buffer space"):
            one.send(bytes(most + 1))
        one.send(b"goes on")
        assert other.recv(LARGE) == b"goes on"


class InThisProcess(RelayUnderTest):
    """The relay's loop in a thread of the test, for what no test can have a process of its own do."""

    def __init__(self) -> None:
        self.channel, self.theirs = channel.pair()
        self.channel.settimeout(SECONDS)
        read, self.write = os.pipe()
        self.inlet = Inlet(read, RELAY_TO_CONTROL)
        self.ended, self.last_number, self.pid = {}, 0, 0
        self.master = master.start(pool.SLOTS)
        self.master.wait_ready()
        self.thread = threading.Thread(target=Loop(self.theirs, Outlet(self.write), self.master).run)
        self.thread.start()

    def stop(self) -> None:
        self.send(Stop())
        self.thread.join(SECONDS)
        for end in (self.channel, self.theirs, self.inlet, self.master):
            end.close()
        os.close(self.write)


@both_ways
def test_a_record_that_cannot_be_passed_on(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """One that is longer than the relay's SO_SNDBUF can be made ends the connection, and says so; nothing is cut short.

    (That it cannot is put in its mouth: where net.core.wmem_max is large, no sender can get beyond it.)
    """
    monkeypatch.setattr(RecordSide, "_widen", lambda *_: False)
    relay = InThisProcess()
    relay.configure(1, {"protocol": "seqpacket"})
    number, one, other = ends(relay, first)
    with one, other:
        largest(one)
        one.send(b"before")
        one.send(bytes(300_000))
        assert other.recv(LARGE) == b"before"
        assert relay.end_of(number)[2] == "record_too_large"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            one.send(b"x")
        assert other.recv(LARGE) == b""
    relay.stop()


@both_ways
def test_want_of_memory_is_waited_out(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """A record for which the kernel has no memory just now is passed on when it has. (Again put in its mouth.)"""
    given: list[object] = []

    def face(side: RecordSide, other: RecordSide) -> None:
        def put(data: memoryview) -> int:
            given.append(data)
            if len(given) < 3:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            return other.sock.send(data)

        side.other, side.put = other, put  # type: ignore[assignment]

    monkeypatch.setattr(RecordSide, "face", face)
    relay = InThisProcess()
    relay.configure(1, {"protocol": "seqpacket"})
    number, one, other = ends(relay, first)
    with one, other:
        one.send(b"patience")
        assert other.recv(LARGE) == b"patience"
        other.close()
        assert relay.end_of(number)[2] == "closed"
    relay.stop()


@both_ways
def test_fds_come_with_their_record(shared: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """fds arrive with the very record, an empty one as well, in their order, up to 253; none is kept."""
    number, one, other = ends(shared, first)
    reader, writer = os.pipe()
    files = [os.memfd_create(str(i)) for i in range(253)]
    with one, other:
        sent = [(b"", [reader]), (b"plain", []), (b"x" * 70_000, [reader, reader]), (b"", []), (b"y", files)]
        for data, fds in sent:
            socket.send_fds(one, [data], fds)
        for data, fds in sent:
            got, received, flags, _ = socket.recv_fds(other, LARGE, 253)
            assert got == data
            assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in fds]
            close_all(received)
        close_all([reader, *files])
        wait_until(no_copy_left(writer))
        other.close()
        assert shared.end_of(number)[2] == "closed"
    os.close(writer)


@both_ways
def test_refused_fds(shared: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """With fds = "refuse" the connection ends at the record that brings one, be it empty; none gets through."""
    for data in (b"x", b""):
        number, one, other = ends(shared, first, REFUSE)
        reader, writer = os.pipe()
        with one, other:
            one.send(b"plain")
            assert other.recv(100) == b"plain"
            socket.send_fds(one, [data], [reader])
            os.close(reader)
            assert shared.end_of(number)[2] == "fds_refused"
            assert socket.recv_fds(other, 100, 10)[:2] == (b"", [])
        wait_until(no_copy_left(writer))
        os.close(writer)


@both_ways
def test_fds_in_flight_die_with_the_connection(shared: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """fds that nobody received are closed with the connection, wherever they were."""
    number, one, other = ends(shared, first)
    reader, writer = os.pipe()
    for _ in range(20):
        socket.send_fds(one, [b""], [reader] * 100)
    os.close(reader)
    other.close()
    one.close()
    shared.end_of(number)
    wait_until(no_copy_left(writer))
    os.close(writer)


@both_ways
def test_half_close(shared: RelayUnderTest, first: str) -> None:
    """Each direction ends at its own time."""
    number, one, other = ends(shared, first)
    with one, other:
        one.send(b"question")
        one.send(b"")
        one.shutdown(socket.SHUT_WR)
        assert [other.recv(100) for _ in range(3)] == [b"question", b"", b""]
        for part in (b"an", b"", b"swer"):
            other.send(part)
            assert one.recv(100) == part
        assert number not in shared.ended
        other.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b""
        assert shared.end_of(number) == (*((8, 6) if first == "client" else (6, 8)), "closed")


@both_ways
def test_a_reset_is_an_outcome(shared: RelayUnderTest, first: str) -> None:
    """An end that closes with records unread: what it had sent arrives, and the outcome tells it from a clean end."""
    number, one, other = ends(shared, first)
    with one, other:
        other.send(b"never read")
        one.send(b"last")
        one.send(b"words")
        select.select([one], [], [], 10)
        one.close()
        assert [other.recv(100), other.recv(100)] == [b"last", b"words"]
        assert shared.end_of(number)[2] == f"{first}_reset"


@both_ways
def test_a_slow_reader(shared: RelayUnderTest, first: str) -> None:
    """Its writer has to wait, others do not; every record arrives then, in order, with its fds."""
    _, one, other = ends(shared, first)
    _, busy, busy_other = ends(shared, first)
    one.setblocking(False)
    with one, other, busy, busy_other:
        sent, least = 0, 20  # so many, however slow the relay is
        while select.select([], [one], [], SECONDS if sent <= least else 0.2)[1]:
            try:
                socket.send_fds(one, [b"%8d" % sent + b"." * (sent % 3 * 9000)], [0] if sent % 5 == 0 else [])
            except BlockingIOError:
                continue
            sent += 1
            busy.send(b"ping")
            assert busy_other.recv(10) == b"ping"
        assert least < sent < 5000
        for number in range(sent):
            data, fds, _, _ = socket.recv_fds(other, LARGE, 10)
            assert data == b"%8d" % number + b"." * (number % 3 * 9000)
            assert len(fds) == (1 if number % 5 == 0 else 0)
            close_all(fds)


def test_an_urgent_byte_is_no_part_of_records(shared: RelayUnderTest) -> None:
    """The kernel refuses MSG_OOB on such sockets: nothing for a relay to lose."""
    _, client, backend = ends(shared, "client")
    with client, backend, pytest.raises(OSError, match="not supported"):
        client.send(b"x", socket.MSG_OOB)
