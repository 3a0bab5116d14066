"""Acts on the ends of rules: when a rule's ``until`` passes, live connections of its proxy are judged again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from sockguard.policy.decide import next_expiry
from sockguard.server.admission import Admission
from sockguard.server.guards import Guards

CLOCK_STEP_SECONDS: Final = 30.0
"""A wall clock can be set: no sleep towards a rule's end is longer, and no look reaches less far back."""


class Untils:
    """Looks at the clock when the next rule ends. ``judge_again`` is given which admissions are concerned."""

    def __init__(self, guards: Guards, judge_again: Callable[[Callable[[Admission], bool]], object]) -> None:
        self._guards = guards
        self._judge_again = judge_again
        self._renewed = trio.Event()

    def renewed(self) -> None:
        """Other rules are in force: they may end sooner."""
        self._renewed.set()
        self._renewed = trio.Event()

    async def watch(self, since: datetime) -> None:
        """For ever. since: what ended until then is dealt with. What came and ended between two looks is found, too."""
        while True:
            renewed = self._renewed
            ends = [at for at in self._ends(since).values() if at is not None]
            seconds = max((min(ends) - _now()).total_seconds(), 0) if ends else CLOCK_STEP_SECONDS
            with trio.move_on_after(min(seconds, CLOCK_STEP_SECONDS)):
                await renewed.wait()
            moment = _now()
            if passed := self._passed(since, moment):
                self._judge_again(passed.__contains__)
            since = moment

    def _passed(self, since: datetime, moment: datetime) -> set[Admission]:
        """Those of which a rule has ended since the last look; all, where the clock was set back behind it.

        A clock set back by less than it has gone on since then is not seen, but the rules that this has brought back
        ended no longer ago than a sleep takes, and have ended anew by now.
        """
        ends = self._ends(since - timedelta(seconds=CLOCK_STEP_SECONDS))
        return {one for one, at in ends.items() if moment < since or (at is not None and at <= moment)}

    def _ends(self, since: datetime) -> dict[Admission, datetime | None]:
        return {guard.admission: next_expiry(guard.admission.proxy.rules, since) for guard in self._guards}


def _now() -> datetime:
    return datetime.now(UTC)
