"""What comes in the way of a connection on which nothing was: it is seen at once, without an event of the kernel's.

The tests of the other files look as well, at each use, whether a side that says that it is clear is so (lines.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from sockguard.carriers import master
from sockguard.privsep import channel
from sockguard.privsep.pipe import Outlet
from sockguard.relay import inspected, inspected_side
from sockguard.relay.inspected import InspectedLink
from sockguard.relay.loop import Loop
from sockguard.relay.options import Options
from sockguard.relay.side import READ_EVENTS
from tests.unit.relay.lines import Control, End, LineInspector, Lines, configured, read

IDLE_TICKS: Final = 3


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    with configured(monkeypatch) as control:
        yield control


def clear(control: Control) -> tuple[End, End]:
    """Both ends of a connection over which something has gone each way."""
    client, backend = control.link()
    for count in range(2):
        client.sendall(b"pass %d\n" % count)
        assert read(backend, 7) == b"pass %d\n" % count
        backend.sendall(b"answer\n")
        assert read(client, 7) == b"answer\n"
    return client, backend


def nothing_comes(control: Control, end: End) -> None:
    control.go_on()
    end.setblocking(False)
    with pytest.raises(BlockingIOError):
        end.recv(1)
    end.settimeout(20)


def test_a_pause(control: Control) -> None:
    client, backend = clear(control)
    client.sendall(b"pause\n")
    assert read(backend, 6) == b"pause\n"
    client.sendall(b"pass 1\n")
    nothing_comes(control, backend)
    backend.sendall(b"go on\n")
    assert read(backend, 7) == b"pass 1\n"


def test_much_that_waits_behind_a_body(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected_side, "MAX_UNREAD_REPLIES", 1000)
    client, backend = clear(control)
    backend.sendall(b"body 10\n")
    assert read(client, 8) == b"body 10\n"
    client.sendall(b"flood 2000\n")
    control.go_on()
    client.sendall(b"pass 1\n")
    nothing_comes(control, backend)
    backend.sendall(b"0123456789")
    assert read(client, 2010) == b"0123456789" + b"x" * 2000
    assert read(backend, 7) == b"pass 1\n"


def test_a_client_that_hears_nothing_more(control: Control) -> None:
    client, _backend = clear(control)
    client.shutdown(socket.SHUT_RD)
    client.sendall(b"deny 1\n")
    assert control.outcome() == ("client_reset", "")


class Alone:
    """A link in a loop that does not run, which the test drives without events; in ``eofs`` the ends it was told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.eofs: list[int] = []
        monkeypatch.setattr(inspected, "inspector_of", lambda _: LineInspector)
        monkeypatch.setattr(LineInspector, "eof", lambda _, source: self.eofs.append(source))
        self.control, theirs = channel.pair()
        self.pipe = os.pipe()
        self.master = master.start()
        self.master.wait_ready()
        self.channel = theirs
        self.loop = Loop(theirs, Outlet(self.pipe[1]), self.master)
        self.loop.credit = 10
        self.client, ours = socket.socketpair()
        self.backend, theirs = socket.socketpair()
        options = Options("p", "lines", False, False, IDLE_TICKS)
        self.link = InspectedLink(self.loop, 1, ours, theirs, options, os.getuid(), os.getuid(), Lines([]), {})
        self.loop._links[1] = self.link
        for side in self.link.sides:
            side.sock.setblocking(False)
            self.loop._sides[side.fd] = side
            self.loop._epoll.register(side.fd, READ_EVENTS)
        self.link.start()
        self.client.send(b"pass 0\n")
        self.backend.send(b"answer\n")
        for side in self.link.sides:
            side.pump()
            assert side.clear
        assert self.backend.recv(100) == b"hello\npass 0\n"

    def close(self) -> None:
        self.link.end("closed", clean=False)
        self.loop._epoll.close()
        for sock in (self.client, self.backend, self.control, self.channel, self.master):
            sock.close()
        for fd in self.pipe:
            os.close(fd)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alone]:
    made = Alone(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("unread", [False, True])
def test_the_end_is_read_once(alone: Alone, unread: bool) -> None:
    """unread: the service closes with bytes unread, so that reading from it is a reset (unix(7))."""
    if unread:
        alone.client.send(b"pass 1\n")
        alone.link.client.pump()
        alone.backend.close()
    else:
        alone.backend.shutdown(socket.SHUT_WR)
    for _ in range(3):
        alone.link.backend.pump()
    assert alone.eofs == [1]


def test_a_half_close_to_one_that_has_gone(alone: Alone) -> None:
    """What is sent to it from then on goes nowhere; what it had said has arrived."""
    alone.backend.close()
    alone.client.send(b"shut\n")
    alone.link.client.pump()
    alone.client.send(b"pass 1\n")
    alone.link.client.pump()
    assert alone.link.backend.deaf
    assert not alone.link.client.clear
    assert alone.client.recv(100) == b"answer\n"


def test_the_end_of_the_connection(alone: Alone) -> None:
    """Both sides are closed: neither is read or written any more."""
    alone.link.end("closed")
    assert not any(side.clear for side in alone.link.sides)


@pytest.mark.parametrize("speaks", ["client", "backend"])
def test_what_goes_over_it_is_seen_by_the_clock(alone: Alone, speaks: str) -> None:
    """A connection is idle when nothing has come from either end for so many ticks, and not before."""
    side, end = (alone.link.client, alone.client) if speaks == "client" else (alone.link.backend, alone.backend)
    for _ in range(3 * IDLE_TICKS):
        end.send(b"pass on\n")
        side.pump()
        assert side.clear
        alone.loop.tick += 1
        assert alone.link.on_time()
    for _ in range(IDLE_TICKS):
        assert not alone.link.ending
        alone.loop.tick += 1
        alone.link.on_time()
    assert alone.link.ending
    assert alone.loop._ended[0][3] == "idle_timeout"


def test_no_time_passes_while_an_answer_waits_for_its_turn(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn shows a few lines alone, and here the ticks of the clock come before the next turn."""
    timed_out: list[bool] = []
    monkeypatch.setattr(LineInspector, "timed_out", lambda _: timed_out.append(True))
    alone.client.send(b"await 0.1\n")
    alone.link.client.pump()
    alone.backend.send(b"say\n" * 20)
    alone.link.backend.pump()
    assert alone.link.backend.rest
    for _ in range(10):
        alone.link.seen = alone.loop.tick = alone.loop.tick + 1
        alone.link.on_time()
    assert not timed_out
    while alone.link.backend.rest:
        alone.link.backend.pump()
    for _ in range(10):
        alone.link.seen = alone.loop.tick = alone.loop.tick + 1
        alone.link.on_time()
    assert timed_out
