"""One connection of a relay: its two ends must not be able to tell it from a socket pair."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import signal
import socket
import termios
import threading
from array import array
from collections.abc import Callable
from typing import Final

import pytest

from sockguard.privsep.channel import close_all
from sockguard.relay.boundary import untaken
from tests.unit.relay.conftest import SECONDS, End, RelayUnderTest

WaitUntil = Callable[[Callable[[], bool]], None]
BLOCK: Final = bytes(range(251)) * 4177  # about 1 MB; a length that divides no buffer


@pytest.fixture
def relay(relay: RelayUnderTest) -> RelayUnderTest:
    relay.configure(1, {}, {"fds": "refuse"})
    return relay


def read_to_end(sock: End) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


def pipe_to_pass() -> tuple[int, int]:
    """A read end to pass on, and the write end that tells (POLLERR) when no copy of it is left."""
    return os.pipe()


def all_copies_closed(writer: int) -> bool:
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


def ends(relay: RelayUnderTest, first: str) -> tuple[int, End, End]:
    """A link, seen from the end that acts and the other one, so that each test runs both ways."""
    number, client, backend = relay.link()
    return (number, client, backend) if first == "client" else (number, backend, client)


both_ways = pytest.mark.parametrize("first", ["client", "backend"])


@both_ways
def test_half_close(relay: RelayUnderTest, first: str) -> None:
    """Each direction ends at its own time: after one end has said all, the other may go on."""
    number, one, other = ends(relay, first)
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_to_end(other) == b"question"
    for part in (b"an", b"swer"):
        other.sendall(part)
        assert one.recv(100) == part
    assert number not in relay.ended
    other.shutdown(socket.SHUT_WR)
    assert read_to_end(one) == b""
    counts = (8, 6) if first == "client" else (6, 8)
    assert relay.end_of(number) == (*counts, "closed")
    one.close()
    other.close()


@both_ways
def test_all_bytes_before_the_end(relay: RelayUnderTest, first: str) -> None:
    """Bytes that were sent before a close arrive, all of them and in order, though the sender has gone."""
    number, one, other = ends(relay, first)
    digest = hashlib.sha256()

    def write() -> None:
        with one:
            for _ in range(8):
                one.sendall(BLOCK)
                digest.update(BLOCK)

    writer = threading.Thread(target=write)
    writer.start()
    got = read_to_end(other)
    writer.join()
    assert hashlib.sha256(got).digest() == digest.digest()
    counts = (len(got), 0) if first == "client" else (0, len(got))
    assert relay.end_of(number) == (*counts, "closed")
    other.close()


@both_ways
def test_a_reset_is_an_outcome(relay: RelayUnderTest, first: str) -> None:
    """An end that closes with bytes unread: the other reads what was sent, then a clean end; the outcome tells."""
    number, one, other = ends(relay, first)
    other.sendall(b"never read")
    one.sendall(b"last words")
    select.select([one], [], [], 10)
    assert other.recv(4) == b"last"
    one.close()
    assert relay.end_of(number)[2] == f"{first}_reset"
    assert other.recv(100) == b" words"
    assert other.recv(1) == b""
    other.close()


@both_ways
def test_a_clean_close_is_no_reset(relay: RelayUnderTest, first: str) -> None:
    """An end that has read everything and closes: the other sees an end of file, though it has sent something."""
    number, one, other = ends(relay, first)
    other.sendall(b"question")
    assert one.recv(100) == b"question"
    one.close()
    assert other.recv(1) == b""
    assert relay.end_of(number)[2] == "closed"
    with pytest.raises(BrokenPipeError):
        other.send(b"too late")
    other.close()


@both_ways
def test_writing_to_one_who_does_not_read_any_more(relay: RelayUnderTest, first: str) -> None:
    """SHUT_RD at one end is EPIPE at the other, also for a writer who waits for room; what it still says arrives."""
    number, one, other = ends(relay, first)
    os.kill(relay.pid, signal.SIGSTOP)
    one.shutdown(socket.SHUT_RD)
    other.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            other.send(BLOCK)
    os.kill(relay.pid, signal.SIGCONT)
    assert select.select([], [other], [], 10)[1]
    with pytest.raises(BrokenPipeError):
        other.send(b"x")
    one.sendall(b"bye")
    other.setblocking(True)
    assert other.recv(10) == b"bye"
    one.close()
    assert relay.end_of(number)[2] in ("closed", f"{first}_reset")
    other.close()


@both_ways
def test_fds_arrive_at_their_byte(relay: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """A header read by plain recv of its exact length leaves the fds behind it alone, however it was queued."""

    def before(client: End, backend: End) -> None:
        sender = client if first == "client" else backend
        sender.send(b"head")
        sender.send(b"er")
        socket.send_fds(sender, [b"message one"], [reader])
        sender.send(b"between")
        socket.send_fds(sender, [b"2"], [reader, reader])
        socket.send_fds(sender, [b"3"], [reader])
        sender.send(b"tail")

    reader, writer = pipe_to_pass()
    number, client, backend = relay.link(before=before)
    other = backend if first == "client" else client
    assert other.recv(6, socket.MSG_WAITALL) == b"header"
    data, fds, _, _ = socket.recv_fds(other, 100, 10)
    assert (data, len(fds)) == (b"message one", 1)
    assert os.fstat(fds[0]).st_ino == os.fstat(reader).st_ino
    assert other.recv(7, socket.MSG_WAITALL) == b"between"
    for message, count in ((b"2", 2), (b"3", 1)):
        data, more, _, _ = socket.recv_fds(other, 1, 10)
        assert (data, len(more)) == (message, count)
        fds += more
    assert other.recv(4, socket.MSG_WAITALL) == b"tail"
    for fd in (reader, *fds):
        os.close(fd)
    wait_until(lambda: all_copies_closed(writer))
    os.close(writer)
    client.close()
    backend.close()
    assert relay.end_of(number)[2] == "closed"


@both_ways
def test_fds_behind_a_file_that_was_sent(relay: RelayUnderTest, first: str) -> None:
    """sendfile(2) makes messages longer than others: fds behind them arrive once, and not before their byte."""
    _, one, other = ends(relay, first)
    with one, other:
        one.sendall(b"first")
        assert other.recv(10) == b"first"
        fd = os.memfd_create("file")
        os.write(fd, bytes(1 << 16))
        os.kill(relay.pid, signal.SIGSTOP)  # until all of it is there
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        assert os.sendfile(one.fileno(), fd, 0, 1 << 16) == 1 << 16
        socket.send_fds(one, [b"with an fd"], [fd])
        os.kill(relay.pid, signal.SIGCONT)
        os.close(fd)
        place, found = 0, []
        while place < (1 << 16) + 10:
            data, fds, _, _ = socket.recv_fds(other, 1000, 253)
            close_all(fds)
            place += len(data)
            found += [place] * len(fds)
        assert len(found) == 1
        assert found[0] > 1 << 16


def test_as_many_fds_as_a_message_can_carry(relay: RelayUnderTest) -> None:
    """253 in one message arrive in one message, in their order."""
    _, client, backend = relay.link()
    files = [os.memfd_create(str(i)) for i in range(253)]
    socket.send_fds(client, [b"x"], files)
    data, fds, _, _ = socket.recv_fds(backend, 100, 253)
    assert data == b"x"
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in files]
    for fd in (*files, *fds):
        os.close(fd)
    client.close()
    backend.close()


def test_fds_and_a_slow_reader(relay: RelayUnderTest, wait_until: WaitUntil) -> None:
    """Messages with fds that find no room wait for it: none is lost, none comes twice or at another byte."""
    _, client, backend = relay.link()
    client.setblocking(False)
    reader, writer = pipe_to_pass()
    sent, least = 0, 50  # more than one socket takes: however slow the relay is, it has to pass some on
    while True:
        try:
            if sent % 3:
                client.send(b"%8d" % sent + b"." * 4000)
            else:
                socket.send_fds(client, [b"%8d" % sent + b"." * 4000], [reader])
        except BlockingIOError:
            if select.select([], [client], [], SECONDS if sent <= least else 0.2)[1]:
                continue
            break  # everything between the two is full
        sent += 1
    assert least < sent < 1000
    os.close(reader)
    for number in range(sent):
        data, fds, _, _ = socket.recv_fds(backend, 1, 10)
        data += backend.recv(4007, socket.MSG_WAITALL)
        assert data == b"%8d" % number + b"." * 4000
        assert len(fds) == (0 if number % 3 else 1)
        for fd in fds:
            os.close(fd)
    wait_until(lambda: all_copies_closed(writer))
    os.close(writer)
    client.close()
    backend.close()


@both_ways
def test_fds_in_flight_die_with_the_connection(relay: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """fds that nobody received are closed with the connection, wherever they were."""
    number, one, other = ends(relay, first)
    reader, writer = pipe_to_pass()
    for _ in range(20):
        socket.send_fds(one, [b"x"], [reader] * 10)
    os.close(reader)
    other.close()
    one.close()
    relay.end_of(number)
    wait_until(lambda: all_copies_closed(writer))
    os.close(writer)


def pass_one(client: End, backend: End) -> None:
    """A descriptor with two bytes, which arrive."""
    socket.send_fds(client, [b"xy"], [0])
    data, fds, _, _ = socket.recv_fds(backend, 2, 1)
    assert data == b"xy"
    close_all(fds)


def test_fds_are_seen_to_be_taken(relay: RelayUnderTest, wait_until: WaitUntil) -> None:
    """Soon after: a sender that limits what it has on its way may wait for just that (unix(7), SIOCOUTQ)."""
    _, client, backend = relay.link()
    with client, backend:
        pass_one(client, backend)
        count = array("i", [1])

        def taken() -> bool:
            fcntl.ioctl(client, termios.TIOCOUTQ, count)
            return count[0] == 0

        wait_until(taken)


@both_ways
def test_refused_fds(relay: RelayUnderTest, wait_until: WaitUntil, first: str) -> None:
    """Where fds are refused (and the kernel does not do it) the connection ends, says so, and keeps none."""
    number, client, backend = relay.link(proxy=1)
    one, other = (client, backend) if first == "client" else (backend, client)
    reader, writer = pipe_to_pass()
    one.send(b"plain")
    assert other.recv(100) == b"plain"
    socket.send_fds(one, [b"x"], [reader])
    os.close(reader)
    assert relay.end_of(number)[2] == "fds_refused"
    assert other.recv(100) == b""
    wait_until(lambda: all_copies_closed(writer))
    os.close(writer)
    one.close()
    other.close()


def test_one_slow_reader_stalls_nobody_else(relay: RelayUnderTest) -> None:
    """While one connection is full to the brim, another one of the same relay goes on."""
    _, client, backend = relay.link()
    client.setblocking(False)
    while select.select([], [client], [], 0.05)[1]:
        client.send(BLOCK)
    _, client2, backend2 = relay.link()
    for _ in range(100):
        client2.sendall(b"ping")
        assert backend2.recv(10) == b"ping"
    for end in (client, backend, client2, backend2):
        end.close()


@both_ways
def test_in_the_end_all_is_taken_where_fds_have_come(relay: RelayUnderTest, first: str, wait_until: WaitUntil) -> None:
    """A byte that stayed behind would tell who sends fds that they are on their way still. The second time nothing else
    is under way in the relay.
    """
    _, one, other = ends(relay, first)
    with one, other, open(os.devnull, "rb") as null:
        socket.send_fds(one, [b"with one"], [null.fileno()])
        close_all(socket.recv_fds(other, 100, 1)[1])
        wait_until(lambda: not untaken(one.fileno()))
        one.sendall(b"plain")
        assert other.recv(100) == b"plain"
        wait_until(lambda: not untaken(one.fileno()))
