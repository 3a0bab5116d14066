"""The relay's event loop: one epoll, one channel to control, and the links it was handed. Hot: keep it bare.

Control decides; what arrives here is permitted already. Per wake a side moves one chunk at most, so that no
connection can starve another. Events about many connections travel in one message.
"""

from __future__ import annotations

import json
import select
import socket
from collections import deque
from time import monotonic
from typing import Final

from sockguard.errors import ChannelError
from sockguard.privsep import channel, memfd
from sockguard.privsep.messages import (
    CONTROL_TO_RELAY,
    Close,
    Closed,
    Connections,
    ConnectionsTaken,
    Generation,
    GenerationTaken,
    Message,
    Ping,
    Pong,
    Row,
    Stop,
    check_row,
)
from sockguard.relay import options
from sockguard.relay.options import TICK_SECONDS, Options
from sockguard.relay.records import RecordLink
from sockguard.relay.stream import READ_EVENTS, Link, Side

LINKS: Final[dict[str, type[Link]]] = {"stream": Link, "seqpacket": RecordLink}
"""What serves a connection of each protocol."""

_JUST_DATA: Final = select.EPOLLIN
_EVENTS_PER_WAKE: Final = 128
_ROWS_PER_MESSAGE: Final = 500  # about 60 bytes each: well below MAX_PACKET
_CHANNEL_READ: Final = select.EPOLLIN
_CHANNEL_WRITE: Final = select.EPOLLIN | select.EPOLLOUT


class Loop:
    """Serves until control says stop, or its end of the channel closes. ``tick`` counts TICK_SECONDS while needed."""

    def __init__(self, control: socket.socket) -> None:
        self.tick = 0
        self._next_tick = 0.0
        self._control = control
        control.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), _CHANNEL_READ)
        self._links: dict[int, Link] = {}
        self._sides: dict[int, Side] = {}
        self._again: list[Side] = []
        self._later: list[Side] = []
        self._behind: set[Side] = set()
        self._timed: set[Link] = set()  # links with an idle timeout
        self._ended: list[Row] = []
        self._outbox: deque[Message] = deque()
        self._proxies: list[Options] = []
        self._generation = 0
        self._stopping = False

    def run(self) -> None:
        """Raises ChannelError when control sends what is not on the list."""
        wait = self._epoll.poll
        sides = self._sides
        control_fd = self._control.fileno()
        while True:
            if self._again:
                timeout = 0.0
            elif self._timed or self._later or self._behind:
                timeout = TICK_SECONDS
            else:
                timeout = -1.0
            events = wait(timeout, _EVENTS_PER_WAKE)
            message_waits = False
            for fd, what in events:
                if fd == control_fd:
                    message_waits = True
                    continue
                side = sides.get(fd)
                if side is not None:
                    try:
                        if what == _JUST_DATA:  # as nearly always: nothing else to look at
                            side.pump()
                        else:
                            side.on_events(what)
                    except OSError:
                        side.link.fail()
            if self._again:
                again, self._again = self._again, []
                self._pump(again)
            if self._timed or self._later or self._behind:
                self._on_time()
            else:
                self._next_tick = 0.0
            if message_waits and not self._on_channel():  # last: new links must not meet events of old fds
                return
            if self._ended or self._outbox:
                self._tell()
                if self._stopping and not self._outbox:
                    return

    def _pump(self, sides: list[Side]) -> None:
        for side in sides:
            try:
                side.pump()
            except OSError:
                side.link.fail()

    # ── what links ask for ──

    def again(self, side: Side) -> None:
        """Pump that side once more after the others had their turn."""
        self._again.append(side)

    def later(self, side: Side) -> None:
        """Pump that side at the next tick."""
        self._later.append(side)

    def catch_up(self, side: Side) -> None:
        """Take that side's byte behind at the next tick."""
        self._behind.add(side)

    def watch(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._sides[fd]

    def link_ended(self, number: int, from_client: int, from_backend: int, outcome: str) -> None:
        self._timed.discard(self._links.pop(number))
        self._ended.append((number, from_client, from_backend, outcome))

    # ── time ──

    def _on_time(self) -> None:
        """Something waits for the clock: tick when it is time, however busy others are."""
        now = monotonic()
        if not self._next_tick:
            self._next_tick = now + TICK_SECONDS
        elif now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._on_tick()

    def _on_tick(self) -> None:
        self.tick += 1
        behind, self._behind = self._behind, set()
        for side in behind:
            side.take_the_byte_behind()
        later, self._later = self._later, []
        self._pump(later)
        for link in [link for link in self._timed if self.tick - link.seen > link.options.idle_ticks]:
            link.end("idle_timeout", clean=False)

    # ── control ──

    def _on_channel(self) -> bool:
        try:
            received = channel.receive(self._control, CONTROL_TO_RELAY)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if received is None:
            return False
        message, fds = received
        match message:
            case Connections():
                self._take(message, fds)
            case Generation():
                self._take_generation(message, fds)
            case Close():
                for row in message.rows:
                    number, outcome = check_row(row, int, str)
                    link = self._links.get(number)  # type: ignore[arg-type]
                    if link is not None:
                        link.end(str(outcome), clean=False)
            case Ping():
                self._outbox.append(Pong(message.number))
            case Stop():
                for link in list(self._links.values()):
                    link.end("stopped", clean=False)
                self._stopping = True
                self._tell()
                return bool(self._outbox)
            case _:
                raise ChannelError(f"a {message.TAG} message, which a relay does not take")
        return True

    def _take_generation(self, message: Generation, fds: list[int]) -> None:
        try:
            content = json.loads(memfd.read(fds[0]))
        finally:
            channel.close_all(fds)
        self._proxies = [options.read(row) for row in content["proxies"]]
        by_name = {of_proxy.name: of_proxy for of_proxy in self._proxies}
        for link in self._links.values():  # one whose proxy is gone is closed by control
            link.options = by_name.get(link.options.name, link.options)
        self._timed = {link for link in self._links.values() if link.options.idle_ticks}
        self._generation = message.number
        self._outbox.append(GenerationTaken(message.number))

    def _take(self, message: Connections, fds: list[int]) -> None:
        sockets = [socket.socket(fileno=fd) for fd in fds]
        for index, row in enumerate(message.rows):
            number, generation, proxy, _rules, uid = map(int, check_row(row, int, int, int, int, int))
            if generation != self._generation:
                raise ChannelError("a connection of a generation that is not in force")
            of_proxy = self._proxies[proxy]
            client, backend = sockets[2 * index : 2 * index + 2]
            link = LINKS[of_proxy.protocol](self, number, client, backend, of_proxy, uid)
            self._links[link.number] = link
            if link.options.idle_ticks:
                self._timed.add(link)
            for side in (link.client, link.backend):
                side.sock.setblocking(False)
                self._sides[side.fd] = side
                self._epoll.register(side.fd, READ_EVENTS)
        self._outbox.append(ConnectionsTaken(len(message.rows)))

    def _tell(self) -> None:
        outbox = self._outbox
        if self._ended:
            ended, self._ended = self._ended, []
            for start in range(0, len(ended), _ROWS_PER_MESSAGE):
                outbox.append(Closed(tuple(ended[start : start + _ROWS_PER_MESSAGE])))
        try:
            while outbox:
                channel.send(self._control, outbox[0])
                outbox.popleft()
        except BlockingIOError:
            self._epoll.modify(self._control.fileno(), _CHANNEL_WRITE)
        except (BrokenPipeError, ConnectionResetError):
            outbox.clear()  # control has gone: the next read of the channel says so
        else:
            self._epoll.modify(self._control.fileno(), _CHANNEL_READ)
