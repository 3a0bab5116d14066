"""The relay's event loop: one epoll, one channel to control, and the links it was handed. Hot: keep it bare.

Control decides; what arrives here is permitted already. A side moves one chunk at most in its turn, users have their
turns in turn (turns.py), and however long turns take, control is heard between them. Events about many connections
travel in one message.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Final

from sockguard.carriers.master import Master
from sockguard.carriers.pool import Carrier, Carriers
from sockguard.errors import ChannelError, SockguardError
from sockguard.privsep import channel, memfd
from sockguard.privsep.messages import (
    CONTROL_TO_RELAY,
    MAX_FDS,
    MAX_OVERDRAFT,
    Assign,
    Close,
    Closed,
    Connections,
    ConnectionsTaken,
    Credits,
    Generation,
    GenerationTaken,
    Message,
    Ping,
    Pong,
    Requests,
    Row,
    RuleSets,
    Stop,
    check_row,
    in_packets,
)
from sockguard.privsep.pipe import Outlet
from sockguard.protocols.base import MAX_REQUEST_TEXT
from sockguard.relay.debts import Debts
from sockguard.relay.inspected import InspectedLink
from sockguard.relay.link import AnyLink, AnySide
from sockguard.relay.making import make_link
from sockguard.relay.options import TICK_SECONDS, read_generation
from sockguard.relay.pipes import Pipes
from sockguard.relay.rules import NO_RULES, Rules
from sockguard.relay.side import READ_EVENTS
from sockguard.relay.turns import RETRY, SECONDS, Turns

_JUST_DATA: Final = select.EPOLLIN
_EVENTS_PER_WAKE: Final = 64  # as many as malloc gives at once; more are there at the next wake
_UNTIMED: Final = 4  # so many events are served without a look at the clock

_Events = list[tuple[int, int]]


class Loop:
    """Serves until control says stop, or its end of the channel closes. ``tick`` counts TICK_SECONDS while needed.

    Most wakes are about bytes that came, and nothing else: whatever else there is to do sets ``_chores``.
    """

    def __init__(self, control: socket.socket, outlet: Outlet, master: Master, files: int = sys.maxsize) -> None:
        """control: where messages come from; outlet: where ours go; files: how many this process may have open."""
        self._crowded_from = files - min(MAX_FDS, files // 2)
        self.tick = 0
        self._next_tick = 0.0
        self._control = control
        control.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._outlet = outlet
        self._outlet_watched = False
        self._master_fd = master.channel.fileno()
        self._epoll.register(self._master_fd, 0)  # its end alone is told
        self.carriers = Carriers(master, self)
        self.pipes = Pipes()
        self._links: dict[int, AnyLink] = {}
        self._sides: dict[int, AnySide | Carrier] = {}
        self._turns = Turns()
        self._later: dict[AnySide, None] = {}  # as sets that keep their order
        self._timed: set[AnyLink | Carriers] = set()
        self._ended: list[Row] = []
        self._requests: list[Row] = []
        self.untold = False  # requests among these are to be passed on, once they are told
        self._wait_for_telling: dict[AnySide, None] = {}
        self.credit = 0  # requests that may be told
        self._debts = Debts()
        self._without_credit = Turns()
        self._outbox: deque[Message] = deque()
        self._rules = Rules()
        self._stopping = self._chores = self._more = self._message_waits = False

    def run(self) -> None:
        """Raises ChannelError when control sends what is not on the list."""
        wait = self._epoll.poll
        timeout: float | None = None
        while True:
            events = wait(timeout, _EVENTS_PER_WAKE)
            if len(events) <= _UNTIMED:
                self._serve(events)
            else:
                self._serve_many(events)
            if self._chores:
                if not self._do_chores():
                    return
                timeout = 0.0 if self._more else TICK_SECONDS if self._chores else None

    def _serve(self, events: _Events) -> None:
        sides = self._sides
        for fd, what in events:
            side = sides.get(fd)
            if side is None:  # control's, or closed by what came before it
                self._on_other_event(fd)
                continue
            try:
                if what == _JUST_DATA:  # as nearly always: nothing else to look at
                    side.pump()
                else:
                    side.on_events(what)
            except Exception as error:
                side.link.fail(error)

    def _serve_many(self, events: _Events) -> None:
        """A few at a time, while there is time; the others have their turn after that, user by user."""
        end = monotonic() + SECONDS
        for start in range(0, len(events), _UNTIMED):
            self._serve(events[start : start + _UNTIMED])
            if monotonic() > end:
                self._message_waits = self._chores = True  # its event may be among those that wait
                self._put_off(events[start + _UNTIMED :])
                return

    def _put_off(self, events: _Events) -> None:
        """As turns of the sides that have these fds now: a connection that comes later can have the same ones."""
        for fd, what in events:
            side = self._sides.get(fd)
            if side is None:
                self._on_other_event(fd)
            elif isinstance(side, Carrier):
                self._serve([(fd, what)])
            else:
                self._turns.add(side, what)

    def _on_other_event(self, fd: int) -> None:
        if fd == self._control.fileno():
            self._message_waits = True
        elif fd == self._master_fd:
            raise SockguardError("the process that starts its carriers has ended")
        self._chores = True  # else the outlet has room

    def _do_chores(self) -> bool:
        """All but the events of links. False when nothing more is to be served."""
        if self._turns and not self._turns.give():
            self._message_waits = True
        if self._waits_for_time():
            self._on_time()
        else:
            self._next_tick = 0.0
        if self._message_waits:  # last: new links must not meet events of old fds
            self._message_waits = False
            if not self._on_channel():
                return False
        if self._without_credit and self._has_credit() and not self._without_credit.give(self._has_credit):
            self._message_waits = True
        if self._ended or self._requests or self._outbox or self._outlet_watched:
            self._tell()
            if self._stopping and not self._outlet_watched:
                return False
        self._go_on_with_told()
        # Else a wait without end. While the outlet has no room, its event says when to go on.
        self._more = bool(
            self._turns
            or (self._without_credit and self._has_credit())
            or ((self._ended or self._requests) and not self._outlet_watched)
        )
        self._chores = self._more or self._waits_for_time()
        return True

    def _waits_for_time(self) -> bool:
        return bool(self._timed or self._later)

    def _retry(self, sides: Iterable[AnySide]) -> None:
        for side in sides:
            self._turns.add(side, RETRY)
            self._chores = True

    # ── what links ask for ──

    def again(self, side: AnySide) -> None:
        """Pump that side once more after the others had their turn."""
        self._turns.add(side)
        self._chores = True

    def later(self, side: AnySide) -> None:
        """Have that side try again at the next tick."""
        self._later[side] = None
        self._chores = True

    def watch(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # it could not be registered
            self._epoll.unregister(fd)
        side = self._sides.pop(fd)
        if not isinstance(side, Carrier):
            self._turns.discard(side)
            self._without_credit.discard(side)
            self._later.pop(side, None)
            self._wait_for_telling.pop(side, None)

    def crowded(self, fds: Sequence[int]) -> bool:
        """Would keeping these leave less room than a message can need? Then the next one of control's would lose what
        it brings. A descriptor gets the lowest number that is free, so its number says how many are open (open(2)).
        """
        return max(fds, default=0) >= self._crowded_from

    def listen_to(self, sock: socket.socket, reader: Carrier) -> None:
        """Have that carrier read what comes to its channel."""
        self._sides[sock.fileno()] = reader
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def leave(self, sock: socket.socket) -> None:
        """Read no more there."""
        self.forget(sock.fileno())

    def call_on_time(self) -> None:
        """Tell the carriers of each tick, until they wait for none."""
        self._timed.add(self.carriers)
        self._chores = True

    def time(self, link: AnyLink) -> None:
        """Tell that link of each tick, until it waits for none."""
        self._timed.add(link)
        self._chores = True

    @property
    def tell_allowed(self) -> bool:
        """Are allowed requests told as well."""
        return self._rules.tell_allowed

    def tell_request(self, link: AnyLink, kind: str, rule: str, reason: str, request: str) -> bool:
        """Tell of a judged request; the texts are cut to what an event may hold. Costs its user one credit.

        One read can be of many requests, so credit may be overdrawn; false when it was overdrawn too far already.
        """
        if self.credit <= -MAX_OVERDRAFT:
            return False
        self.credit -= 1
        self._debts.add(link.user)
        self._requests.append((link.number, kind, rule, _cut(reason), _cut(request)))
        self._chores = True
        if kind != "denied":
            self.untold = True
        return True

    def is_untold(self, side: AnySide) -> bool:
        """Is there a request to be passed on that control cannot be told of now? Then ``retry`` that side when it has
        been. A request that is passed on and not told would be in no event if this process ended.
        """
        if self.untold:
            self._tell()
            if self.untold:
                self._wait_for_telling[side] = None
        return self.untold

    def _go_on_with_told(self) -> None:
        """Have those go on that waited for that. Not from within is_untold: another side is being read then."""
        if self._wait_for_telling and not self.untold:
            waiting, self._wait_for_telling = self._wait_for_telling, {}
            self._retry(waiting)

    def _has_credit(self) -> bool:
        return self.credit > 0

    def has_share(self, user: int) -> bool:
        """Have others used up the credits, and this user few of them?"""
        return self._debts.has_share(user, self.credit)

    def wait_for_credit(self, side: AnySide) -> None:
        """Pump that side when there is credit again."""
        self._without_credit.add(side)

    def link_ended(self, number: int, from_client: int, from_backend: int, outcome: str, reason: str = "") -> None:
        self._timed.discard(self._links.pop(number))
        self._ended.append((number, from_client, from_backend, outcome, _cut(reason)))
        self._chores = True

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
        later, self._later = self._later, {}
        self._retry(later)
        for link in list(self._timed):
            if not link.on_time():
                self._timed.discard(link)

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
            case RuleSets():
                self._rules.add_sets(message.rows)
            case Assign():
                for row in message.rows:
                    self._assign(*map(int, check_row(row, int, int)))
            case Credits():
                self.credit += message.count
                self._debts.pay(message.count)
            case Close():
                for row in message.rows:
                    number, outcome = check_row(row, int, str)
                    link = self._links.get(int(number))
                    if link is not None:
                        link.end(str(outcome), clean=False)
            case Ping():
                self._outbox.append(Pong(message.number))
            case Stop():
                for link in list(self._links.values()):
                    link.end("stopped", clean=False)
                self._stopping = True
                self._tell()
                return self._outlet_watched
            case _:
                raise ChannelError(f"a {message.TAG} message, which a relay does not take")
        return True

    def _take_generation(self, message: Generation, fds: list[int]) -> None:
        try:
            content = read_generation(memfd.read(fds[0]))
        finally:
            channel.close_all(fds)
        self._rules.renew(message.number, content)
        for link in list(self._links.values()):  # one whose proxy is gone is closed by control
            link.options = self._rules.options_of(link.options)
            if isinstance(link, InspectedLink):
                self._assign(link.number, content.connections.get(link.number, NO_RULES))
        self._timed.update(self._links.values())
        self._outbox.append(GenerationTaken(message.number))

    def _assign(self, number: int, rule_set: int) -> None:
        link = self._links.get(number)
        if isinstance(link, InspectedLink):
            link.renew(self._rules.of(rule_set, link.options))

    def _take(self, message: Connections, fds: list[int]) -> None:
        for index, row in enumerate(message.rows):
            link = make_link(self, self._rules, row, fds[2 * index : 2 * index + 2])
            if isinstance(link, int):
                self._ended.append((link, 0, 0, "out_of_files", ""))
                continue
            self._links[link.number] = link
            if link.options.idle_ticks:
                self._timed.add(link)
            self._sides[link.client.fd], self._sides[link.backend.fd] = link.client, link.backend
            try:
                for side in (link.client, link.backend):
                    side.sock.setblocking(False)
                    self._epoll.register(side.fd, READ_EVENTS)
            except OSError as error:  # no memory, or more than max_user_watches (epoll(7))
                link.fail(error)
            else:
                link.start()
        self._outbox.append(ConnectionsTaken(len(message.rows)))

    def _tell(self) -> None:
        """Write to control what there is to say, as far as there is room; an event tells of more."""
        outbox = self._outbox
        if self._requests:  # before the ends of their connections
            outbox.extend(in_packets(Requests, self._requests))
            self._requests = []
        if self._ended:
            outbox.extend(in_packets(Closed, self._ended))
            self._ended = []
        try:
            while outbox:
                self._outlet.send(outbox[0])
                outbox.popleft()
            told = self._outlet.flush()
        except BlockingIOError:
            told = False
        except BrokenPipeError:  # control has gone: the next read of the channel says so, and nothing passes untold
            outbox.clear()
            return
        if told == self._outlet_watched:
            self._outlet_watched = not told
            if told:
                self._epoll.unregister(self._outlet.fd)
            else:
                self._epoll.register(self._outlet.fd, select.EPOLLOUT)
        if told:
            self.untold = False


def _cut(text: str) -> str:
    return text if len(text) <= MAX_REQUEST_TEXT else text[: MAX_REQUEST_TEXT - 1] + "…"
