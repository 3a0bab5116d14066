"""Which carrier works for which user: what a relay's event loop asks for, and hears of when it is done.

A carrier works for one user and one side at a time, and goes on doing so while it keeps descriptors for them. One that
does not say within STUCK_SECONDS that it is free is written off: it waits in a close, for as long as somebody likes. A
user with MAX_STUCK such carriers gets no other one until they come back; what asks for one gets Problem.STUCK.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from sockguard.carriers.disposal import Disposal
from sockguard.carriers.jobs import Job, Op, Problem, Report, read_report
from sockguard.carriers.master import Master

SLOTS: Final = 32
"""Carriers that a relay can have at once, those written off included."""

MAX_STUCK: Final = 2
"""Carriers that are written off for one user and side."""

STUCK_SECONDS: Final = 2.0
"""For one job, from when it was given out until the carrier is free again."""

WAIT_SECONDS: Final = 10.0
"""For a carrier, where all work for other users."""

PATIENCE_SECONDS: Final = 1.0
"""After so long the carrier that has kept descriptors longest is taken from its user, whose connections end."""

_REPORT_BYTES: Final = 64
_FOR_NOW: Final = frozenset({errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

Account = tuple[int, int]
"""Whom descriptors count for: a user (of a sub-uid, its owner), and the side of a connection that they came from."""

Done = Callable[[Report], None]


class Events(Protocol):
    """The event loop, as far as carriers need it."""

    def listen_to(self, sock: socket.socket, reader: Carrier) -> None: ...

    def leave(self, sock: socket.socket) -> None: ...

    def call_on_time(self) -> None:
        """Call Carriers.on_time at each tick, until it gives False."""


@dataclass(slots=True, eq=False)
class _Order:
    """A job that waits, with the sockets it is about. They are not copied: who closes one before has to ``cancel``."""

    job: Job
    content: bytes
    socks: tuple[socket.socket, ...]
    done: Done | None
    until: float


@dataclass(slots=True, eq=False)
class _Books:
    """Of one account: its carrier, what waits for it, and what it keeps by the numbers of connections."""

    account: Account
    carrier: Carrier | None = None
    waiting: deque[_Order] = field(default_factory=deque)
    kept: dict[int, int] = field(default_factory=dict)
    lost: dict[int, Callable[[], None]] = field(default_factory=dict)  # who hears that what is kept is lost
    since: float = 0.0  # when it began to keep something
    stuck: int = 0


class Carrier:
    """One slot. Read by the event loop like a side of a connection."""

    __slots__ = ("books", "ended", "frees", "order", "pool", "sock", "until")

    def __init__(self, pool: Carriers, sock: socket.socket) -> None:
        self.pool = pool
        self.sock = sock
        self.books: _Books | None = None
        self.order: _Order | None = None  # given out and not reported
        self.frees = 0  # jobs given out, of which it has not said that they are over
        self.until = 0.0
        self.ended = False

    @property
    def link(self) -> Carrier:
        """Who hears of a fault in reading: this one."""
        return self

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    def pump(self) -> None:
        self.pool.read(self)

    def on_events(self, _: int, /) -> None:
        self.pool.read(self)

    def retry(self) -> None:
        """Nothing waits for the kernel here."""

    def fail(self, error: Exception) -> None:
        """A fault in our own hearing of a report: that carrier is given up."""
        self.pool.lose(self)


class Carriers:
    """All carriers of a relay."""

    def __init__(self, master: Master, events: Events) -> None:
        self._master = master
        self._events = events
        self._disposal = Disposal(master.disposals, events.call_on_time)
        self._unstarted = deque(enumerate(master.slots))
        self._idle: list[Carrier] = []
        self._busy: set[Carrier] = set()
        self._books: dict[Account, _Books] = {}
        self._without: deque[_Books] = deque()  # accounts that wait for a carrier

    # ── what links ask for ──

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        """See foreign.Disposer."""
        self._disposal.dispose(socks)

    def carry(self, account: Account, job: Job, source: socket.socket, target: socket.socket, done: Done) -> None:
        """Pass on a message with its descriptors."""
        self._order(account, job, (source, target), b"", done)

    def take(self, account: Account, job: Job, source: socket.socket, done: Done, lost: Callable[[], None]) -> None:
        """Receive a message, and keep its descriptors. lost: called if they are lost later."""

        def taken(report: Report) -> None:
            if report.fds:
                books = self._books[account]
                if not books.kept:
                    books.since = monotonic()
                books.kept[job.number] = books.kept.get(job.number, 0) + report.fds
                books.lost[job.number] = lost
            done(report)

        self._order(account, job, (source,), b"", taken)

    def send(self, account: Account, job: Job, target: socket.socket, content: bytes, done: Done) -> None:
        """Send bytes with descriptors that are kept."""

        def sent(report: Report) -> None:
            if report.fds:
                self._forget(account, job.number, report.fds)
            done(report)

        self._order(account, job, (target,), content, sent)

    def drop(self, account: Account, number: int, count: int) -> None:
        """Close descriptors that are kept, behind what was asked for before."""
        books = self._books.get(account)
        if books is not None and count:
            self._order(account, Job(Op.DROP, number, count), (), b"", None)

    def cancel(self, sock: socket.socket) -> None:
        """That socket is about to be closed: nobody need hear of what waits for it."""
        for books in self._books.values():
            if any(sock in order.socks for order in books.waiting):
                books.waiting = deque(order for order in books.waiting if sock not in order.socks)

    # ── work ──

    def _order(
        self, account: Account, job: Job, socks: tuple[socket.socket, ...], content: bytes, done: Done | None
    ) -> None:
        books = self._books.get(account)
        if books is None:
            books = self._books[account] = _Books(account)
        books.waiting.append(_Order(job, content, socks, done, monotonic() + WAIT_SECONDS))
        self._go_on(books)

    def _go_on(self, books: _Books) -> None:
        """Give out what waits, if the account has a carrier that is free, or can have one."""
        carrier = books.carrier
        if carrier is None:
            if not books.waiting:
                self._settle(books)
                return
            carrier = self._assign(books)
            if carrier is None:
                return
        while books.waiting and not carrier.frees and books.carrier is carrier:
            if not self._give(carrier, books.waiting.popleft()):
                return
        if not carrier.frees and not books.waiting and not books.kept and books.carrier is carrier:
            books.carrier = carrier.books = None
            self._busy.discard(carrier)
            self._settle(books)
            self._idle.append(carrier)
            self._serve_next()

    def _settle(self, books: _Books) -> None:
        if not books.stuck and not books.waiting and not books.kept and books.carrier is None:
            self._books.pop(books.account, None)

    def _serve_next(self) -> None:
        for _ in range(len(self._without)):
            books = self._without.popleft()
            self._go_on(books)
            if books in self._without:
                return

    def _assign(self, books: _Books) -> Carrier | None:
        if books.stuck >= MAX_STUCK:
            self._refuse(books)
            return None
        if self._idle:
            carrier = self._idle.pop()
        else:
            found = self._start()
            if found is None:
                if books not in self._without:
                    self._without.append(books)
                self._events.call_on_time()
                return None
            carrier = found
        books.carrier, carrier.books = carrier, books
        self._busy.add(carrier)
        return carrier

    def _start(self) -> Carrier | None:
        if not self._unstarted:
            return None
        slot, sock = self._unstarted[0]
        try:
            self._master.start(slot)
        except OSError:  # it has much to do, or has gone: that ends the relay
            return None
        self._unstarted.popleft()
        carrier = Carrier(self, sock)
        self._events.listen_to(sock, carrier)
        return carrier

    def _give(self, carrier: Carrier, order: _Order) -> bool:
        """False: not now; it is the first of those that wait again."""
        rights = []
        if order.socks:
            fds = array("i", [sock.fileno() for sock in order.socks])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            carrier.sock.sendmsg([order.job.encode(), order.content], rights, _FLAGS)
        except OSError as error:
            if error.errno in _FOR_NOW and carrier.books is not None:  # at the next tick
                carrier.books.waiting.appendleft(order)
                self._events.call_on_time()
                return False
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                self.lose(carrier)
            _tell(order, Report(True, Problem.FAILED))
            return True
        if order.job.op == Op.DROP:
            if carrier.books is not None:
                self._forget(carrier.books.account, order.job.number, order.job.count)
        else:
            carrier.order = order
        carrier.frees += 1
        carrier.until = monotonic() + STUCK_SECONDS
        self._events.call_on_time()
        return True

    def _forget(self, account: Account, number: int, count: int) -> None:
        books = self._books.get(account)
        if books is None or number not in books.kept:
            return
        books.kept[number] -= count
        if books.kept[number] <= 0:
            del books.kept[number]
            del books.lost[number]

    def read(self, carrier: Carrier) -> None:
        """Hear what a carrier has said."""
        while True:
            try:
                data = carrier.sock.recv(_REPORT_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self.lose(carrier)
                return
            report = read_report(data)
            if report.free:
                carrier.frees -= 1
            elif carrier.order is not None:
                order, carrier.order = carrier.order, None
                if order.done is not None:
                    order.done(report)
                elif report.fds and order.job.op == Op.TAKE:  # it had been written off: nobody knows of these
                    self._have_dropped(carrier, order.job.number, report.fds)
        if not carrier.frees:
            self._is_free(carrier)

    def _is_free(self, carrier: Carrier) -> None:
        books = carrier.books
        if books is None:
            return
        if books.carrier is carrier:
            self._go_on(books)
            return
        books.stuck -= 1  # it had been written off
        carrier.books = None
        self._busy.discard(carrier)
        self._settle(books)
        self._idle.append(carrier)
        self._serve_next()

    # ── time, and ends ──

    def on_time(self) -> bool:
        """A tick of the loop's clock. False when nothing here waits for time."""
        now = monotonic()
        self._disposal.retry()
        for carrier in [each for each in self._busy if each.frees and now >= each.until]:
            self._write_off(carrier)
        for books in list(self._without):
            while books.waiting and now >= books.waiting[0].until:
                _tell(books.waiting.popleft(), Report(True, Problem.STUCK))
        if any(
            books.waiting and now >= books.waiting[0].until - WAIT_SECONDS + PATIENCE_SECONDS for books in self._without
        ):
            self._evict()
        self._serve_next()
        for carrier in [each for each in self._busy if not each.frees]:
            if carrier.books is not None:
                self._go_on(carrier.books)  # what the kernel could not do before
        return bool(self._busy or self._without or self._disposal.waiting)

    def _evict(self) -> None:
        """All carriers are taken, and somebody waits: who has kept descriptors longest loses them."""
        pinned = [
            books
            for carrier in self._busy
            if (books := carrier.books) is not None and books.carrier is carrier and books.kept and not carrier.frees
        ]
        if self._idle or not pinned:
            return
        longest = min(pinned, key=lambda books: books.since)
        self._lose_what_is_kept(longest, longest.carrier)

    def _write_off(self, carrier: Carrier) -> None:
        books = carrier.books
        if books is None or books.carrier is not carrier:
            carrier.until = monotonic() + STUCK_SECONDS
            return
        books.carrier = None
        books.stuck += 1
        order = carrier.order
        if order is not None:
            done, order.done = order.done, None
            if done is not None:
                done(Report(True, Problem.STUCK))
        self._lose_what_is_kept(books, carrier)
        self._go_on(books)

    def _lose_what_is_kept(self, books: _Books, carrier: Carrier | None) -> None:
        kept, books.kept = books.kept, {}
        lost, books.lost = books.lost, {}
        for number, count in kept.items():
            if carrier is not None:  # it closes them when it comes back
                self._have_dropped(carrier, number, count)
        for tell in lost.values():
            tell()

    def _have_dropped(self, carrier: Carrier, number: int, count: int) -> None:
        try:
            carrier.sock.send(Job(Op.DROP, number, count).encode(), _FLAGS)
        except OSError:  # it has ended, or waits before ten jobs: these stay open as long as it lives
            return
        carrier.frees += 1
        carrier.until = monotonic() + STUCK_SECONDS

    def lose(self, carrier: Carrier) -> None:
        """A carrier has ended."""
        if carrier.ended:
            return
        carrier.ended = True
        self._events.leave(carrier.sock)
        self._busy.discard(carrier)
        if carrier in self._idle:
            self._idle.remove(carrier)
        with contextlib.suppress(OSError):
            # Not closed: to this number a relay in its cage may send descriptors (sandbox/policy.py).
            carrier.sock.shutdown(socket.SHUT_RDWR)
        books, order = carrier.books, carrier.order
        carrier.books = carrier.order = None
        if order is not None:
            _tell(order, Report(True, Problem.FAILED))
        if books is None:
            return
        if books.carrier is carrier:
            books.carrier = None
            self._lose_what_is_kept(books, None)
        else:
            books.stuck -= 1
        self._go_on(books)

    def _refuse(self, books: _Books) -> None:
        waiting, books.waiting = books.waiting, deque()
        for order in waiting:
            _tell(order, Report(True, Problem.STUCK))

    @property
    def written_off(self) -> int:
        """How many carriers do not come back."""
        return sum(books.stuck for books in self._books.values())


def _tell(order: _Order, report: Report) -> None:
    if order.done is not None:
        order.done(report)
