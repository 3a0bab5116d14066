"""A connection of a protocol that is read: what drives an inspector (protocols/base.py). Knows no protocol itself.

Each side is read a chunk at a time and shown to the inspector (inspected_side.py); what the inspector sends goes out at
once, or waits (outbox.py), bounded: a side is not read while what comes from it could not be taken.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Final

from sockguard.protocols.base import (
    BACKEND,
    CLIENT,
    Inspector,
    Kind,
    RequestRules,
    RequestVerdict,
    Source,
    Start,
)
from sockguard.protocols.registry import inspector_of
from sockguard.relay.faults import place_of
from sockguard.relay.inspected_side import InspectedSide
from sockguard.relay.options import TICK_SECONDS, Options
from sockguard.relay.outbox import Data

if TYPE_CHECKING:
    from sockguard.relay.loop import Loop

FDS_SECONDS: Final = 150.0
"""For the rest of a message whose fds are there; dbus-daemon's pending_fd_timeout. One of them may be the client's own
end of this connection (CVE-2014-3637), which then stays open though the client has ended."""

LINGER_SECONDS: Final = 5.0
"""For what was sent before the end to be taken, unless it is a plain one: what a peer sent before it went waits for
its reader for as long as that is there, as it would in the kernel."""

_PLAIN_ENDS: Final = frozenset({"closed", "client_reset", "backend_reset"})


class InspectedLink:
    """One connection, and the Effects of its inspector. ``number`` is control's name for it."""

    __slots__ = (
        "_awaited",
        "_deadline",
        "_linger_until",
        "_moved",
        "_outcome",
        "_start",
        "_why",
        "backend",
        "client",
        "ending",
        "inspector",
        "loop",
        "number",
        "options",
        "seen",
        "sides",
        "user",
    )

    inspector: Inspector

    def __init__(
        self,
        loop: Loop,
        number: int,
        client: socket.socket,
        backend: socket.socket,
        options: Options,
        uid: int,
        user: int,
        rules: RequestRules,
        shared: dict[str, object],
    ) -> None:
        self.loop = loop
        self.number = number
        self.user = user
        self.options = options
        self.seen = loop.tick
        self.ending = False
        self._deadline = self._linger_until = self._moved = 0
        self._awaited: InspectedSide | None = None
        self._outcome = self._why = ""
        self.client = InspectedSide(self, client, CLIENT, uid if options.same_user else -1)
        self.backend = InspectedSide(self, backend, BACKEND, -1)
        self.client.other, self.backend.other = self.backend, self.client
        self.sides = (self.client, self.backend)  # by CLIENT and BACKEND
        self._start = Start(
            uid=uid,
            backend_uid=uid if options.backend_uid is None else options.backend_uid,
            rules=rules,
            enforce=options.enforce,
            tell_allowed=loop.tell_allowed,
            forward_fds=not options.refuse_fds,
            options=options.options,
            shared=shared,
            effects=self,
        )

    def start(self) -> None:
        """Both sides are in the loop."""
        self.guarded(self._begin)

    def _begin(self) -> None:
        self.inspector = inspector_of(self.options.protocol)(self._start)
        self.client.inspect = self.backend.inspect = self.inspector.received
        self.inspector.start()

    def renew(self, rules: RequestRules) -> None:
        """Go by these rules, and by the options as they are now."""
        if not self.ending:
            enforce, tell_allowed = self.options.enforce, self.loop.tell_allowed
            self.guarded(lambda: self.inspector.new_rules(rules, enforce=enforce, tell_allowed=tell_allowed))

    # ── what the inspector asks for (protocols.base.Effects) ──

    def send(self, to: Source, data: Data, fds: int = 0) -> None:
        side = self.sides[to]
        if fds or not side.other.clear:
            self._send_with_care(side, data, fds)
            return
        try:  # as side.write, and saves its call
            put = side.put  # what a slot holds is called faster by a local name
            sent = put(data)
        except OSError as error:
            side.not_written(data, error)
        else:
            if sent < len(data):
                side.written_in_part(data, sent)

    def _send_with_care(self, side: InspectedSide, data: Data, fds: int) -> None:
        source = side.other
        if self.ending:
            return
        if source.passing > 0:  # a passthrough that is not FOREVER
            side.hold(data, source.use_fds(fds))
        elif fds:
            side.write_fds(data, source.use_fds(fds))
        else:
            side.write(data)

    def passthrough(self, source: Source, count: int) -> None:
        side = self.sides[source]
        side.passing = count
        side.clear = False
        if side.rest:  # that comes first, though the inspector did not use it
            side.stuck = False
            self.loop.again(side)

    def half_close(self, to: Source) -> None:
        if not self.ending:
            self.sides[to].shut_down()

    def drop_fds(self, source: Source, count: int) -> None:
        side = self.sides[source]
        if fds := side.use_fds(count):
            side.other.drop_in_turn(fds)

    def pause(self, source: Source) -> None:
        side = self.sides[source]
        side.paused, side.clear = True, False

    def resume(self, source: Source) -> None:
        side = self.sides[source]
        side.stuck = side.paused = False
        self.loop.again(side)

    def audit(self, kind: Kind, request: str, verdict: RequestVerdict) -> None:
        if self.ending:
            return
        if kind != "denied":
            self.client.clear = self.backend.clear = False  # it is told before it is passed on: see Outbox.write
        if not self.loop.tell_request(self, kind, verdict.rule or "", verdict.reason, request):
            self.end("limit", "more requests than can be told of", clean=False)

    def timer(self, seconds: float, of: Source | None = None) -> None:
        self._awaited = None if of is None else self.sides[of]
        self._deadline = self.loop.tick + ceil(seconds / TICK_SECONDS) + 1 if seconds else 0
        if seconds and not self.ending:
            self.loop.time(self)

    def ask(self, question: Sequence[int | str]) -> None:
        raise NotImplementedError(f"nobody to ask for {question[0]!r}")

    def end(self, outcome: str, why: str = "", *, clean: bool = True) -> None:
        """End once what was sent is out, or LINGER_SECONDS have passed; at once when not ``clean``."""
        if self.client.closed:
            return
        if not self.ending:
            self.ending = True
            self.client.clear = self.backend.clear = False
            broken = next((side for side in self.sides if side.broken), None)
            self._outcome = broken.reset_outcome if broken and outcome == "closed" else outcome
            self._why = why
        if not clean or not self._owes():
            self._close()
        elif outcome not in _PLAIN_ENDS and not self._linger_until:
            self._linger_until = self.loop.tick + ceil(LINGER_SECONDS / TICK_SECONDS) + 1
            self.loop.time(self)

    def _owes(self) -> bool:
        """Does something wait to be taken? What waits behind bytes that pass to there does not: nobody reads them."""
        return any(side.out for side in self.sides)

    # ── what the loop asks for ──

    def on_time(self) -> bool:
        """A tick of the loop's clock. False when this link waits for no time any more."""
        self.guarded(self._on_tick)
        waits = self._linger_until or self._deadline or self.options.idle_ticks or any(side.fds for side in self.sides)
        return bool(waits) and not self.client.closed

    def _on_tick(self) -> None:
        tick, idle_ticks = self.loop.tick, self.options.idle_ticks
        moved = self.client.received + self.backend.received
        if moved != self._moved:
            self._moved, self.seen = moved, tick - 1
        awaited = self._awaited
        if self._deadline and awaited is not None:
            if awaited.other.out and not awaited.queued:
                self._deadline += 1  # its answer is behind what the other does not read
            elif awaited.rest and not awaited.stuck:
                self._deadline += 1  # its answer may have come, and waits for its turn to be shown
        if self._linger_until:
            if tick >= self._linger_until:
                self._close()
        elif self._deadline and tick >= self._deadline and not self.ending:
            self._deadline = 0
            self.inspector.timed_out()
        elif idle_ticks and tick - self.seen > idle_ticks and (self.ending or not self.inspector.busy):
            self.end("idle_timeout")
        elif any(side.fds and tick - side.fds_since > FDS_SECONDS / TICK_SECONDS for side in self.sides):
            self.end("limit", f"descriptors waited {FDS_SECONDS:g} s for the rest of their message", clean=False)

    def fail(self, error: Exception) -> None:
        """The kernel, or the inspector, did what it must not: that ends this connection, and no other."""
        self.end("failed", place_of(error), clean=False)

    def flushed(self) -> None:
        """Something was written: is this what the end waits for?"""
        if self.ending and not self._owes():
            self._close()

    def guarded(self, call: Callable[[], None]) -> None:
        """Call into the inspector; what the loop calls on a side is guarded there."""
        try:
            call()
        except Exception as error:
            self.fail(error)

    def _close(self) -> None:
        if self.client.closed:
            return
        for side in self.sides:
            self.loop.forget(side.fd)
            side.close()
        self.loop.link_ended(self.number, self.client.received, self.backend.received, self._outcome, self._why)
