"""What is read from one of the two sockets of an inspected connection (inspected.py), and shown to its inspector.

A chunk at a time. What the inspector does not use yet is kept and shown again with more; what is to pass unseen goes
to the other side as it comes. Read once, into memory that no client can reach, and sent from there.

All descriptors are edge-triggered, as in stream.py: a side is read until it is dry or has to wait.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sockguard.privsep.channel import close_all, received_fds
from sockguard.privsep.messages import MAX_FDS, MAX_OVERDRAFT
from sockguard.protocols.base import CLIENT, FOREVER, Source
from sockguard.relay.ancillary import CONTROL_BYTES, CUT, READ, sender
from sockguard.relay.outbox import Outbox
from sockguard.relay.stream import CHUNK

if TYPE_CHECKING:
    from sockguard.relay.inspected import InspectedLink

MAX_UNREAD_REPLIES: Final = 1024 * 1024
"""Bytes that wait for a client before its requests are read no further. More than none, since a client may write a
long request before it reads: only what we answer by ourselves adds up here, the service is not read meanwhile."""

MAX_WAITING_FDS: Final = 2 * MAX_FDS
"""fds of one side that the inspector has not sent on or dropped yet."""

LEAST_CREDIT: Final = (0, -(MAX_OVERDRAFT // 2))
"""Of CLIENT and BACKEND: with no more credit that side is not read. Answers need none, so the service is read without
any; but what other peers of it say may be told too, and must not take what one reading of a client can need."""

_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR

_view: Final = memoryview(bytearray(CHUNK))  # one buffer for the whole process
_views: Final = [_view]


class InspectedSide(Outbox):
    """One of the two sockets: what is read from it, and what waits to be written to it.

    clear     nothing of the below holds that a reading, or the sending on of what was read, would have to look at:
              whatever brings such a thing about says so at once, and _is_clear finds out when there is none any more
    paused    not read until the inspector says so, but for what passes
    inspect   the inspector's ``received``
    rest      what was shown and is not used yet; ``stuck``: showing it again is of no use before more comes
    fds       that came here and were neither sent on nor dropped yet; none was since the tick ``fds_since``
    passing   bytes still to come that go to ``other`` unseen; FOREVER: all
    sender    the only uid that may send here; -1: any
    ending    the peer sends nothing more after what is queued (EPOLLRDHUP); ended: all of that was read
    gone      the peer can neither send nor receive any more (EPOLLHUP)
    """

    __slots__ = (
        "clear",
        "ended",
        "ending",
        "fds",
        "fds_since",
        "gone",
        "index",
        "inspect",
        "passing",
        "paused",
        "read",
        "received",
        "reset_outcome",
        "rest",
        "sender",
        "stuck",
    )

    inspect: Callable[[Source, memoryview, int], int]

    def __init__(self, link: InspectedLink, sock: socket.socket, index: Source, only_from: int) -> None:
        super().__init__(link, sock)
        self.index = index
        self.sender = only_from
        if only_from >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # as stream.Side.only_from
        self.reset_outcome = "client_reset" if index == CLIENT else "backend_reset"
        self.received = self.passing = self.fds_since = 0
        self.rest = bytearray()
        self.fds: deque[int] = deque()
        self.clear = self.paused = self.ending = self.ended = self.gone = False
        self.stuck = True
        self.read = sock.recvmsg_into

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
        try:
            read = self.read  # what a slot holds is called faster by a local name
            length, control, flags, _ = read(_views, CONTROL_BYTES, READ)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._reset()
            return
        if control or flags & CUT or not length:
            self._took(CHUNK, length, control, flags)
            return
        self.received += length  # from here on as _took, where all is clear
        inspect = self.inspect
        shown = _view[:length]
        used = inspect(self.index, shown, 0)
        if used < length:
            self._leave(shown, used)
        if length == CHUNK:
            self.loop.again(self)

    def _pump_with_care(self) -> None:
        if self._may_read():
            wanted = self.passing if 0 < self.passing < CHUNK else CHUNK
            try:
                length, control, flags, _ = self.read([_view[:wanted]], CONTROL_BYTES, READ)
            except BlockingIOError:
                if self.deaf and self.index == CLIENT:  # all is heard that it had to say, and it hears no answer
                    self.link.end(self.reset_outcome)
            except ConnectionResetError:
                self._reset()
            else:
                self._took(wanted, length, control, flags)
        self.clear = self._is_clear()

    def _is_clear(self) -> bool:
        return not (
            self.rest
            or self.fds
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

    def _took(self, wanted: int, length: int, control: list[tuple[int, int, bytes]], flags: int) -> None:
        """What a reading of ``wanted`` bytes at most has given."""
        if (control or flags & CUT) and not self._take_control(length, control, flags):
            return
        if not length:
            self._end_of_stream()
            return
        self.received += length
        if self.passing:
            self._pass(_view[:length])
        elif self.rest:
            self.rest += _view[:length]
            self._show_rest()
        else:
            shown = _view[:length]
            used = self._show(shown)
            if used < length:
                self._leave(shown, used)
        if length == wanted or control or self.ending:
            self.loop.again(self)

    def _may_read(self) -> bool:
        """Is there room for more, and any use in it? What is kept is shown first."""
        link = self.link
        if self._must_wait():
            return False
        if self.rest and not self.stuck:
            self._show_rest()
            if link.ending or self._must_wait():
                return False
        if self.ended or (self.stuck and len(self.rest) >= link.inspector.max_buffer):
            if self.gone and (not self.ended or self.index == CLIENT or self.passing == FOREVER):
                link.end("closed")  # nobody is there any more for what the inspector waits for
            return False
        return True

    def _must_wait(self) -> bool:
        link = self.link
        if self.other.out or link.ending or (self.paused and not self.passing):
            return True
        if self.passing == FOREVER:
            return False
        return self._wants_credit() or self.queued > MAX_UNREAD_REPLIES

    def _wants_credit(self) -> bool:
        """Is there too little to show what has come here? Then it goes on when there is some again."""
        if self.loop.credit > LEAST_CREDIT[self.index]:
            return False
        self.loop.wait_for_credit(self)
        return True

    def _take_control(self, length: int, control: list[tuple[int, int, bytes]], flags: int) -> bool:
        """What came with the bytes. False when it has ended the connection."""
        fds = received_fds(control)
        link = self.link
        outcome = ""
        if flags & CUT or (fds and self.loop.crowded(fds)):
            outcome = "out_of_files"
        elif self.sender >= 0 and length and sender(control) != self.sender:
            outcome = "sender_changed"
        elif fds and link.options.refuse_fds:
            outcome = "fds_refused"
        elif len(self.fds) + len(fds) > MAX_WAITING_FDS:
            outcome = "limit"
        if outcome:
            close_all(fds)
            link.end(outcome, clean=False)
            return False
        if fds and not self.fds:
            self.fds_since = self.loop.tick
            self.loop.time(link)
        self.fds.extend(fds)
        self.clear = False
        return True

    def take_fds(self, count: int) -> list[int]:
        """The first ``count`` that wait, or what there is of them, for the caller to keep or to close."""
        taken = [self.fds.popleft() for _ in range(min(count, len(self.fds)))]
        if taken:
            self.fds_since = self.loop.tick
        return taken

    def _pass(self, data: memoryview, *, followed: bool = False) -> None:
        """Pass it on. followed: by more that has come already; fds come with the last of what a reading gives."""
        if self.passing == FOREVER:
            fds = list(self.fds)
            self.fds.clear()
            self.other.write_fds(data, fds)
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
        return self.inspect(self.index, data, len(self.fds))

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
        while count or self.passing:
            if start == end or link.ending:
                return end
            if self.passing:
                count = end - start if self.passing == FOREVER else min(self.passing, end - start)
                self._pass(data[start : start + count], followed=start + count < end)
            elif self.paused or self._wants_credit():
                self.stuck = False
                break
            else:
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
        self._forget_out()
        close_all(self.fds)
        self.fds.clear()
        self.closed = self.deaf = True
        self.sock.close()
