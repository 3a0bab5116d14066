"""One relay process as control sees it: its end of the channel, what it holds, and what waits to be sent to it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from sockguard.privsep import channel
from sockguard.privsep.messages import RELAY_TO_CONTROL, Message
from sockguard.relay.sandbox import PARTS
from sockguard.server.connections import Connection


@dataclass(slots=True, eq=False)
class Pending:
    """A connection on its way to a relay: both of its sockets are control's to close until they are sent."""

    connection: Connection
    client: socket.socket
    backend: socket.socket

    def close(self) -> None:
        self.client.close()
        self.backend.close()


@dataclass(slots=True, eq=False)
class Relay:
    """One relay process. ``held``: the connections that it was handed and has not told the end of."""

    number: int
    channel: socket.socket
    capacity: int = 0
    cage: str = ""
    generation: int = 0
    batch: int = 0  # rows of the one hand-over that is not acknowledged
    held: dict[int, Connection] = field(default_factory=dict)
    queue: deque[Pending] = field(default_factory=deque)
    outbox: deque[tuple[Message, list[int]]] = field(default_factory=deque)
    has_output: trio.Event = field(default_factory=trio.Event)
    fault: str = ""
    answered: int = 0  # the last ping that it answered
    ready: Callable[[], None] = lambda: None  # called once, when it takes connections
    settled: trio.Event = field(default_factory=trio.Event)  # set when it takes a generation

    @property
    def cage_warning(self) -> str:
        """What of its cage does not hold, in words for the log; empty when all of it does."""
        held = {part.split()[0] for part in self.cage.split(",") if part}
        missing = [part for part in PARTS if part not in held]
        return f"relays run without {', '.join(missing)}: not to be had here" if missing else ""

    @property
    def load(self) -> int:
        return len(self.held) + len(self.queue)

    async def receive(self) -> Message | None:
        """What it says next, or None when it has gone. Raises ChannelError for what it must not say."""
        while True:
            await trio.lowlevel.wait_readable(self.channel)
            try:
                received = channel.receive(self.channel, RELAY_TO_CONTROL)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return None
            return received[0] if received else None

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send now if nothing waits, else in turn. The fds are closed once they are sent."""
        self.outbox.append((message, fds or []))
        if len(self.outbox) == 1:
            self._send_what_goes()
        if self.outbox:
            self.has_output.set()

    def _send_what_goes(self) -> None:
        try:
            while self.outbox:
                message, fds = self.outbox[0]
                channel.send(self.channel, message, fds)
                self.outbox.popleft()
                channel.close_all(fds)
        except OSError:  # full, too many fds in flight, or gone; the writer and the reader see to these
            return

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
