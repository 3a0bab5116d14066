"""Random conversations, held twice: over a plain socket pair, and over one with a relay in between. No difference."""

from __future__ import annotations

import errno
import os
import select
import socket
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockguard.privsep.channel import close_all, received_fds
from tests.unit.relay.conftest import End, RelayUnderTest

MAX_QUEUED: Final = 60_000  # less than a socket pair holds, so that nothing blocks
WaitUntil = Callable[[Callable[[], bool]], None]


@dataclass(frozen=True)
class Send:
    end: int
    size: int
    fds: int


@dataclass(frozen=True)
class Read:
    end: int
    size: int
    plain: bool  # without room for ancillary data, as a service reads that expects none


@dataclass(frozen=True)
class HalfClose:
    end: int


@dataclass(frozen=True)
class Close:
    end: int


Step = Send | Read | HalfClose | Close
END = st.integers(0, 1)
SIZE = st.integers(1, 8) | st.integers(1, 3000)
STEPS = st.lists(
    st.builds(Send, END, SIZE, st.just(0))
    | st.builds(Send, END, SIZE, st.integers(0, 4))
    | st.builds(Read, END, SIZE, st.booleans())
    | st.builds(Send, END, SIZE, st.integers(0, 2))
    | st.builds(Read, END, st.integers(1, 10), st.booleans())
    | st.builds(HalfClose, END)
    | st.builds(Close, END),
    max_size=40,
)


@dataclass
class Talk:
    """One way to hold the conversation: its two ends, and what was seen."""

    ends: tuple[End, End]
    seen: list[object] = field(default_factory=list)

    def queued(self, end: int) -> tuple[int, int]:
        """What an end can see without reading: bytes that wait, and whether the other end has ended or gone."""
        sock = self.ends[end]
        if sock.fileno() < 0:
            return (0, 0)
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        found = poll.poll(0)
        return unread(sock), found[0][1] & (select.POLLRDHUP | select.POLLHUP) if found else 0

    def do(self, step: Step, data: bytes, reader: int) -> None:
        sock = self.ends[step.end]
        try:
            match step:
                case Send(_, _, fds):
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [reader] * fds))] if fds else []
                    self.seen.append(sock.sendmsg([data], rights))
                case Read(_, size, plain):
                    got, control, _, _ = sock.recvmsg(size, 0 if plain else socket.CMSG_SPACE(64))
                    received = received_fds(control)
                    self.seen.append((got, [os.fstat(fd).st_ino for fd in received]))
                    close_all(received)
                case HalfClose():
                    sock.shutdown(socket.SHUT_WR)
                case Close():
                    sock.close()
        except OSError as error:
            self.seen.append(errno.errorcode[error.errno or 0])


def unread(sock: End) -> int:
    import fcntl
    import termios

    count = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


@pytest.fixture(scope="module")
def shared() -> Iterator[RelayUnderTest]:
    """One relay for all examples: what one leaves behind is the next one's trouble."""
    made = RelayUnderTest()
    made.configure(1, {})
    yield made
    made.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, early=st.integers(0, 5))
def test_no_difference(shared: RelayUnderTest, wait_until: WaitUntil, steps: list[Step], early: int) -> None:
    """Same bytes, same fds at the same byte, same ends, same errors; nothing left open; the relay's counts are right.

    The first ``early`` steps happen before the relay has the connection, so that it finds a queue.
    """
    direct = Talk(socket.socketpair())
    readers: list[int] = []
    writers: list[int] = []
    sent = [0, 0]
    queue_ahead = [step for step in steps[:early] if isinstance(step, Send)]

    def both(step: Step, *talks: Talk) -> None:
        data = os.urandom(step.size) if isinstance(step, Send) else b""
        reader, writer = os.pipe()
        readers.append(reader)
        writers.append(writer)
        for talk in talks:
            talk.do(step, data, reader)
        os.close(reader)

    relayed: Talk | None = None

    def before(client: End, backend: End) -> None:
        nonlocal relayed
        relayed = Talk((client, backend))
        for step in queue_ahead:
            run(step)

    def run(step: Step) -> None:
        assert relayed is not None
        ends = direct.ends
        if ends[step.end].fileno() < 0:
            return
        if isinstance(step, Send):
            other = ends[1 - step.end]
            if other.fileno() >= 0 and unread(other) + step.size > MAX_QUEUED:
                return
        both(step, direct, relayed)
        if isinstance(step, Send) and isinstance(direct.seen[-1], int):
            sent[step.end] += step.size

    number, *_ = shared.link(before=before)
    assert relayed is not None
    half_closed = [False, False]
    closed_first: int | None = None
    reset = False
    for step in [*steps[len(queue_ahead) :], *finish()]:
        if isinstance(step, Read) and direct.ends[step.end].fileno() >= 0:
            direct.ends[step.end].setblocking(False)
            relayed.ends[step.end].setblocking(False)
        wait_until(lambda: all(direct.queued(end) == relayed.queued(end) for end in (0, 1)))
        if isinstance(step, HalfClose) and closed_first is None:
            half_closed[step.end] = True
        if isinstance(step, Close) and closed_first is None:
            closed_first = step.end
            reset = unread(direct.ends[step.end]) > 0
        run(step)
        if direct.seen and direct.seen != relayed.seen:
            # What no relay can show without leaving a byte of its sender unread: a reset is a clean end here.
            assert direct.seen[-1] == "ECONNRESET"
            assert relayed.seen[-1] == (b"", [])
            relayed.seen[-1] = direct.seen[-1]
    from_client, from_backend, outcome = shared.end_of(number)
    assert [from_client, from_backend] == sent
    if all(half_closed) or not reset:
        assert outcome == "closed"
    else:
        assert outcome == ("client_reset", "backend_reset")[closed_first or 0]
    for writer in writers:
        wait_until(no_copy_left(writer))
        os.close(writer)


def no_copy_left(writer: int) -> Callable[[], bool]:
    """Has nobody the other end of that pipe any more? Carriers close what they have passed on in their own time."""
    poll = select.poll()
    poll.register(writer, 0)
    return lambda: poll.poll(0) == [(writer, select.POLLERR)]


def finish() -> list[Step]:
    """Read what is left at both ends, to its end where there is one; close; read again."""
    rest: list[Step] = [Read(end, 3001, plain=False) for end in (0, 1) for _ in range(3)]
    return [*rest, Close(0), *[Read(1, 70_000, plain=False)] * 45, Read(1, 1, plain=False), Close(1)]
