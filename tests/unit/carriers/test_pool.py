"""Which carrier works for whom: one that waits in a close costs its user alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from sockguard.carriers import pool
from sockguard.carriers.jobs import Job, Op, Problem
from sockguard.privsep.channel import close_all
from tests.unit.carriers.conftest import Lingering, Loop, Pair

WHO, OTHER = (1000, 0), (1001, 0)
CARRY = Job(Op.CARRY, 0, 65536)
MakePair = Callable[..., Pair]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A carrier is written off soon; a healthy one answers within microseconds, a loaded machine takes longer."""
    monkeypatch.setattr(pool, "STUCK_SECONDS", 1.0)


def passes(loop: Loop, make_pair: MakePair, account: tuple[int, int]) -> bool:
    """Does a message with a descriptor go on, for that account?"""
    source, target = make_pair(), make_pair()
    socket.send_fds(source.peer, [b"message"], [0])
    report = loop.done(loop.carry(account, CARRY, source.ours, target.ours))
    if report.problem is not Problem.NONE:
        assert report.problem is Problem.STUCK
        return False
    close_all(socket.recv_fds(target.peer, 100, 10)[1])
    return True


def have_one_stuck(loop: Loop, make_pair: MakePair, bomb: Lingering) -> None:
    """A descriptor is kept, and dropped: the carrier's close is the last, and waits."""
    source = make_pair()
    bomb.give(source.peer)
    before = loop.carriers.written_off
    loop.done(loop.take(WHO, Job(Op.TAKE, 7, 1), source.ours))
    loop.carriers.drop(WHO, 7, 1)
    loop.until(lambda: loop.carriers.written_off > before)


def test_a_stuck_carrier_costs_its_user_alone(
    loop: Loop, make_pair: MakePair, lingering: Callable[[], Lingering]
) -> None:
    """The first is replaced; when there are MAX_STUCK its user gets none, and others do, until one comes back."""
    bombs = [lingering() for _ in range(pool.MAX_STUCK)]
    for bomb in bombs:
        assert passes(loop, make_pair, WHO)
        have_one_stuck(loop, make_pair, bomb)
        assert passes(loop, make_pair, OTHER)
    assert not passes(loop, make_pair, WHO)
    assert passes(loop, make_pair, OTHER)
    bombs[0].release()
    loop.until(lambda: loop.carriers.written_off < pool.MAX_STUCK)
    assert passes(loop, make_pair, WHO)


def test_what_a_stuck_carrier_kept_is_lost(loop: Loop, make_pair: MakePair, lingering: Callable[[], Lingering]) -> None:
    """Whoever it kept descriptors for is told, once, and nothing of it goes anywhere."""
    source, lost = make_pair(), [0]
    socket.send_fds(source.peer, [b"x"], [0])

    def tell() -> None:
        lost[0] += 1

    loop.done(loop.take(WHO, Job(Op.TAKE, 8, 1), source.ours, tell))
    have_one_stuck(loop, make_pair, lingering())
    assert lost == [1]
    assert passes(loop, make_pair, WHO)


def test_a_carrier_that_dies(loop: Loop, make_pair: MakePair) -> None:
    """What it kept is lost, and another one takes its place."""
    source, lost = make_pair(), [0]
    socket.send_fds(source.peer, [b"x"], [0])

    def tell() -> None:
        lost[0] += 1

    loop.done(loop.take(WHO, Job(Op.TAKE, 8, 1), source.ours, tell))
    (carrier,) = loop.readers
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    loop.until(lambda: lost == [1])
    assert carrier.ended
    assert (
        carrier.sock.recv(1) == b""
    )  # open still: no other file gets its number, to which a relay may pass descriptors


def children() -> list[int]:
    """Of the processes that the master has forked: its carriers."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    command, _, rest = file.read().partition("(")[2].rpartition(")")
            except OSError:
                continue
            parent = int(rest.split()[1])
            if command == "sockguard-fds" and parent != os.getpid() and grandparent(parent) == os.getpid():
                found.append(int(name))
    return found


def grandparent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_more_users_than_carriers(loop: Loop, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps descriptors has a carrier to itself; the next waits for one, and is told when that takes too long."""
    sources = [make_pair() for _ in range(pool.SLOTS)]
    for user, source in enumerate(sources):
        socket.send_fds(source.peer, [b"x"], [0])
        assert loop.done(loop.take((user, 0), Job(Op.TAKE, user, 1), source.ours)).fds == 1
    monkeypatch.setattr(pool, "WAIT_SECONDS", 0.5)
    assert not passes(loop, make_pair, (9999, 0))
    monkeypatch.undo()
    loop.carriers.drop((0, 0), 0, 1)
    assert passes(loop, make_pair, (9999, 0))


def test_cancelled(loop: Loop, make_pair: MakePair, lingering: Callable[[], Lingering]) -> None:
    """Nobody hears of a job that waits for a socket that is closed: its number may be another one's by then."""
    source, waiting, target = make_pair(), make_pair(), make_pair()
    bomb = lingering()
    bomb.give(source.peer)
    loop.done(loop.take(WHO, Job(Op.TAKE, 7, 1), source.ours))
    loop.carriers.drop(WHO, 7, 1)  # the carrier waits in this
    socket.send_fds(waiting.peer, [b"message"], [0])
    reports = loop.carry(WHO, CARRY, waiting.ours, target.ours)
    loop.carriers.cancel(waiting.ours)
    bomb.release()
    assert passes(loop, make_pair, WHO)
    assert not reports
