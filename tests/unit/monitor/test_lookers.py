"""The processes that look at programs' files: as many as are needed up to a bound, each for one file at a time."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockguard.identity.process import Program
from sockguard.monitor import lookers
from sockguard.monitor.lookers import Lookers
from sockguard.privsep.messages import Looked
from tests.support.identities import wait_until

PATH = os.path.realpath("/proc/self/exe")


class Case:
    """Lookers, and this process as the one whose program they look at."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.lookers = Lookers(self.poll)
        self.pidfd = os.pidfd_open(os.getpid())

    def look(self, number: int, path: str = PATH) -> bool:
        return self.lookers.look(number, Program(self.pidfd, os.getpid(), path))

    def heard(self) -> Looked | None:
        """What the next one says."""
        ((fd, _), *_) = self.poll.poll(20_000)
        assert fd in self.lookers
        return self.lookers.heard(fd)

    def pids(self) -> list[int]:
        return [looker.pid for looker in self.lookers._lookers.values()]


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    pids = made.pids()
    yield made
    pids = made.pids()
    made.lookers.end()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(made.pidfd)


def test_one_file_after_another(case: Case, folder: Path) -> None:
    """One process does; what it says is about the number that it was asked for."""
    assert case.look(7)
    assert case.heard() == Looked(7, PATH, "")
    assert case.look(8, str(folder / "none"))
    answer = case.heard()
    assert answer is not None
    assert (answer.number, answer.executable) == (8, "")
    assert "cannot be found at that path: No such file or directory" in answer.unknown
    assert len(case.pids()) == 1


def test_it_has_nothing_but_its_channel(case: Case) -> None:
    """No descriptor of the monitor's: a listening socket would outlive it, or a client's connection."""
    assert case.look(1)
    case.heard()
    (pid,) = case.pids()
    assert len(os.listdir(f"/proc/{pid}/fd")) == 1
    assert Path(f"/proc/{pid}/comm").read_text() == "sockguard-look\n"


def test_no_more_than_a_bound(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all are at work nobody else looks; who has answered serves again."""
    monkeypatch.setattr(lookers, "MAX_LOOKERS", 2)
    assert [case.look(number) for number in (1, 2, 3)] == [True, True, False]
    assert len(case.pids()) == 2
    first = case.heard()
    assert first is not None
    assert case.look(4)
    found = {first.number}
    for _ in range(2):
        answer = case.heard()
        assert answer is not None
        found.add(answer.number)
    assert found == {1, 2, 4}


@pytest.mark.parametrize("busy", [True, False])
def test_one_that_is_killed(case: Case, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """What it looked at is unknown; the next look has another one do it."""

    def hang(*_: object) -> None:
        signal.pause()

    with monkeypatch.context() as patch:
        if busy:
            patch.setattr(lookers, "compare", hang)
        assert case.look(1)
        (pid,) = case.pids()
        if not busy:
            assert case.heard() == Looked(1, PATH, "")
    os.kill(pid, signal.SIGKILL)
    answer = case.heard()
    assert (answer is not None) is busy
    if answer is not None:
        assert answer == Looked(1, "", "the process that looked at its program has ended")

    def reaped() -> bool:
        case.lookers.reap()
        return not case.lookers._ended

    wait_until(reaped, "it is reaped")
    assert case.look(2)
    assert case.heard() == Looked(2, PATH, "")


def test_they_end_with_the_monitor(case: Case) -> None:
    """Once nobody has the other end of their channel."""
    assert case.look(1)
    case.heard()
    (pid,) = case.pids()
    case.lookers.end()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
