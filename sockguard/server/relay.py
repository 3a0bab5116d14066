"""One relay process as control sees it: its end of the channel, what it holds, and what waits to be sent to it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from sockguard.errors import ChannelError
from sockguard.privsep import channel, foreign
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.messages import MAX_REASON, Message, Row, check_row
from sockguard.privsep.outcomes import OUTCOMES
from sockguard.privsep.pipe import Inlet
from sockguard.sandbox import PARTS
from sockguard.server.connections import Connection

_BYTES: Final = range(1 << 63)  # that one connection can have moved; metrics and JSON readers take no number you like


@dataclass(slots=True, eq=False)
class Pending:
    """A connection on its way to a relay: both of its sockets are control's to close until they are sent."""

    connection: Connection
    client: socket.socket
    backend: socket.socket

    def close(self, disposer: Disposer) -> None:
        foreign.end_all((self.client, self.backend), disposer)


_IN_A_ROW: Final = 8
"""Messages of one relay that are heard before others have their turn."""


class Outgoing(NamedTuple):
    """A message that waits to be sent: descriptors of our own making go with it, or connections."""

    message: Message
    fds: tuple[int, ...]
    socks: tuple[socket.socket, ...]


@dataclass(slots=True, eq=False)
class Relay:
    """One relay process. ``held``: the connections that it was handed and has not told the end of."""

    number: int
    channel: socket.socket  # to it, and nothing comes from there
    inlet: Inlet  # what it says
    disposer: Disposer
    protocols: frozenset[str] = frozenset()  # that it can read; it can learn no other
    retiring: bool = False  # it keeps the connections that it has, gets no more, and ends with the last
    capacity: int = 0
    cage: str = ""
    generation: int = 0
    batch: int = 0  # rows of the one hand-over that is not acknowledged
    held: dict[int, Connection] = field(default_factory=dict)
    queue: deque[Pending] = field(default_factory=deque)
    outbox: deque[Outgoing] = field(default_factory=deque)
    has_output: trio.Event = field(default_factory=trio.Event)
    told_sets: int = 0  # of the generation sent last; those after them it does not know yet
    rule_names: dict[int, Mapping[str, frozenset[str]]] = field(default_factory=dict)  # by generation, then by proxy
    credit: int = 0  # requests that it may tell of; below 0: by so many it has overdrawn
    fault: str = ""
    gone: bool = False  # nothing more is handed to it
    heard: int = 0  # messages
    answered: int = 0  # the last ping that it answered
    ready: Callable[[], None] = lambda: None  # called once, when it takes connections
    settled: trio.Event = field(default_factory=trio.Event)  # set when it takes a generation
    give_up: Callable[[], None] = lambda: None  # called when it is killed: it counts as gone, whatever it still does

    @property
    def cage_warning(self) -> str:
        """What of its cage does not hold, in words for the log; empty when all of it does."""
        held = {part.split()[0] for part in self.cage.split(",") if part}
        missing = [part for part in PARTS if part not in held]
        if not missing:
            return ""
        text = f"relays run without {', '.join(missing)}: not to be had here"
        return f"{text} (empty_root takes CAP_SYS_CHROOT)" if "empty_root" in missing else text

    @property
    def load(self) -> int:
        return len(self.held) + len(self.queue)

    def let_go(self, row: Row) -> tuple[Connection, str, int, int, str | None]:
        """Take a connection that has ended from it: how it ended, bytes from client and backend, what to add.

        Raises ChannelError, and takes nothing, for an end that cannot be.
        """
        number, from_client, from_backend, outcome, reason = check_row(row, int, int, int, str, str)
        connection = self.held.get(int(number))
        if connection is None:
            raise ChannelError("the end of a connection that it does not have")
        possible = outcome in OUTCOMES and from_client in _BYTES and from_backend in _BYTES
        if not possible or len(str(reason)) > MAX_REASON:
            raise ChannelError("an end of a connection that cannot be")
        del self.held[connection.number]
        return connection, str(outcome), int(from_client), int(from_backend), str(reason) or None

    def took(self, generation: int) -> None:
        """It goes by that generation now; what it judged by the one before can still be on its way."""
        self.rule_names = {number: names for number, names in self.rule_names.items() if number >= self.generation}
        self.generation = generation

    def knows_rule(self, proxy: str, rule: str) -> bool:
        """Can it have judged a request by that rule of that proxy? An empty name: by none."""
        known = [names[proxy] for names in self.rule_names.values() if proxy in names]
        return any(rule in names for names in known) if rule else bool(known)

    async def receive(self) -> Message | None:
        """What it says next, or None when it has gone. Raises ChannelError for what it must not say."""
        self.heard += 1
        if self.heard % _IN_A_ROW == 0:  # whoever else there is has a turn, however much this one says
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.inlet.receive()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.inlet.fd)

    def said_before(self) -> Iterator[Message]:
        """What it has said and nobody has heard yet, as far as that can be read. Never waits."""
        with contextlib.suppress(BlockingIOError, ChannelError, OSError):
            while (message := self.inlet.receive()) is not None:
                yield message

    def send(self, message: Message, fds: Sequence[int] = (), socks: Sequence[socket.socket] = ()) -> None:
        """Send now if nothing waits, else in turn; with descriptors of our own making, or with connections. They are
        closed once they are sent.
        """
        self.outbox.append(Outgoing(message, tuple(fds), tuple(socks)))
        if len(self.outbox) == 1:
            self._send_what_goes()
        if self.outbox:
            self.has_output.set()

    def _send_what_goes(self) -> None:
        try:
            while self.outbox:
                out = self.outbox[0]
                channel.send(self.channel, out.message, [*out.fds, *(sock.fileno() for sock in out.socks)])
                self.outbox.popleft()
                channel.close_all(out.fds)
                for sock in out.socks:  # the relay has them now
                    foreign.close_shared(sock, self.disposer)
        except OSError:  # full, too many fds in flight, or gone; the writer and the reader see to these
            return

    def close(self) -> None:
        """Hear and say nothing more. What was not sent is closed."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()
        self.inlet.close()
        for out in self.outbox:
            channel.close_all(out.fds)
            foreign.end_all(out.socks, self.disposer)
        self.outbox.clear()

    async def write(self) -> None:
        """Send what did not go at once, as room comes. For ever."""
        while True:
            await self.has_output.wait()
            self.has_output = trio.Event()
            while self.outbox:
                await trio.lowlevel.wait_writable(self.channel)
                left = len(self.outbox)
                self._send_what_goes()
                if len(self.outbox) == left:
                    await trio.sleep(0.01)


def how_it_ended(status: int | None) -> str:
    """The end of a process in words. status: as os.waitstatus_to_exitcode gives it; None where nobody knows."""
    if status is None:
        return "it ended"
    if status == -signal.SIGSYS:
        return "it made a system call that its cage does not allow (SIGSYS): was it taken over?"
    return f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
