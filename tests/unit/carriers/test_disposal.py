"""Handing sockets to the master: what is said and when, what waits, and that the master's child is the last of all."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from sockguard.carriers import master
from sockguard.carriers.disposal import Disposal
from sockguard.carriers.jobs import DISPOSE, GO, MAX_DISPOSED, READY
from sockguard.privsep import channel

SECONDS: Final = 20.0


class Full(socket.socket):
    """The near end of a channel. ``refusals``: the errno of each send to come, 0 for one that goes on its way (a fake:
    the kernel's room does not end between two packets of one's choice).
    """

    refusals: deque[int]

    def _go_on(self) -> None:
        number = self.refusals.popleft() if self.refusals else 0
        if number:
            raise OSError(number, os.strerror(number))

    def send(self, *arguments: Any) -> int:
        self._go_on()
        return super().send(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        self._go_on()
        return super().sendmsg(*arguments)


class Case:
    """A disposal, and the test as its master."""

    def __init__(self) -> None:
        ours, self.far = channel.pair()
        self.near = Full(fileno=ours.detach())
        self.near.refusals = deque()
        self.far.setblocking(False)
        self.asked = 0
        self.subject = Disposal(self.near, self._on_waiting)
        self.made: list[socket.socket] = []

    def _on_waiting(self) -> None:
        self.asked += 1

    def sock(self) -> socket.socket:
        self.made.append(socket.socket(socket.AF_UNIX))
        return self.made[-1]

    def heard(self) -> list[tuple[bytes, int]]:
        """What was said, and how many sockets came with it."""
        found: list[tuple[bytes, int]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.far, 10, MAX_DISPOSED)
            except BlockingIOError:
                return found
            channel.close_all(fds)
            found.append((data, len(fds)))

    def close(self) -> None:
        for sock in (self.near, self.far, *self.made):
            sock.close()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def is_open(*socks: socket.socket) -> bool:
    (found,) = {sock.fileno() >= 0 for sock in socks}
    return found


def test_handed_over_closed_and_said(case: Case) -> None:
    """Nothing is left to be done then, and nobody need be called."""
    one, other, third = (case.sock() for _ in range(3))
    case.subject.dispose([one, other])
    case.subject.dispose([third])
    assert case.heard() == [(DISPOSE, 2), (GO, 0), (DISPOSE, 1), (GO, 0)]
    assert not is_open(one, other, third)
    assert (case.subject.waiting, case.asked) == (0, 0)
    case.subject.dispose([])
    assert case.heard() == []


def test_no_more_at_once_than_a_message_can_bring(case: Case) -> None:
    """The rest is handed over after the first are closed."""
    socks = [case.sock() for _ in range(2 * MAX_DISPOSED + 1)]
    case.subject.dispose(socks)
    assert case.heard() == [(DISPOSE, MAX_DISPOSED), (GO, 0), (DISPOSE, MAX_DISPOSED), (GO, 0), (DISPOSE, 1), (GO, 0)]
    assert not is_open(*socks)


def test_what_is_closed_by_now_is_left_out(case: Case) -> None:
    """Nothing is said of it, and it holds nobody up."""
    closed, open_one = case.sock(), case.sock()
    closed.close()
    case.subject.dispose([closed])
    assert (case.heard(), case.subject.waiting) == ([], 0)
    case.subject.dispose([closed, open_one, closed])
    assert (case.heard(), case.subject.waiting) == ([(DISPOSE, 1), (GO, 0)], 0)
    assert not is_open(open_one)


def test_one_that_is_closed_while_it_waits(case: Case) -> None:
    """Somebody else's close is a close."""
    case.near.refusals = deque([errno.EAGAIN])
    one, other = case.sock(), case.sock()
    case.subject.dispose([one, other])
    one.close()
    case.subject.retry()
    assert (case.heard(), case.subject.waiting) == ([(DISPOSE, 1), (GO, 0)], 0)
    assert not is_open(other)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_no_room(case: Case, number: int) -> None:
    """It stays open, in its turn, until it can be handed over; whoever calls retry is told that it has to."""
    case.near.refusals = deque([number] * 3)
    one, other = case.sock(), case.sock()
    case.subject.dispose([one])
    case.subject.dispose([other])
    assert (case.subject.waiting, case.asked) == (2, 2)
    case.subject.retry()
    assert case.heard() == []
    assert is_open(one, other)
    case.subject.retry()
    assert case.heard() == [(DISPOSE, 2), (GO, 0)]
    assert not is_open(one, other)
    assert (case.subject.waiting, case.asked) == (0, 2)


def test_no_room_to_say_that_they_are_closed(case: Case) -> None:
    """What the master keeps waits for that word: it is said before anything else is handed over, and not twice."""
    case.near.refusals = deque([0, errno.EAGAIN, errno.EAGAIN, errno.EAGAIN])
    one, other = case.sock(), case.sock()
    case.subject.dispose([one])
    assert case.heard() == [(DISPOSE, 1)]
    assert not is_open(one)
    assert (case.subject.waiting, case.asked) == (1, 1)
    case.subject.dispose([other])
    assert (case.heard(), case.subject.waiting, case.asked) == ([], 2, 2)
    assert is_open(other)
    case.subject.retry()
    assert (case.heard(), case.subject.waiting) == ([], 2)
    case.subject.retry()
    assert case.heard() == [(GO, 0), (DISPOSE, 1), (GO, 0)]
    assert not is_open(other)
    assert case.subject.waiting == 0


def test_a_master_that_has_gone(case: Case) -> None:
    """Everything stays open from then on, whatever is tried: better a leak than a process that stands still."""
    one, other = case.sock(), case.sock()
    case.far.close()
    case.subject.dispose([one])
    case.subject.retry()
    case.subject.dispose([other])
    assert is_open(one, other)
    assert (case.subject.waiting, case.asked) == (2, 2)


# ── with a real master ──


@pytest.fixture
def started() -> Iterator[master.Master]:
    made = master.start()
    made.wait_ready()
    yield made
    made.close()


class Held:
    """A connection in which a descriptor waits: the reading end of a pipe, of which nobody else has a copy."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        self.sock, peer = socket.socketpair()
        socket.send_fds(peer, [b"x"], [reader])
        os.close(reader)
        peer.close()
        self._poll = select.poll()
        self._poll.register(self._writer, 0)

    def released(self, seconds: float = 0) -> bool:
        return self._poll.poll(seconds * 1000) == [(self._writer, select.POLLERR)]

    def close(self) -> None:
        self.sock.close()
        os.close(self._writer)


@pytest.fixture
def hold() -> Iterator[Callable[[], Held]]:
    made: list[Held] = []

    def make() -> Held:
        made.append(Held())
        return made[-1]

    yield make
    for each in made:
        each.close()


Hold = Callable[[], Held]


def test_kept_until_it_is_said_to_be_closed(started: master.Master, hold: Hold) -> None:
    """The master's child has them from the first word on, and exits at the second."""
    for _ in range(2):
        held = hold()
        socket.send_fds(started.disposals, [DISPOSE], [held.sock.fileno()])
        held.sock.close()
        assert not held.released(0.2)
        started.disposals.send(GO)
        assert held.released(SECONDS)


def test_a_carrier_that_is_started_meanwhile(hold: Hold) -> None:
    """Where there was no room for the second word, anything else may be said before it: it counts all the same."""
    made = master.start(1)
    made.wait_ready()
    held = hold()
    socket.send_fds(made.disposals, [DISPOSE], [held.sock.fileno()])
    held.sock.close()
    made.start(0)
    made.disposals.send(GO)
    try:
        assert held.released(5)
    finally:
        made.end()


def test_whoever_ends_before_it_has_said_so(started: master.Master, hold: Hold) -> None:
    """The master ends with it, and what it kept is released."""
    held = hold()
    socket.send_fds(started.disposals, [DISPOSE], [held.sock.fileno()])
    held.sock.close()
    started.channel.close()
    assert held.released(SECONDS)


def test_far_more_than_lives_at_a_time(started: master.Master, hold: Hold) -> None:
    """However many there are, each is released, and all of the master's children are reaped."""
    subject = Disposal(started.disposals)
    many = [hold() for _ in range(3 * master.MAX_EXITING)]
    for each in many:
        subject.dispose([each.sock])
    poll = select.poll()
    poll.register(started.disposals, select.POLLOUT)
    while subject.waiting:
        assert poll.poll(SECONDS * 1000)
        subject.retry()
    assert all(each.released(SECONDS) for each in many)
    assert all(each.sock.fileno() == -1 for each in many)


def children_of(pid: int) -> list[int]:
    """Those that have not ended."""
    found = []
    for each in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{each}/stat") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(each)
    return found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def hand_over(made: master.Master, held: Held) -> None:
    socket.send_fds(made.disposals, [DISPOSE], [held.sock.fileno()])
    held.sock.close()


def test_keepers_while_others_do_not_end(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may be exiting do not end: the others keep what comes, so many messages each, and do not exit."""
    monkeypatch.setattr(master, "MAX_EXITING", 0)
    monkeypatch.setattr(master, "MAX_KEPT", 2)
    made = master.start()
    made.wait_ready()
    many = [hold() for _ in range(5)]
    subject = Disposal(made.disposals)
    for each in many:
        subject.dispose([each.sock])
    until(lambda: len(children_of(made._pid)) == 3)
    assert not many[-1].released(0.2)
    assert not any(each.released() for each in many)
    assert len(children_of(made._pid)) == 3
    made.end()
    assert all(each.released(SECONDS) for each in many)


def test_a_keeper_that_is_killed(started: master.Master, hold: Hold) -> None:
    """What it kept is released, and the next one is kept by another."""
    first, second = hold(), hold()
    hand_over(started, first)
    until(lambda: bool(children_of(started._pid)))
    (keeper,) = children_of(started._pid)
    os.kill(keeper, signal.SIGKILL)
    assert first.released(SECONDS)
    hand_over(started, second)
    started.disposals.send(GO)
    assert not second.released(0.2)
    started.disposals.send(GO)
    assert second.released(SECONDS)


def test_a_keeper_that_does_not_end(started: master.Master, hold: Hold) -> None:
    """Nobody waits for it."""
    first, second = hold(), hold()
    hand_over(started, first)
    until(lambda: bool(children_of(started._pid)))
    (keeper,) = children_of(started._pid)
    os.kill(keeper, signal.SIGSTOP)
    try:
        started.disposals.send(GO)
        hand_over(started, second)
        started.disposals.send(GO)
        assert second.released(SECONDS)
        assert not first.released()
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert first.released(SECONDS)


def test_a_keeper_that_stands_still_for_a_while(started: master.Master, hold: Hold) -> None:
    """The next message waits for it: were it given to another one, it could receive a later one that is not for it."""
    first, second = hold(), hold()
    hand_over(started, first)
    until(lambda: bool(children_of(started._pid)))
    (keeper,) = children_of(started._pid)
    os.kill(keeper, signal.SIGSTOP)
    hand_over(started, second)
    for _ in range(2):
        started.disposals.send(GO)
    assert not second.released(0.2)
    assert children_of(started._pid) == [keeper]
    os.kill(keeper, signal.SIGCONT)
    assert first.released(SECONDS)
    assert second.released(SECONDS)


def test_the_end_of_the_master(hold: Hold) -> None:
    """Whoever has started it waits for it, so that none is left behind as a child that nobody has waited for."""
    made = master.start(2)
    made.wait_ready()
    held = hold()
    Disposal(made.disposals).dispose([held.sock])
    made.end()
    assert [sock.fileno() for sock in (made.channel, made.disposals, *made.slots)] == [-1] * 4
    with pytest.raises(ChildProcessError):
        os.waitpid(made._pid, os.WNOHANG)
    assert held.released(SECONDS)


def test_the_end_of_a_master_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end."""
    monkeypatch.setattr(master, "_END_SECONDS", 0.01)
    ours, far = channel.pair()
    waits, gate = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(gate)
        os.read(waits, 1)
        os._exit(0)
    disposals, other = channel.pair()
    made = master.Master(ours, disposals, [], pid)
    far.send(READY)
    made.wait_ready()
    made.end()
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.close(gate)
    assert os.waitpid(pid, 0) == (pid, 0)
    os.close(waits)
    far.close()
    other.close()
