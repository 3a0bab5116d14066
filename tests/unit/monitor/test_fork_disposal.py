"""Sockets that the monitor cannot close itself: a process that exits is the last that has them, and few such live."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

import pytest

from sockguard.monitor import disposal
from sockguard.monitor.disposal import ForkDisposal

SECONDS: Final = 20.0


class Held:
    """A connection in which a descriptor waits: the reading end of a pipe, of which nobody else has a copy."""

    def __init__(self, make: Callable[[socket.socket], socket.socket] = lambda sock: sock) -> None:
        reader, self.writer = os.pipe()
        ours, peer = socket.socketpair()
        socket.send_fds(peer, [b"x"], [reader])
        os.close(reader)
        peer.close()
        self.sock = make(ours)

    def released(self, seconds: float = 0) -> bool:
        poll = select.poll()
        poll.register(self.writer, 0)
        return poll.poll(seconds * 1000) == [(self.writer, select.POLLERR)]

    def close(self) -> None:
        self.sock.close()
        os.close(self.writer)


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    made: list[Held] = []

    def make(around: Callable[[socket.socket], socket.socket] = lambda sock: sock) -> Held:
        made.append(Held(around))
        return made[-1]

    yield make
    for each in made:
        each.close()


Hold = Callable[..., Held]


class Forks:
    """The children that are forked; with ``block`` they wait, before they exit, until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        self.fails = 0
        self._fork = os.fork
        self._waits, self._gate = os.pipe()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(os, "fork", self._forked)

    def _forked(self) -> int:
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        pid = self._fork()
        if pid:
            self.pids.append(pid)
        return pid

    def block(self) -> None:
        wait_and_exit = disposal._wait_and_exit

        def wait(gate: int, kept: set[int]) -> None:
            try:
                if self._gate >= 0:
                    os.close(self._gate)  # else it would wait for itself
                os.read(self._waits, 1)
            finally:
                wait_and_exit(gate, kept)

        self._monkeypatch.setattr(disposal, "_wait_and_exit", wait)

    def go(self) -> None:
        os.close(self._gate)
        self._gate = -1

    def close(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
        os.close(self._waits)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    made = Forks(monkeypatch)
    yield made
    made.close()


def until_reaped(subject: ForkDisposal, pids: list[int]) -> None:
    """Reap until none of these children is left, as the monitor does at each SIGCHLD."""
    end = time.monotonic() + SECONDS
    while any(map(is_child, pids)):
        assert time.monotonic() < end, "a child has not ended, or was not reaped"
        subject.reap()
        time.sleep(0.01)


def is_child(pid: int) -> bool:
    """Is there such a child that nobody has waited for?"""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_released_by_a_child(hold: Hold, forks: Forks) -> None:
    """Closed here, and released there; nothing of it is left open, and the child is reaped."""
    before = open_files()
    subject = ForkDisposal()
    held = [hold() for _ in range(3)]
    subject.dispose(each.sock for each in held)
    assert [each.sock.fileno() for each in held] == [-1] * 3
    assert all(each.released(SECONDS) for each in held)
    assert open_files() == before + 3  # the writing ends of what was passed
    assert len(forks.pids) == 1
    until_reaped(subject, forks.pids)


def test_this_process_is_never_the_last(hold: Hold, forks: Forks) -> None:
    """However late it is scheduled again once the child is there: its own copy goes first, always."""
    released_here: list[bool] = []

    class Late(socket.socket):
        def close(self) -> None:
            if self.fileno() >= 0:
                held.released(0.5)  # the time that the child gets; it is open here, and so is open anyway
                super().close()
                released_here.append(held.released())

    subject = ForkDisposal()
    held = hold(lambda sock: Late(fileno=sock.detach()))
    subject.dispose([held.sock])
    assert released_here == [False]
    assert held.released(SECONDS)
    until_reaped(subject, forks.pids)


def test_few_children_live_at_a_time(hold: Hold, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """While some do not end, no more are forked than that: the socket stays open. As soon as they have ended, the next
    ones are closed again.
    """
    monkeypatch.setattr(disposal, "MAX_CHILDREN", 2)
    forks.block()
    subject = ForkDisposal()
    held = [hold() for _ in range(4)]
    for each in held:
        subject.dispose([each.sock])
    assert len(forks.pids) == 2
    assert [each.sock.fileno() >= 0 for each in held] == [False, False, True, True]
    assert not any(each.released() for each in held)
    forks.go()
    until_reaped(subject, forks.pids)
    assert [each.released() for each in held] == [True, True, False, False]
    more = hold()
    subject.dispose([more.sock])
    assert more.sock.fileno() == -1
    assert more.released(SECONDS)
    until_reaped(subject, forks.pids)
    assert len(forks.pids) == 3


def test_ended_children_do_not_count(hold: Hold, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever disposes of something reaps first: no signal need have come."""
    monkeypatch.setattr(disposal, "MAX_CHILDREN", 1)
    subject = ForkDisposal()
    for _ in range(5):
        held = hold()
        subject.dispose([held.sock])
        assert held.sock.fileno() == -1
        assert held.released(SECONDS)
        os.waitid(os.P_PID, forks.pids[-1], os.WEXITED | os.WNOWAIT)
    assert [is_child(pid) for pid in forks.pids] == [False] * 4 + [True]
    subject.reap()
    assert not is_child(forks.pids[-1])


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_no_process_to_be_had(hold: Hold, forks: Forks, number: int) -> None:
    """It stays open, and nothing besides; the next one is tried again."""
    subject = ForkDisposal()
    held = hold()
    before = open_files()
    forks.fails = number
    subject.dispose([held.sock])
    assert held.sock.fileno() >= 0
    assert not held.released()
    assert open_files() == before
    forks.fails = 0
    more = hold()
    subject.dispose([more.sock])
    assert more.sock.fileno() == -1
    assert more.released(SECONDS)
    until_reaped(subject, forks.pids)


def test_no_descriptor_to_be_had(hold: Hold, forks: Forks) -> None:
    """The monitor goes on; what cannot be handed over stays open."""
    subject = ForkDisposal()
    held = hold()
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        subject.dispose([held.sock])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert held.sock.fileno() >= 0
    assert forks.pids == []


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), KeyboardInterrupt()])
def test_a_child_in_which_something_fails(
    hold: Hold, forks: Forks, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It ends as well: nothing of the monitor, and of its capabilities, goes on in it."""

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(disposal, "_wait_and_exit", fail)
    here = os.getpid()
    try:
        ForkDisposal().dispose([hold().sock])
    finally:
        if os.getpid() != here:
            os._exit(99)
    (pid,) = forks.pids
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 99


def test_nothing_to_reap() -> None:
    """Most signals that a child has ended are about others."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    ForkDisposal().reap()
    assert os.waitpid(pid, 0) == (pid, 0)  # not taken away from whom it concerns
