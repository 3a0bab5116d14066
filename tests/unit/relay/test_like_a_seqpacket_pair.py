"""Random conversations in records, held twice: over a SOCK_SEQPACKET pair, and over one with a relay in between."""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockguard.privsep.channel import close_all, received_fds
from tests.unit.relay.conftest import End, RelayUnderTest

WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def shared() -> Iterator[RelayUnderTest]:
    """One relay for all examples: what one leaves behind is the next one's trouble."""
    made = RelayUnderTest()
    made.configure(1, {"protocol": "seqpacket"})
    yield made
    made.close()


def no_copy_left(writer: int) -> Callable[[], bool]:
    """For wait_until: is every copy of that pipe's read end closed?"""
    poll = select.poll()
    poll.register(writer, 0)
    return lambda: poll.poll(0) == [(writer, select.POLLERR)]


@dataclass(frozen=True)
class Send:
    end: int
    size: int
    fds: int


@dataclass(frozen=True)
class Read:
    end: int
    size: int
    plain: bool


@dataclass(frozen=True)
class HalfClose:
    end: int


@dataclass(frozen=True)
class Close:
    end: int


Step = Send | Read | HalfClose | Close
END = st.integers(0, 1)
STEPS = st.lists(
    st.builds(Send, END, st.integers(0, 3) | st.integers(0, 4000), st.sampled_from([0, 0, 0, 1, 3]))
    | st.builds(Read, END, st.integers(0, 5) | st.just(5000), st.booleans())
    | st.builds(HalfClose, END)
    | st.builds(Close, END),
    max_size=20,
)


@dataclass
class Talk:
    """One way to hold the conversation: its two ends, and what was seen."""

    ends: tuple[End, End]
    seen: list[object] = field(default_factory=list)

    def do(self, step: Step, data: bytes, reader: int) -> None:
        sock = self.ends[step.end]
        try:
            match step:
                case Send(_, _, fds):
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [reader] * fds))] if fds else []
                    self.seen.append(sock.sendmsg([data], rights))
                case Read(_, size, plain):
                    got, control, flags, _ = sock.recvmsg(size, 0 if plain else socket.CMSG_SPACE(64))
                    received = received_fds(control)
                    self.seen.append((got, flags & ~socket.MSG_EOR, [os.fstat(fd).st_ino for fd in received]))
                    close_all(received)
                case HalfClose():
                    sock.shutdown(socket.SHUT_WR)
                case Close():
                    sock.close()
        except (BrokenPipeError, ConnectionResetError):
            # Which of the two, and whether a reset is told before what was queued, is a matter of time here.
            if isinstance(step, Send):
                self.seen.append("gone")
            elif isinstance(step, Read):
                self.do(step, data, reader)

    def told(self, end: int) -> int:
        """What an end is told of the other one: that it has ended, or gone."""
        if self.ends[end].fileno() < 0:
            return 0
        poll = select.poll()
        poll.register(self.ends[end], select.POLLRDHUP)
        found = poll.poll(0)
        return found[0][1] & (select.POLLRDHUP | select.POLLHUP) if found else 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_no_difference(shared: RelayUnderTest, wait_until: WaitUntil, steps: list[Step]) -> None:
    """Same records, same fds with each, same cuts of too small reads, same ends; nothing left open."""
    number, client, backend = shared.link(kind=socket.SOCK_SEQPACKET)
    direct = Talk(socket.socketpair(type=socket.SOCK_SEQPACKET))
    relayed = Talk((client, backend))
    for sock in direct.ends:
        sock.settimeout(20)
    queued, half_closed = [0, 0], [False, False]
    writers: list[int] = []
    for step in [*steps, Close(0), Close(1)]:
        end, other = step.end, 1 - step.end
        if direct.ends[end].fileno() < 0:
            continue
        over = half_closed[other] or direct.ends[other].fileno() < 0
        if isinstance(step, Read) and not queued[end] and not over:
            continue  # it would wait
        reader, writer = os.pipe()
        writers.append(writer)
        data = os.urandom(step.size) if isinstance(step, Send) else b""
        for talk in (direct, relayed):
            talk.do(step, data, reader)
        os.close(reader)
        assert relayed.seen == direct.seen
        if isinstance(step, Send) and direct.seen[-1] != "gone":
            queued[other] += 1
        elif isinstance(step, Read):
            queued[end] = max(0, queued[end] - 1)
        elif isinstance(step, HalfClose):
            half_closed[end] = True
        if isinstance(step, HalfClose | Close):
            # With an end told, all that was sent before it has arrived.
            wait_until(lambda: all(direct.told(e) == relayed.told(e) for e in (0, 1)))
    assert shared.end_of(number)[2] in ("closed", "client_reset", "backend_reset")
    for writer in writers:
        wait_until(no_copy_left(writer))
        os.close(writer)
