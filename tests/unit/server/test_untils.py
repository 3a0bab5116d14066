"""Rules that end while connections live are acted on, whatever becomes of the clock meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from sockguard.server import untils
from sockguard.server.admission import Admission
from sockguard.server.guards import Guards
from sockguard.server.untils import CLOCK_STEP_SECONDS, Untils
from tests.unit.server.conftest import Control, allow, config, proxy

END = datetime(2027, 1, 1, tzinfo=UTC)


class Subject:
    """Two proxies, one with a rule that ends, watched by a wall clock that can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_left: float) -> None:
        made = Control(config(proxy("brief", allow("a", 1, until=END)), proxy("lasting", allow("a", 1))))
        doors = [SimpleNamespace(admission=admission) for admission in made.admissions.values()]
        self.offset = END - timedelta(seconds=seconds_left + trio.current_time())
        self.judged: list[set[str]] = []
        monkeypatch.setattr(untils, "_now", self.now)

        def judge_again(concerned: Callable[[Admission], bool]) -> None:
            self.judged.append({name for name, one in made.admissions.items() if concerned(one)})

        self.untils = Untils(cast(Guards, doors), judge_again)

    def now(self) -> datetime:
        return self.offset + timedelta(seconds=trio.current_time())


async def test_a_rule_that_ends(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    """Its proxy's connections are judged again once it has ended, not before; no other proxy's are."""
    subject = Subject(monkeypatch, 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.untils.watch, subject.now())
        await trio.sleep(99)
        assert subject.judged == []
        await trio.sleep(2)
        assert subject.judged == [{"brief"}]
        nursery.cancel_scope.cancel()


async def test_a_clock_set_back_a_little(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Set back just behind the end of a rule: the rule admits again, and those people are judged when it ends anew."""
    subject = Subject(monkeypatch, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.untils.watch, subject.now())
        await trio.sleep(2)
        assert subject.judged == [{"brief"}]
        subject.offset -= timedelta(seconds=5)
        await trio.sleep(2 * CLOCK_STEP_SECONDS)
        assert subject.judged[1:]
        assert subject.judged[1] == {"brief"}
        nursery.cancel_scope.cancel()


async def test_a_clock_set_back_far(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    """All are judged, since denies that had ended are in force again; and the rule is acted on when it ends anew."""
    subject = Subject(monkeypatch, -1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.untils.watch, subject.now())
        await trio.sleep(1)
        subject.offset -= timedelta(seconds=1000)
        await trio.sleep(2 * CLOCK_STEP_SECONDS)
        assert subject.judged == [{"brief", "lasting"}]
        await trio.sleep(1000)
        assert subject.judged[1] == {"brief"}
        nursery.cancel_scope.cancel()
