"""One side of a connection that nobody reads: its events, what waits to be sent on, and its ends.

How a side is read depends on whether descriptors can come: taking.py where the kernel refuses them, else peeking.py,
and records.py for records.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Final

from sockguard.privsep import foreign

if TYPE_CHECKING:
    from sockguard.relay.pipes import Pipe
    from sockguard.relay.stream import Link

CHUNK: Final = 64 * 1024
"""Bytes read at a time: one buffer for the whole process, and what one wake may do for one side."""

BULK: Final = 1024 * 1024
"""Bytes moved at a time by splice(2), which copies none, and at most by one turn of a side."""

_BULK_BUFFER: Final = 212_992
"""SO_SNDBUF of a socket that bulk is sent to; the kernel doubles it, and cuts it to net.core.wmem_max (socket(7))."""

READ_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_WRITE_EVENTS: Final = READ_EVENTS | select.EPOLLOUT
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

CLOSED: Final = 1
ENDED: Final = 2
BUSY: Final = 4
LEFT: Final = 8
WAITING: Final = 16
"""Why a side is not read: it is closed; its direction is over; a carrier reads it; what was taken must go first; the
other side has no room."""

FOR_NOW: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The kernel cannot take it just now, for want of memory or since this uid has too many fds in flight: tried again."""


class Side:
    """One of the two sockets of a link, and the direction that is read from it and written to ``other``.

    index    0 for the client, 1 for the backend
    sender   the only uid that may send here; -1: any
    passed   bytes read here and passed on
    halted   why nothing is read here now: some of CLOSED, ENDED, BUSY, LEFT and WAITING; 0 nearly always
    left     bytes that were taken here and that ``other`` had no room for; ``pipe``: the same, in a pipe
    ending   the peer sends nothing more after what is queued (EPOLLRDHUP)
    gone     the peer can neither send nor receive any more (EPOLLHUP)
    broken   the peer closed with bytes unread (ECONNRESET)
    spliced  much has come here
    drained  all that the peer sent was taken, and it can send nothing more: no descriptor waits here
    armed    epoll tells of room in this socket
    """

    __slots__ = (
        "armed",
        "broken",
        "drained",
        "ending",
        "fd",
        "gone",
        "halted",
        "index",
        "left",
        "link",
        "other",
        "passed",
        "pipe",
        "put",
        "reset_outcome",
        "sender",
        "sock",
        "spliced",
    )

    other: Side

    def __init__(self, link: Link, sock: socket.socket, index: int, sender: int) -> None:
        self.link = link
        self.sock = sock
        self.fd = sock.fileno()
        self.index = index
        self.sender = sender
        self.reset_outcome = "backend_reset" if index else "client_reset"
        self.passed = 0
        self.left: memoryview | None = None
        self.pipe: Pipe | None = None
        self.halted = 0
        self.ending = self.gone = self.broken = self.drained = self.armed = self.spliced = False

    def face(self, other: Side) -> None:
        """``other`` is where what is read here goes."""
        self.other = other
        self.put = other.sock.send

    def on_events(self, events: int) -> None:
        """What epoll says about this socket."""
        if events & select.EPOLLPRI:  # MSG_OOB: there is no place for it in an ordered copy
            self.link.end("urgent_refused")
            return
        if events & _END:
            self.ending = True
            if events & _GONE:
                self.gone = True
                if events & select.EPOLLERR and self.reset():
                    self.broken = True
        other = self.other
        if other.halted & WAITING and events & (select.EPOLLOUT | _GONE):
            other.halted &= ~WAITING
            other.pump()
            # Where much comes it will wait again soon, and stays armed.
            if self.armed and not (other.halted & WAITING or other.spliced or self.closed):
                self.armed = False
                self.link.loop.watch(self.fd, READ_EVENTS)
        if events & _READABLE and not self.closed:
            self.pump()

    @property
    def closed(self) -> bool:
        return bool(self.halted & CLOSED)

    @property
    def ended(self) -> bool:
        """Is this direction over: its end was passed on, or nobody takes it any more?"""
        return bool(self.halted & ENDED)

    @property
    def busy(self) -> bool:
        """Does a carrier read here just now?"""
        return bool(self.halted & BUSY)

    def retry(self) -> None:
        """Try again what the kernel could not do."""
        self.pump()

    def pump(self) -> None:
        """Pass on what can be read here, one chunk at most; more of it after the others had their turn."""
        raise NotImplementedError

    def cannot_read(self) -> bool:
        """Is there no use in reading now? What waits to be sent on goes first."""
        halted = self.halted
        if halted & ~LEFT:
            if halted & ENDED and self.gone and not halted & CLOSED:
                self._gone_at_last()
            return True
        return bool(halted) and not self._send_what_is_left()

    # ── what could not be sent at once ──

    def keep(self, data: memoryview, error: OSError | None = None) -> None:
        """Keep what was taken and not sent. error: why it was not."""
        self.left = memoryview(bytes(data))
        self.halted |= LEFT
        if error is None or error.errno == errno.EAGAIN:
            self.wait_for_other()
        elif error.errno in FOR_NOW:
            self.link.loop.later(self)
        else:
            self.undeliverable(error)

    def _send_what_is_left(self) -> bool:
        """True when nothing is left."""
        if self.pipe is not None:
            return self._empty(self.pipe)
        left = self.left
        if left is None:
            return True
        try:
            sent = self.put(left)
        except OSError as error:
            self.keep(left, error)
            return False
        self.passed += sent
        if sent < len(left):
            self.left = left[sent:]
            self.wait_for_other()
            return False
        self.left = None
        self.halted &= ~LEFT
        return True

    def wait_for_other(self) -> None:
        """Go on when the other side has room."""
        other = self.other
        self.halted |= WAITING
        if not other.armed:
            other.armed = True
            self.link.loop.watch(other.fd, _WRITE_EVENTS)

    # ── bulk ──

    def _prepare_for_bulk(self) -> None:
        """Fewer, larger pieces: have ``other``'s socket hold more of what is spliced to it."""
        if not self.spliced:
            self.spliced = True
            with contextlib.suppress(OSError):
                self.other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BULK_BUFFER)

    def splice(self, limit: int) -> int | None:
        """Move so many bytes at most without a copy, of which none may carry descriptors. Gives how many came from
        here; fewer when it is dry, or when some wait in the pipe; None when there is no pipe to be had.
        """
        loop = self.link.loop
        pipe = loop.pipes.take()
        if pipe is None:
            return None
        self._prepare_for_bulk()
        left = limit
        while left:
            try:
                moved = os.splice(self.fd, pipe.writing, left, flags=_SPLICE)
            except BlockingIOError:
                loop.pipes.give_back(pipe)
                if self.ending:
                    self.end_of_stream()
                return limit - left
            except ConnectionResetError:
                loop.pipes.give_back(pipe)
                self.was_reset()
                return limit - left
            except OSError:
                loop.pipes.give_back(pipe)
                return None
            if not moved:
                loop.pipes.give_back(pipe)
                self.end_of_stream()
                return limit - left
            left -= moved
            pipe.held = moved
            if not self._empty(pipe, kept=True):
                return limit - left
        loop.pipes.give_back(pipe)
        return limit

    def _empty(self, pipe: Pipe, *, kept: bool = False) -> bool:
        """Send on what is in the pipe; true when all went. kept: the caller goes on with the empty pipe."""
        try:
            sent = os.splice(pipe.reading, self.other.fd, pipe.held, flags=_SPLICE)
        except OSError as error:
            self.pipe = pipe
            self.halted |= LEFT
            if error.errno == errno.EAGAIN:
                self.wait_for_other()
            elif error.errno in FOR_NOW:
                self.link.loop.later(self)
            else:
                self.undeliverable(error)
            return False
        self.passed += sent
        pipe.held -= sent
        if pipe.held:
            self.pipe = pipe
            self.halted |= LEFT
            self.wait_for_other()
            return False
        self.pipe = None
        self.halted &= ~LEFT
        if not kept:
            self.link.loop.pipes.give_back(pipe)
        return True

    # ── ends ──

    def was_reset(self) -> None:
        """Reading has told that the peer closed with bytes unread; what it had sent before is still to be read."""
        self.ending = self.gone = self.broken = True
        self.pump()

    def end_of_stream(self) -> None:
        """All that was sent here is passed on, and nothing more will come."""
        link, other = self.link, self.other
        self.drained = True
        if self.broken or self.reset():  # the hang-up can show before it
            link.finish(self.reset_outcome)
            return
        self.halted |= ENDED
        if other.ended or self.gone:
            link.finish()
            return
        try:
            other.sock.shutdown(socket.SHUT_WR)
        except OSError:  # its peer has gone: that side's own event says so
            other.gone = True

    def _gone_at_last(self) -> None:
        """The peer had ended its direction before; now it has closed: with bytes unread, or having read everything."""
        self.link.finish(self.reset_outcome if self.broken else "")

    def undeliverable(self, error: OSError) -> None:
        """The other side takes nothing any more (EPIPE, or its reset): let the peer here feel the same."""
        other = self.other
        self.halted |= ENDED
        self.left = None
        self._drop_pipe()
        if error.errno == errno.ECONNRESET:
            other.broken = other.gone = other.ending = True
        self.link.outcome = other.reset_outcome
        try:
            self.sock.shutdown(socket.SHUT_RD)
        except OSError:
            self.gone = True
        if other.ended:
            self.link.finish()
            return
        self.discard()
        if not self.closed:
            self.link.loop.again(other)

    def discard(self) -> None:
        """Take what nobody will get: a peer that polls for room would not hear of the shutdown else."""
        raise NotImplementedError

    def reset(self) -> bool:
        """Has the peer closed with bytes unread? Says so once (socket(7), SO_ERROR)."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _drop_pipe(self) -> None:
        pipe, self.pipe = self.pipe, None
        self.halted &= ~LEFT
        if pipe is not None:
            self.link.loop.pipes.give_back(pipe)

    def close(self) -> None:
        """Close it, where descriptors may wait in it by a carrier."""
        self.halted |= CLOSED
        self._drop_pipe()
        if self.busy:
            self.link.loop.carriers.cancel(self.sock)
        if self.busy or self.other.busy:  # a carrier has a copy: its peer is to see the end all the same
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        if self.drained:
            self.sock.close()
        else:
            foreign.end(self.sock, self.link.loop.carriers)
