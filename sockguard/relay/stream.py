"""A connection of a `stream` proxy: bytes, half-closes and passed fds, both ways, unread by anyone.

What was passed on is taken from the kernel's queue at once: a byte that stays there would keep its sender from writing
(unix_writable of net/unix/af_unix.c). So a reset cannot be shown to the other side, which sees a clean end, unless
something of its own is unread when its socket is closed; the event tells of the reset.

All descriptors are edge-triggered: a side is read until it is dry or its other side is full.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sockguard.privsep import foreign
from sockguard.privsep.foreign import unread
from sockguard.relay.faults import place_of
from sockguard.relay.peeking import PeekingSide
from sockguard.relay.side import Side
from sockguard.relay.taking import TakingSide

if TYPE_CHECKING:
    from sockguard.relay.loop import Loop
    from sockguard.relay.options import Options


class Link:
    """One connection.

    number  control's name for it
    user    whom it counts for: the client, or the owner of its sub-uid
    finishing  it ends as soon as no carrier works for it any more
    """

    __slots__ = (
        "_moved",
        "backend",
        "client",
        "cut",
        "finishing",
        "loop",
        "number",
        "options",
        "outcome",
        "seen",
        "user",
    )

    def __init__(
        self,
        loop: Loop,
        number: int,
        client: socket.socket,
        backend: socket.socket,
        options: Options,
        uid: int,
        user: int,
    ) -> None:
        self.loop = loop
        self.number = number
        self.options = options
        self.user = user
        self.seen = loop.tick
        self._moved = 0
        self.outcome = self.cut = ""
        self.finishing = False
        self.client = self.side(client, 0, uid if options.same_user else -1)
        self.backend = self.side(backend, 1, -1)
        self.client.face(self.backend)
        self.backend.face(self.client)

    def start(self) -> None:
        """Both sides are in the loop, which tells of what comes."""

    def on_time(self) -> bool:
        """A tick of the loop's clock. False when this link waits for no time any more."""
        tick, moved = self.loop.tick, self.client.passed + self.backend.passed
        if moved != self._moved:
            self._moved, self.seen = moved, tick - 1
        if self.options.idle_ticks and tick - self.seen > self.options.idle_ticks:
            self.end("idle_timeout")
            return False
        return self.options.idle_ticks > 0

    def side(self, sock: socket.socket, index: int, sender: int) -> Side:
        """What reads one of the two sockets."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # else a read at an urgent byte drops it in silence
        if sender < 0 and foreign.takes_none(sock):
            return TakingSide(self, sock, index, sender)
        return PeekingSide(self, sock, index, sender)

    def finish(self, cut: str = "") -> None:
        """Both directions have ended by themselves. cut: by a reset, of which this is the outcome.

        What a carrier is just passing on counts: it is waited for.
        """
        self.cut = cut or self.cut
        self.finishing = self.client.busy or self.backend.busy
        if self.finishing:
            return
        if self.cut:
            self.end(self.cut)
            return
        for side in (self.client, self.backend):
            if side.reset():  # the kernel shows the end a moment before it shows the reset (unix_release_sock)
                self.end(side.reset_outcome)
                return
        outcome = self.outcome or "closed"
        for side in (self.client, self.backend):
            if not side.drained and unread(side.fd):  # its peer wrote on to a side that had gone
                outcome = side.other.reset_outcome
        self.end(outcome)

    def fail(self, error: Exception) -> None:
        """That was raised while it was served, which nobody expects: it ends this connection, and no other."""
        if not self.client.closed:
            self.end("failed", place_of(error))

    def end(self, outcome: str, why: str = "", *, clean: bool = False) -> None:
        """Close both sockets and tell. clean: without meaning here, where nothing waits to be sent first."""
        if self.client.closed:
            return
        for side in (self.client, self.backend):
            self.loop.forget(side.fd)
            side.close()
        self.loop.link_ended(self.number, self.client.passed, self.backend.passed, outcome, why)
