"""Random conversations over an inspected connection, against a plain model of what must arrive; and many at once."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockguard.privsep.channel import close_all
from sockguard.privsep.messages import Credits
from tests.unit.relay.lines import SECONDS, Control, configured

SMALL: Final = 4608
"""The least that SO_SNDBUF can be (SOCK_MIN_SNDBUF): each message of these is more than the kernel takes at once."""
CLIENT: Final = 0
BACKEND: Final = 1


@pytest.fixture(scope="module")
def shared() -> Iterator[Control]:
    """One loop for all examples: what one leaves behind is the next one's trouble."""
    with pytest.MonkeyPatch.context() as monkeypatch, configured(monkeypatch) as control:
        yield control


@dataclass(frozen=True)
class Write:
    """data: what one end writes; arrives: at each end, because of it; fds: that go with its first byte.

    cut: where a second write begins.
    """

    end: int
    data: bytes
    arrives: tuple[bytes, bytes]
    fds: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Read:
    end: int
    size: int


SIZE: Final = st.integers(1, 40) | st.integers(1, 9000)
FDS: Final = st.just(0) | st.integers(0, 5)
CUT: Final = st.integers(0, 12)


def passes(size: int, fds: int, cut: int) -> Write:
    data = b"take %d %s\n" % (fds, b"p" * min(size, 50))
    return Write(CLIENT, data, (b"", data), fds, cut)


def denied(fds: int, cut: int) -> Write:
    return Write(CLIENT, b"drop %d\n" % fds, (b"denied %d\n" % fds, b""), fds, cut)


def flood(size: int, cut: int) -> Write:
    return Write(CLIENT, b"flood %d\n" % size, (b"x" * size, b""), 0, cut)


def upload(size: int, cut: int) -> Write:
    data = b"body %d\n%s" % (size, b"pass u\n" * (size // 7) + b"u" * (size % 7))
    return Write(CLIENT, data, (b"", data + b"behind the body\n"), 0, cut)


def answer(size: int, fds: int, cut: int) -> Write:
    data = b"a" * min(size, 50) + b"\n"
    return Write(BACKEND, data, (data, b""), fds, cut)


def download(size: int, cut: int) -> Write:
    data = b"body %d\n%s" % (size, b"body 9\n" * (size // 7) + b"w" * (size % 7))
    return Write(BACKEND, data, (data, b""), 0, cut)


WRITE: Final = st.one_of(
    st.builds(passes, SIZE, FDS, CUT),
    st.builds(denied, FDS, CUT),
    st.builds(flood, SIZE, CUT),
    st.builds(upload, SIZE, CUT),
    st.builds(answer, SIZE, FDS, CUT),
    st.builds(download, SIZE, CUT),
)
STEPS: Final = st.lists(WRITE | WRITE | st.builds(Read, st.integers(0, 1), SIZE), max_size=30)


class Ends:
    """Both ends, as a client and a service that write when there is room, and read when they are told."""

    def __init__(self, control: Control, buffer: int) -> None:
        self.socks = control.link(buffer=buffer)
        self.number = control.number
        self.waits: list[list[tuple[bytes, int]]] = [[], []]
        self.got = [bytearray(), bytearray()]
        self.fds = [0, 0]
        self.shut = [False, False]
        for sock in self.socks:
            sock.setblocking(False)

    def write(self, end: int, null: int) -> None:
        waits = self.waits[end]
        while waits:
            data, fds = waits[0]
            try:
                sent = socket.send_fds(self.socks[end], [data], [null] * fds) if fds else self.socks[end].send(data)
            except BlockingIOError:
                return
            if sent == len(data):
                del waits[0]
            else:
                waits[0] = data[sent:], 0

    def read(self, end: int, size: int) -> bool:
        """False at the end."""
        try:
            data, fds, flags, _ = socket.recv_fds(self.socks[end], size, 253)
        except BlockingIOError:
            return True
        assert not flags & socket.MSG_CTRUNC
        close_all(fds)
        self.got[end] += data
        self.fds[end] += len(fds)
        return bool(data)


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, small=st.booleans(), last=st.integers(0, 1), close=st.booleans())
def test_what_must_arrive_arrives(shared: Control, steps: list[Step], small: bool, last: int, close: bool) -> None:
    """Each byte and fd, once, in its order; then both ends see the end, and each byte that was written is counted.

    last: who ends it when all is said, by a half-close or by a close.
    """
    shared.send(Credits(len(steps)))
    ends = Ends(shared, SMALL if small else 0)
    null = os.open(os.devnull, os.O_RDONLY)
    for step in steps:
        if isinstance(step, Read):
            ends.read(step.end, step.size)
            continue
        cut = min(step.cut, len(step.data) - 1)
        ends.waits[step.end] += [(step.data[:cut], step.fds)] if cut else []
        ends.waits[step.end].append((step.data[cut:], 0 if cut else step.fds))
        ends.write(step.end, null)
    writes = [step for step in steps if isinstance(step, Write)]
    wanted = [sum(len(step.arrives[end]) for step in writes) for end in (0, 1)]
    poll = select.poll()
    for sock in ends.socks:
        poll.register(sock, select.POLLIN | select.POLLOUT)
    while any(ends.waits) or any(len(ends.got[end]) < wanted[end] for end in (0, 1)):
        for end in (0, 1):
            if not ends.waits[end]:
                poll.modify(ends.socks[end], select.POLLIN)
        assert poll.poll(1000 * SECONDS), ("it stands still", ends.got, wanted)
        for end in (0, 1):
            ends.write(end, null)
            ends.read(end, 1 << 16)
    os.close(null)
    assert told_by(bytes(ends.got[CLIENT]), writes, CLIENT)
    assert told_by(bytes(ends.got[BACKEND]), writes, BACKEND)
    passed = [sum(step.fds for step in writes if step.end == 1 - end and step.arrives[end]) for end in (0, 1)]
    assert ends.fds == passed
    if close:
        ends.socks[last].close()
    else:
        ends.socks[last].shutdown(socket.SHUT_WR)
    other = ends.socks[1 - last]
    other.settimeout(SECONDS)
    assert other.recv(1) == b""
    assert shared.outcome(ends.number) == ("closed", "")
    sent = [sum(len(step.data) for step in writes if step.end == end) for end in (0, 1)]
    assert list(shared.counts[ends.number]) == sent
    for sock in ends.socks:
        sock.close()


Step = Write | Read


def told_by(got: bytes, writes: list[Write], end: int) -> bool:
    """Is this what the writes of the two ends make arrive here: those of each in their order, anyhow between them?

    What one end says directly is told from what the other has answered by its letters, so each is looked at alone.
    """
    own = b"".join(step.arrives[end] for step in writes if step.end == end)
    if end == BACKEND:
        return got == b"".join(step.arrives[end] for step in writes if step.end == CLIENT)
    rest = got
    # Answers of the relay stand between whole lines and bodies of the service.
    for piece in [step.arrives[end] for step in writes if step.end == BACKEND]:
        before, found, rest = rest.partition(piece)
        if not found or not own.startswith(before):
            return False
        own = own[len(before) :]
    return rest == own


def test_many_at_once_with_tiny_buffers(shared: Control) -> None:
    """Every one of 200 gets all that it is due, both ways, while all of them are full."""
    count, lines = 200, 300
    shared.send(Credits(count))
    poll = select.epoll()
    all_ends = [Ends(shared, SMALL) for _ in range(count)]
    due = len(b"pass line\n") * lines
    of: dict[int, tuple[Ends, int]] = {}
    for ends in all_ends:
        ends.waits = [[(b"pass line\n" * lines, 0)], [(b"say line!\n" * lines, 0)]]
        for end, sock in enumerate(ends.socks):
            of[sock.fileno()] = ends, end
            poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
    open_ends = 2 * count
    while open_ends:
        found = poll.poll(SECONDS)
        assert found, "somebody starves"
        for fd, events in found:
            ends, end = of[fd]
            if events & select.EPOLLIN:
                ends.read(end, 1000)
            ends.write(end, -1)
            if not ends.waits[end]:
                poll.modify(fd, select.EPOLLIN)
            if not ends.waits[end] and len(ends.got[end]) == due and not ends.shut[end]:
                ends.shut[end] = True
                open_ends -= 1
    poll.close()
    for ends in all_ends:
        assert ends.got[BACKEND] == b"pass line\n" * lines
        assert ends.got[CLIENT] == b"say line!\n" * lines
        for sock in ends.socks:
            with contextlib.suppress(OSError):
                sock.close()
        assert shared.outcome(ends.number) == ("closed", "")
        assert shared.counts[ends.number] == (due, due)
