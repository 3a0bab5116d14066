"""Finding the byte that a passed descriptor came with, without disturbing anything."""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockguard.privsep.ancillary import CONTROL_BYTES, PEEK
from sockguard.relay.boundary import PEEK_SEES_ALL, boundary, carries_fds, plain_bytes, untaken

Pair = tuple[socket.socket, socket.socket]
CHUNK = 64 * 1024


def send(sock: socket.socket, size: int, fds: int = 0) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * fds))] if fds else []
    assert sock.sendmsg([b"x" * size], rights) == size


def splice(sock: socket.socket, size: int) -> None:
    """Send so many bytes from a file, as one message where the kernel can."""
    fd = os.memfd_create("spliced")
    os.write(fd, b"x" * size)
    sent = 0
    while sent < size:
        sent += os.sendfile(sock.fileno(), fd, sent, size - sent)
    os.close(fd)


def peek(sock: socket.socket, view: memoryview) -> tuple[int, int]:
    """Length and number of fds that a peek shows."""
    length, control, _, _ = sock.recvmsg_into([view], CONTROL_BYTES, PEEK)
    count = 0
    for _, _, data in control:
        fds = array.array("i", data)
        count += len(fds)
        for fd in fds:
            os.close(fd)
    return length, count


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def lowest_free() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


@settings(max_examples=150, deadline=None)
@given(
    plain=st.lists(st.integers(1, 3000), max_size=5),
    size=st.integers(1, 5000),
    fds=st.integers(1, 20),
    behind=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 2)), max_size=2),
)
def test_boundary(plain: list[int], size: int, fds: int, behind: list[tuple[int, int]]) -> None:
    """Whatever messages stand before and behind, the first byte of the first message with fds is found."""
    ours, theirs = socket.socketpair()
    view = memoryview(bytearray(CHUNK))
    before = lowest_free()
    with ours, theirs:
        for each in plain:
            send(theirs, each)
        send(theirs, size, fds)
        for each, more in behind:
            send(theirs, each, more)
        length, shown = peek(ours, view)
        assert (length, shown) == (sum(plain) + size, fds)
        assert boundary(ours, view, length) == sum(plain)
        assert lowest_free() == before  # nothing was left open
        assert peek(ours, view) == (length, fds)  # nothing was taken
        if plain:
            assert len(ours.recv(sum(plain))) == sum(plain)
        _, got, _, _ = socket.recv_fds(ours, 1, 253)
        assert len(got) == fds
        for fd in got:
            os.close(fd)


@pytest.mark.parametrize(
    ("plain", "size"), [(0, 1), (0, CHUNK), (1, 1), (CHUNK - 1, 1), (1, CHUNK - 1), (CHUNK - 1, 9), (30_000, 60_000)]
)
def test_extremes(pair: Pair, plain: int, size: int) -> None:
    """At both ends of the chunk, for messages of one byte, and where the chunk ends within the message."""
    view = memoryview(bytearray(CHUNK))
    if plain:
        send(pair[1], plain)
    send(pair[1], size, 253)
    length, fds = peek(pair[0], view)
    assert fds == 253
    assert boundary(pair[0], view, length) == plain


@pytest.mark.parametrize("plain", [CHUNK, CHUNK + 1, CHUNK + 50_000])
def test_a_message_beyond_the_chunk(pair: Pair, plain: int) -> None:
    """A full peek may show fds of a message further on: the bytes before the boundary are plain in any case."""
    view = memoryview(bytearray(CHUNK))
    send(pair[1], plain)
    send(pair[1], 5, 1)
    while plain:
        length, _ = peek(pair[0], view)
        start = boundary(pair[0], view, length)
        assert 0 < start <= plain
        data, fds, _, _ = socket.recv_fds(pair[0], start, 1)
        assert (len(data), fds) == (start, [])
        plain -= start
    data, fds, _, _ = socket.recv_fds(pair[0], 1, 1)
    assert len(fds) == 1
    os.close(fds[0])


def test_the_view_is_as_it_was(pair: Pair) -> None:
    """The bytes that were peeked stand in the view afterwards: they are what is passed on."""
    view = memoryview(bytearray(CHUNK))
    pair[1].send(b"head")
    socket.send_fds(pair[1], [b"message"], [0])
    length, _ = peek(pair[0], view)
    assert boundary(pair[0], view, length) == 4
    assert bytes(view[:length]) == b"headmessage"


@pytest.mark.parametrize(("behind", "spliced"), [(0, CHUNK), (1, CHUNK - 1), (1, CHUNK), (1, 3 * CHUNK)])
@pytest.mark.parametrize("plain", [0, CHUNK])
def test_a_message_as_long_as_the_chunk(pair: Pair, behind: int, spliced: int, plain: int) -> None:
    """sendfile makes such: the descriptors that a full peek shows are not its own but those of a message behind it."""
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if behind:
        send(theirs, behind)
    splice(theirs, spliced)
    if plain:
        send(theirs, plain)
    send(theirs, 5, 1)
    before = lowest_free()
    view = memoryview(bytearray(CHUNK))
    assert peek(ours, view) == (CHUNK, 1)
    assert boundary(ours, view, CHUNK) > behind or not carries_fds(ours, behind, CHUNK)
    assert lowest_free() == before  # nothing was left open
    assert len(ours.recv(behind + spliced + plain, socket.MSG_WAITALL)) == behind + spliced + plain
    assert peek(ours, view) == (5, 1)


def test_a_message_that_ends_with_the_chunk_carries_its_own(pair: Pair) -> None:
    """A peek that is full to the byte shows descriptors of just that message, whatever follows."""
    view = memoryview(bytearray(100))
    send(pair[1], 100, 1)
    send(pair[1], 5, 2)
    assert peek(pair[0], view) == (100, 1)
    assert boundary(pair[0], view, 100) == 0
    assert carries_fds(pair[0], 0, 100)


def test_what_a_peer_has_not_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte is still counted when the kernel tells of room: that is no message, and no second event would come."""
    ours, theirs = pair
    assert not untaken(ours.fileno())
    ours.send(b"x")
    assert untaken(ours.fileno())
    theirs.recv(1)
    assert not untaken(ours.fileno())
    monkeypatch.setattr(fcntl, "ioctl", lambda _fd, _request, count: count.__setitem__(0, 1))
    assert not untaken(ours.fileno())


@pytest.mark.skipif(not PEEK_SEES_ALL, reason="a relay does without it on this kernel")
@settings(max_examples=100, deadline=None)
@given(
    plain=st.lists(st.integers(1, 3000), max_size=20),
    fds=st.integers(0, 3),
    behind=st.lists(st.integers(1, 100), max_size=2),
)
def test_plain_bytes(plain: list[int], fds: int, behind: list[int]) -> None:
    """All that is queued, if no message in it carries descriptors, wherever it stands; else none of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for size in plain:
            send(theirs, size)
        if fds:
            send(theirs, 10, fds)
        for size in behind:
            send(theirs, size)
        total = sum(plain) + sum(behind)
        if total or fds:
            assert plain_bytes(ours) == (0 if fds else total)
