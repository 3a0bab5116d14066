"""The service manager's watchdog is fed while control answers, and not otherwise: then control's event loop goes round,
and the monitor does, which asks. A control that hangs is ended, and the service started again (WatchdogSec=).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

QUESTIONS: Final = 3
"""How often control is asked in the time that the service manager waits."""


class Watchdog:
    """seconds: how long the service manager waits; None: it does not.

    ask   sends control a question of that number
    feed  says that the service is alive
    """

    def __init__(
        self,
        seconds: float | None,
        ask: Callable[[int], None],
        feed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause = None if seconds is None else seconds / QUESTIONS
        self._ask = ask
        self._feed = feed
        self._clock = clock
        self._number = 0
        self._answered = True
        self._due = clock()

    def seconds_left(self) -> float | None:
        """Until ``turn`` has something to do; None: only an answer changes anything."""
        if self._pause is None or not self._answered:
            return None
        return max(0.0, self._due - self._clock())

    def turn(self) -> None:
        """Ask, if it is time. While a question is open no other one is asked."""
        if self._pause is not None and self.seconds_left() == 0:
            self._due = self._clock() + self._pause
            self._number += 1
            self._answered = False
            self._ask(self._number)

    def answered(self, number: int) -> None:
        """Control has answered. Only the question that is open counts."""
        if number == self._number and not self._answered:
            self._answered = True
            self._feed()
