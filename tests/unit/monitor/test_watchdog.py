"""The watchdog is fed while control answers, one question after another, and not otherwise."""

from __future__ import annotations

import pytest

from sockguard.monitor.watchdog import QUESTIONS, Watchdog

SECONDS = 30.0


class Case:
    """A watchdog with a clock that the test sets."""

    def __init__(self, seconds: float | None = SECONDS) -> None:
        self.time = 1000.0
        self.asked: list[int] = []
        self.fed = 0
        self.watchdog = Watchdog(seconds, self.asked.append, self._feed, lambda: self.time)

    def _feed(self) -> None:
        self.fed += 1


def test_it_is_fed_in_time_while_control_answers() -> None:
    case = Case()
    for number in range(1, 10):
        assert case.watchdog.seconds_left() == 0
        case.watchdog.turn()
        assert case.asked[-1] == number
        case.watchdog.answered(number)
        assert case.fed == number
        left = case.watchdog.seconds_left() or 0.0
        assert left == pytest.approx(SECONDS / QUESTIONS)
        case.watchdog.turn()
        assert len(case.asked) == number
        case.time += left


def test_control_hangs() -> None:
    """It is asked once, and nothing is fed until it has answered that question."""
    case = Case()
    case.watchdog.turn()
    for number in (0, 2, -1):
        case.watchdog.answered(number)
    for _ in range(100):
        case.time += SECONDS
        assert case.watchdog.seconds_left() is None
        case.watchdog.turn()
    assert (case.asked, case.fed) == ([1], 0)
    case.watchdog.answered(1)
    case.watchdog.answered(1)
    assert case.fed == 1
    case.watchdog.turn()
    assert case.asked == [1, 2]


def test_control_speaks_unasked() -> None:
    """A process that was taken over cannot feed it in advance."""
    case = Case()
    for number in range(10):
        case.watchdog.answered(number)
    assert case.fed == 0


def test_nobody_waits() -> None:
    case = Case(None)
    case.watchdog.turn()
    case.watchdog.answered(0)
    case.watchdog.answered(1)
    assert (case.watchdog.seconds_left(), case.asked, case.fed) == (None, [], 0)
