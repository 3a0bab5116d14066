"""What is read from one of the two sockets of an inspected connection (inspected.py), and shown to its inspector.

A chunk at a time. What the inspector does not use yet is kept and shown again with more; what is to pass unseen goes
to the other side as it comes. Shown and sent is one copy, in memory that no client can reach.

Where the kernel refuses descriptors, bytes are just read. Elsewhere they are peeked without room for any, and taken
once they were shown; a message that carries descriptors is received by a carrier, which keeps these until the inspector
has said what becomes of them.

All descriptors are edge-triggered, as in stream.py: a side is read until it is dry or has to wait.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sockguard.carriers.jobs import Job, Op, Problem, Report
from sockguard.privsep import foreign
from sockguard.privsep.ancillary import CREDENTIALS_BYTES, CUT, sender
from sockguard.privsep.messages import MAX_FDS, MAX_OVERDRAFT
from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, Source
from sockguard.relay.boundary import boundary, carries_fds
from sockguard.relay.outbox import Outbox
from sockguard.relay.peeking import PEEK
from sockguard.relay.side import CHUNK

if TYPE_CHECKING:
    from sockguard.relay.inspected import InspectedLink

MAX_UNREAD_REPLIES: Final = 1024 * 1024
"""Bytes that wait for a client before its requests are read no further. More than none, since a client may write a
long request before it reads: only what we answer by ourselves adds up here, the service is not read meanwhile."""

MAX_WAITING_FDS: Final = 2 * MAX_FDS
"""fds of one side that the inspector has not sent on or dropped yet."""

LEAST_CREDIT: Final = -(MAX_OVERDRAFT // 2)
"""With no more credit no side is read, so that there is what one reading of a client can need. With none, a client is
read whose user has used up less than a share; and a service, whose answers need none: what other peers of it say may be
told, but that must not keep answers from others."""

MAX_SHOWN: Final = 4
"""How often one turn shows an inspector what came. Each is one request at least, or has a bound of the inspector's."""

_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR

_buffer: Final = bytearray(CHUNK)  # one for the whole process
_view: Final = memoryview(_buffer)
_views: Final = [_view]
_scratch: Final = bytearray(CHUNK)  # where bytes go that were shown already


class InspectedSide(Outbox):
    """One of the two sockets: what is read from it, and what waits to be written to it.

    clear     nothing of the below holds that a reading, or the sending on of what was read, would have to look at:
              whatever brings such a thing about says so at once, and _is_clear finds out when there is none any more
    paused    not read until the inspector says so, but for what passes
    inspect   the inspector's ``received``
    rest      what was shown and is not used yet; ``stuck``: showing it again is of no use before more comes
    pure      no descriptors can come here: the kernel refuses them
    room      bytes for ancillary data: for the sender's credentials where they matter, else none
    busy      a carrier reads here just now, what was peeked of it is ``coming``
    fds       how many came here that the inspector has neither sent on nor dropped; none did since ``fds_since``
    kept      how many of this side's a carrier keeps, those that wait to be sent included; under ``number``
    passing   bytes still to come that go to ``other`` unseen; FOREVER: all
    sender    the only uid that may send here; -1: any
    ending    the peer sends nothing more after what is queued (EPOLLRDHUP); ended: all of that was read
    gone      the peer can neither send nor receive any more (EPOLLHUP)
    """

    __slots__ = (
        "account",
        "asked",
        "busy",
        "clear",
        "coming",
        "ended",
        "ending",
        "fds",
        "fds_since",
        "gone",
        "index",
        "inspect",
        "kept",
        "number",
        "passing",
        "paused",
        "peek",
        "pure",
        "read",
        "received",
        "reset_outcome",
        "rest",
        "room",
        "sender",
        "stuck",
        "take",
    )

    inspect: Callable[[Source, memoryview, int], int]

    def __init__(self, link: InspectedLink, sock: socket.socket, index: Source, only_from: int) -> None:
        super().__init__(link, sock)
        self.index = index
        self.account = link.user, index
        self.number = 2 * link.number + index
        self.sender = only_from
        self.room = 0
        if only_from >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # as peeking.PeekingSide
            self.room = CREDENTIALS_BYTES
        self.pure = only_from < 0 and foreign.takes_none(sock)
        if self.pure and index == CLIENT:  # as taking.TakingSide
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # else a read at an urgent byte drops it in silence
        self.reset_outcome = "client_reset" if index == CLIENT else "backend_reset"
        self.received = self.passing = self.fds_since = self.fds = self.kept = 0
        self.rest = bytearray()
        self.coming = b""
        self.asked = self.busy = self.clear = self.paused = self.ending = self.ended = self.gone = False
        self.stuck = True
        self.read = self.take = sock.recv_into
        self.peek = sock.recvmsg_into

    def on_events(self, events: int) -> None:
        """What epoll says about this socket."""
        if events & select.EPOLLPRI:  # MSG_OOB: no protocol here has a place for it
            self.link.end("urgent_refused", clean=False)
            return
        if events & _END:
            self.ending = True
            self.clear = False
            if events & _GONE:
                self.gone = True
                if events & select.EPOLLERR and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.broken = True
        if self.out and events & (select.EPOLLOUT | _GONE):
            self.retry()
        if events & _READABLE and not self.closed:
            self.pump()

    # ── reading ──

    def pump(self) -> None:
        """Read and show one chunk at most; more of it after the others had their turn."""
        if not self.clear or self.loop.credit <= 0:
            self._pump_with_care()
            return
        pure = self.pure
        try:
            if pure:
                read = self.read  # what a slot holds is called faster by a local name
                length = read(_buffer)
            else:
                peek = self.peek
                length, control, flags, _ = peek(_views, self.room, PEEK)
                if control or flags:
                    self._peeked(CHUNK, length, control, flags)
                    self.clear = self._is_clear()
                    return
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._reset()
            return
        if not length:
            self._end_of_stream()
            return
        self.received += length  # from here on as _came, where all is clear
        inspect = self.inspect
        shown = _view[:length]
        used = inspect(self.index, shown, 0)
        if used < length:
            self._leave(shown, used)
        if not pure and not self.closed:
            self._take(length)
        if length == CHUNK:
            self.loop.again(self)

    def _pump_with_care(self) -> None:
        if self._may_read():
            wanted = self.passing if 0 < self.passing < CHUNK else CHUNK
            view = _view[:wanted]
            try:
                control: list[tuple[int, int, bytes]] = []
                flags = 0
                if self.pure:
                    length = self.read(view)
                else:
                    length, control, flags, _ = self.peek([view], self.room, PEEK)
            except BlockingIOError:
                if self.deaf and self.index == CLIENT:  # all is heard that it had to say, and it hears no answer
                    self.link.end(self.reset_outcome)
            except ConnectionResetError:
                self._reset()
            else:
                self._peeked(wanted, length, control, flags)
        self.clear = self._is_clear()

    def _is_clear(self) -> bool:
        return not (
            self.rest
            or self.fds
            or self.busy
            or self.passing
            or self.paused
            or self.ending
            or self.ended
            or self.queued
            or self.deaf
            or self.other.out
            or self.other.deaf
            or self.link.ending
        )

    def _peeked(self, wanted: int, length: int, control: list[tuple[int, int, bytes]], flags: int) -> None:
        """What a look at ``wanted`` bytes at most has shown; where the side is pure, they are taken already."""
        if not length:
            self._end_of_stream()
        elif self.sender >= 0 and sender(control) != self.sender:
            self.link.end("sender_changed", clean=False)
        elif flags & CUT and not self.asked:  # as PeekingSide.more_comes_than_fds
            self.asked = True
            foreign.ask_for_nothing(self.sock, credentials=bool(self.room))
            self.loop.again(self)
        elif flags & CUT:
            self._fds_come(wanted, length)
        else:
            self._came(_view[:length], more=length == wanted or bool(control))

    def _came(self, data: memoryview, *, more: bool) -> None:
        """Show it, or pass it on, and take it from the queue. more: there may be more behind it."""
        length = len(data)
        self.received += length
        if self.passing:
            self._pass(data)
        elif self.rest:
            self.rest += data
            self._show_rest()
        else:
            used = self._show(data)
            if used < length:
                self._leave(data, used)
        if self.closed:
            return
        if not self.pure and not self.busy:
            self._take(length)
        if more or self.ending:
            self.loop.again(self)

    def _take(self, count: int) -> None:
        """Take from the queue what was shown; nothing of it carries descriptors."""
        while count:
            count -= self.take(_scratch, count)

    def _fds_come(self, wanted: int, length: int) -> None:
        """Some message in the queue carries descriptors: show what comes before it, then have a carrier receive it."""
        link = self.link
        if link.options.refuse_fds:
            link.end("fds_refused", clean=False)
            return
        view = _view[:wanted]
        start = boundary(self.sock, view, length)
        if not start and length == wanted and not carries_fds(self.sock, 0, length):
            start = length
        if start:
            self._came(_view[:start], more=True)
            return
        self.busy = True
        self.clear = False
        self.coming = bytes(_view[:length])
        job = Job(Op.TAKE, self.number, length, self.sender)
        self.loop.carriers.take(self.account, job, self.sock, self._carrier_took, self._fds_lost)

    def _carrier_took(self, report: Report) -> None:
        coming, self.coming = self.coming, b""
        self.kept += report.fds
        if self.closed:
            self.forget_fds()
            return
        try:
            self._go_on_with(coming, report)
        except Exception as error:
            self.link.fail(error)

    def _go_on_with(self, coming: bytes, report: Report) -> None:
        link = self.link
        match report.problem:
            case Problem.NONE:
                pass
            case Problem.NOT_THERE | Problem.FOR_NOW:
                self.busy = False
                self.loop.later(self)
                return
            case Problem.CUT:
                link.end("out_of_files", clean=False)
                return
            case Problem.SENDER:
                link.end("sender_changed", clean=False)
                return
            case Problem.STUCK:
                link.end("fds_stuck", clean=False)
                return
            case _:
                link.end("failed", "a carrier could not receive descriptors", clean=False)
                return
        if self.fds + report.fds > MAX_WAITING_FDS:
            link.end("limit", clean=False)
            return
        if report.fds and not self.fds:
            self.fds_since = self.loop.tick
            self.loop.time(link)
        self.fds += report.fds
        self._came(memoryview(bytearray(coming[: report.size])), more=True)
        self.busy = False
        self.clear = False

    def _fds_lost(self) -> None:
        """The carrier that keeps descriptors of this side does not come back."""
        self.kept = self.fds = 0
        self.link.end("fds_stuck", clean=False)

    def _may_read(self) -> bool:
        """Is there room for more, and any use in it? What is kept is shown first."""
        link = self.link
        if self._must_wait():
            return False
        if self.rest and not self.stuck:
            self._show_rest()
            if link.ending or self._must_wait() or (self.rest and not self.stuck):
                return False
        if self.ended or (self.stuck and len(self.rest) >= link.inspector.max_buffer):
            if self.gone and (not self.ended or self.index == CLIENT or self.passing == FOREVER):
                link.end("closed")  # nobody is there any more for what the inspector waits for
            return False
        return True

    def _must_wait(self) -> bool:
        link = self.link
        if self.busy or self.other.out or link.ending or (self.paused and not self.passing):
            return True
        if self.passing == FOREVER:
            return False
        return self._wants_credit() or self.queued > MAX_UNREAD_REPLIES

    def _wants_credit(self) -> bool:
        """Is there too little to show what has come here? Then it goes on when there is some again."""
        loop = self.loop
        credit = loop.credit
        if credit > 0 or (credit > LEAST_CREDIT and (self.index == BACKEND or loop.has_share(self.link.user))):
            return False
        loop.wait_for_credit(self)
        return True

    def use_fds(self, count: int) -> int:
        """How many of so many there are: they wait for the inspector no more."""
        count = min(count, self.fds)
        self.fds -= count
        if count:
            self.fds_since = self.loop.tick
        return count

    def fds_left(self, count: int) -> None:
        """A carrier has sent on so many."""
        self.kept -= count

    def drop(self, count: int) -> None:
        """Have so many closed, the first of those that a carrier keeps."""
        count = min(count, self.kept)
        self.kept -= count
        if count:
            self.loop.carriers.drop(self.account, self.number, count)

    def forget_fds(self) -> None:
        """Have all closed that a carrier keeps."""
        self.fds = 0
        self.drop(self.kept)

    def _pass(self, data: memoryview, *, followed: bool = False) -> None:
        """Pass it on. followed: by more that has come already; fds come with the last of what a reading gives."""
        if self.passing == FOREVER:
            self.other.write_fds(data, self.use_fds(self.fds))
        elif self.fds and not followed:
            self.link.end("malformed" if self.index == CLIENT else "backend_malformed", "descriptors amid a message")
        else:
            self.other.write(data)
            self.passing -= len(data)
            if not self.passing:
                self.other.release()

    def _show_rest(self) -> None:
        rest = self.rest
        with memoryview(rest) as view:
            used = self._show(view)
            if used < len(view):
                used = self._go_on(view, used)
        del rest[:used]  # a BufferError when the inspector has kept a view

    def _show(self, data: memoryview) -> int:
        """Show it to the inspector; give how much is used."""
        self.stuck = True  # unless the inspector asks to be shown the rest again
        return self.inspect(self.index, data, self.fds)

    def _leave(self, shown: memoryview, used: int) -> None:
        """Keep what the inspector did not use, unless it goes on with it now."""
        self.clear = False
        used = self._go_on(shown, used)
        self.rest += shown[used:]

    def _go_on(self, data: memoryview, used: int) -> int:
        """Some of it was used, or none: show the rest, or let it pass, while there is any use in it."""
        link = self.link
        end = len(data)
        start, count = used, used
        shown = 1
        while count or self.passing:
            if start == end or link.ending:
                return end
            if self.passing:
                count = end - start if self.passing == FOREVER else min(self.passing, end - start)
                self._pass(data[start : start + count], followed=start + count < end)
            elif self.paused or self._wants_credit():
                self.stuck = False
                break
            elif shown == MAX_SHOWN:
                self.stuck = False
                self.loop.again(self)
                break
            else:
                shown += 1
                count = self._show(data[start:])
            start += count
        return start

    def _reset(self) -> None:
        self.broken = self.gone = True
        self._end_of_stream()

    def _end_of_stream(self) -> None:
        link = self.link
        self.ended = True
        self.clear = False
        if self.passing == FOREVER:
            self.other.shut_down()
            if self.gone or self.other.ended:
                link.end("closed")
        else:
            link.guarded(lambda: link.inspector.eof(self.index))
        if self.gone and self.index == CLIENT:
            link.end("closed")

    # ── writing ──

    def retry(self) -> None:
        """Write what waits; if all of it goes, read on what was not read meanwhile."""
        if not self.closed and self.flush():
            self.link.flushed()
            if not self.closed:
                self.other.pump()
            if not self.closed:
                self.pump()

    def close(self) -> None:
        loop = self.loop
        if self.busy or self.carried:
            loop.carriers.cancel(self.sock)
        if self.busy or self.carried or self.other.busy or self.other.carried:
            with contextlib.suppress(OSError):  # a carrier has a copy: its peer is to see the end all the same
                self.sock.shutdown(socket.SHUT_RDWR)
        self._forget_out()
        self.closed = self.deaf = True
        self.forget_fds()
        if self.pure or self.ended:
            self.sock.close()
        else:
            foreign.end(self.sock, loop.carriers)
