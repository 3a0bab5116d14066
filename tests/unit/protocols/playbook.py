"""Plays an inspector: bytes of both sides in, what becomes of them out. For any protocol.

The fake here stands for relay/inspected.py, so that an inspector is seen alone and every byte may come by itself. It
is stricter than the relay: a view that is kept beyond ``received`` is overwritten or makes the buffer's resizing
fail, more than ``max_buffer`` is not shown to one that waits, and no effect may follow ``end``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sockguard.protocols.base import (
    BACKEND,
    CLIENT,
    FOREVER,
    Effects,
    Inspector,
    Json,
    Kind,
    RequestRules,
    RequestVerdict,
    Source,
    Start,
)


class Audit(NamedTuple):
    """One ``audit``."""

    kind: Kind
    request: str
    rule: str | None


class _Side:
    def __init__(self) -> None:
        self.coming = bytearray()  # not shown yet
        self.rest = bytearray()  # shown and not used
        self.passing = 0
        self.fds: list[str] = []  # that came and were neither sent on nor dropped
        self.passed: list[str] = []  # that were sent to this side
        self.paused = False
        self.ended = self.told = self.stuck = False
        self.out = bytearray()  # what went to this side
        self.held: list[tuple[bytes, list[str]]] = []
        self.shut = False


class Play(Effects):
    """One connection. ``piece``: so many bytes are shown at a time; 0: all.

    to_client, to_backend  the bytes that have gone there
    audits, end_of_it      what was told; the outcome and its reason, once it has ended
    questions              what was asked
    clock, awaited         the seconds of the timer that runs, 0 for none; the side whose time it is
    dropped                fds that were closed; each is a name of the test's own
    """

    def __init__(
        self,
        make: Callable[[Start], Inspector],
        rules: RequestRules,
        *,
        piece: int = 0,
        enforce: bool = True,
        tell_allowed: bool = False,
        options: Mapping[str, Json] | None = None,
        forward_fds: bool = False,
        backend_uid: int = 1000,
        shared: dict[str, object] | None = None,
    ) -> None:
        self.piece = piece
        self.audits: list[Audit] = []
        self.end_of_it: tuple[str, str] | None = None
        self.questions: list[Sequence[int | str]] = []
        self.clock = 0.0
        self.awaited: Source | None = None
        self.dropped: list[str] = []
        self._sides = (_Side(), _Side())
        self._again: list[Source] = []
        self.inspector = make(
            Start(
                uid=1000,
                backend_uid=backend_uid,
                rules=rules,
                enforce=enforce,
                tell_allowed=tell_allowed,
                forward_fds=forward_fds,
                options=options or {},
                shared={} if shared is None else shared,
                effects=self,
            )
        )
        self.inspector.start()

    # What happens to it

    def client(self, data: bytes, fds: Sequence[str] = ()) -> None:
        """fds: come with the first byte."""
        self._come(CLIENT, data, fds)

    def backend(self, data: bytes, fds: Sequence[str] = ()) -> None:
        self._come(BACKEND, data, fds)

    def client_ends(self) -> None:
        self._end_of(CLIENT)

    def backend_ends(self) -> None:
        self._end_of(BACKEND)

    def time_passes(self) -> None:
        """The timer's time is over."""
        assert self.clock, "no timer runs"
        self.clock = 0.0
        self.inspector.timed_out()
        self._settle()

    # What came of it

    @property
    def to_client(self) -> bytes:
        return bytes(self._sides[CLIENT].out)

    @property
    def to_backend(self) -> bytes:
        return bytes(self._sides[BACKEND].out)

    @property
    def fds_to_client(self) -> list[str]:
        return list(self._sides[CLIENT].passed)

    @property
    def fds_to_backend(self) -> list[str]:
        return list(self._sides[BACKEND].passed)

    @property
    def outcome(self) -> str | None:
        return self.end_of_it[0] if self.end_of_it else None

    def half_closed(self, side: Source) -> bool:
        return self._sides[side].shut

    def tunnel(self, source: Source) -> bool:
        return self._sides[source].passing == FOREVER

    def unread(self, source: Source) -> int:
        """Bytes that came and are not used."""
        return len(self._sides[source].rest) + len(self._sides[source].coming)

    # Effects

    def send(self, to: Source, data: bytes | bytearray | memoryview, fds: int = 0) -> None:
        self._not_over()
        side = self._sides[to]
        assert not side.shut, "sent behind a half-close"
        source = self._sides[1 - to]
        passing = source.passing
        assert passing != FOREVER, "sent into a tunnel"
        given = self._take_fds(source, fds)
        if passing:
            side.held.append((bytes(data), given))
        else:
            side.out += data
            side.passed += given

    def passthrough(self, source: Source, count: int) -> None:
        self._not_over()
        assert not self._sides[source].passing, "a passthrough amid another"
        assert count == FOREVER or count > 0
        self._sides[source].passing = count

    def half_close(self, to: Source) -> None:
        self._not_over()
        self._sides[to].shut = True

    def drop_fds(self, source: Source, count: int) -> None:
        self._not_over()
        self.dropped += self._take_fds(self._sides[source], count)

    def pause(self, source: Source) -> None:
        self._not_over()
        self._sides[source].paused = True

    def resume(self, source: Source) -> None:
        self._not_over()
        self._sides[source].paused = False
        self._again.append(source)

    def audit(self, kind: Kind, request: str, verdict: RequestVerdict) -> None:
        self._not_over()
        self.audits.append(Audit(kind, request, verdict.rule))

    def timer(self, seconds: float, of: Source | None = None) -> None:
        self._not_over()
        self.clock, self.awaited = seconds, of

    def ask(self, question: Sequence[int | str]) -> None:
        self._not_over()
        self.questions.append(question)

    def end(self, outcome: str, why: str = "") -> None:
        self._not_over()
        self.end_of_it = outcome, why

    # The loop

    def _not_over(self) -> None:
        assert self.end_of_it is None, f"an effect behind the end {self.end_of_it}"

    def _take_fds(self, side: _Side, count: int) -> list[str]:
        assert 0 <= count <= len(side.fds), "more fds than wait"
        taken, side.fds = side.fds[:count], side.fds[count:]
        return taken

    def _come(self, source: Source, data: bytes, fds: Sequence[str] = ()) -> None:
        side = self._sides[source]
        assert not side.ended
        side.fds += fds
        step = self.piece or max(len(data), 1)
        for at in range(0, len(data), step):
            side.coming += data[at : at + step]
            self._show(source)
            self._settle()

    def _end_of(self, source: Source) -> None:
        self._sides[source].ended = True
        self._settle()
        self._tell_end(source)
        self._settle()

    def _tell_end(self, source: Source) -> None:
        side = self._sides[source]
        if self.end_of_it or side.coming or side.told or not side.ended or side.paused:
            return
        side.told = True
        if side.passing == FOREVER:
            self._sides[1 - source].shut = True
        else:
            self.inspector.eof(source)

    def _settle(self) -> None:
        while self._again and not self.end_of_it:
            source = self._again.pop(0)
            self._sides[source].stuck = False
            self._show(source)
            self._tell_end(source)

    def _show(self, source: Source) -> None:
        side = self._sides[source]
        while not self.end_of_it:
            if side.passing:
                if side.fds and side.passing != FOREVER and (side.rest or side.coming):
                    self.end("malformed" if source == CLIENT else "backend_malformed", "descriptors amid a message")
                    return
                self._pass(side, self._sides[1 - source])
                if not (side.rest or side.coming):
                    return
                continue
            if side.paused:
                return
            room = self.inspector.max_buffer - len(side.rest)
            if side.coming and room > 0:
                side.rest += side.coming[:room]
                del side.coming[:room]
                side.stuck = False
            if side.stuck or not side.rest:
                return
            with memoryview(side.rest) as view:
                used = self.inspector.received(source, view, len(side.fds))
                assert 0 <= used <= len(view), "used more than was shown"
                view[:] = bytes(len(view)) if used == len(view) else bytes(used) + bytes(view[used:])
            del side.rest[:used]
            if not used and not side.passing:
                side.stuck = True

    def _pass(self, side: _Side, other: _Side) -> None:
        if side.passing == FOREVER:
            other.passed += side.fds
            side.fds = []
        for waiting in (side.rest, side.coming):
            count = len(waiting) if side.passing == FOREVER else min(side.passing, len(waiting))
            other.out += waiting[:count]
            del waiting[:count]
            if side.passing != FOREVER:
                side.passing -= count
                if not side.passing:
                    for held, fds in other.held:
                        other.out += held
                        other.passed += fds
                    other.held.clear()
                    return
