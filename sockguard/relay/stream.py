"""A connection of a `stream` proxy: bytes, half-closes, passed fds and resets, both ways, unread by anyone.

Nothing is held here in the way of bytes while a reader is slow: with `fds = "forward"` they are peeked, passed on,
and only what was passed on is taken from the kernel's queue; so memory stays flat and no fd is ever without a home.
One byte that was passed on stays unread as long as the connection lives. It costs nothing, and if the other side
resets, closing with it unread is what makes this side's peer see ECONNRESET instead of a clean end of file
(SO_LINGER does nothing on AF_UNIX).

All descriptors are edge-triggered: a side is read until it is dry or its other side is full.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import termios
from array import array
from typing import TYPE_CHECKING, Final

from sockguard.privsep.channel import close_all, received_fds
from sockguard.relay.ancillary import CONTROL_BYTES, PEEK, boundary

if TYPE_CHECKING:
    from sockguard.relay.loop import Loop

CHUNK: Final = 64 * 1024
"""Bytes read at a time: one buffer for the whole process, and what one wake may do for one side."""

READ_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WRITE_EVENTS: Final = READ_EVENTS | select.EPOLLOUT
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR

_buffer: Final = bytearray(CHUNK)
_view: Final = memoryview(_buffer)
_views: Final = [_view]
_scratch: Final = bytearray(CHUNK)  # where bytes go that were passed on already


class Link:
    """One connection. ``number`` is control's name for it, ``idle_ticks`` its idle timeout in ticks (0: none)."""

    __slots__ = ("backend", "client", "idle_ticks", "loop", "number", "outcome", "refuse_fds", "seen")

    def __init__(
        self,
        loop: Loop,
        number: int,
        client: socket.socket,
        backend: socket.socket,
        *,
        refuse_fds: bool,
        idle_ticks: int,
    ) -> None:
        self.loop = loop
        self.number = number
        self.refuse_fds = refuse_fds
        self.idle_ticks = idle_ticks
        self.seen = loop.tick
        self.outcome = ""
        self.client = Side(self, client, "client_reset")
        self.backend = Side(self, backend, "backend_reset")
        self.client.other = self.backend
        self.backend.other = self.client

    def cut(self, side: Side) -> None:
        """``side`` was reset, and all it had sent is passed on: show that to the other side."""
        self.end(side.reset_outcome, clean=False)

    def finish(self) -> None:
        """Both directions have ended by themselves."""
        outcome = self.outcome or "closed"
        for side in (self.client, self.backend):
            side.take_the_byte_behind()
            if side.unread():  # its peer wrote on to a side that had gone
                outcome = side.other.reset_outcome
        self.end(outcome, clean=True)

    def end(self, outcome: str, *, clean: bool) -> None:
        """Close both sockets and tell. Not ``clean``: with a byte unread, so that a peer sees a reset."""
        for side in (self.client, self.backend):
            if clean:
                side.take_the_byte_behind()
            self.loop.forget(side.fd)
            side.closed = True
            side.sock.close()
        self.loop.link_ended(self.number, self.client.passed, self.backend.passed, outcome)


class Side:
    """One of the two sockets of a link, and the direction that is read from it and written to ``other``.

    passed     bytes read here and passed on
    behind     1 when the last byte passed on still stands unread in the kernel's queue, else 0
    ending     the peer sends nothing more after what is queued (EPOLLRDHUP)
    gone       the peer can neither send nor receive any more (EPOLLHUP)
    broken     the peer closed with bytes unread (ECONNRESET)
    ended      this direction is over: its end was passed on, or nobody takes it any more
    full       ``other`` waits for room in this socket
    """

    __slots__ = (
        "behind",
        "broken",
        "closed",
        "ended",
        "ending",
        "fd",
        "full",
        "gone",
        "link",
        "other",
        "passed",
        "peek",
        "reset_outcome",
        "send",
        "sock",
        "take",
    )

    other: Side

    def __init__(self, link: Link, sock: socket.socket, reset_outcome: str) -> None:
        self.link = link
        self.sock = sock
        self.fd = sock.fileno()
        self.reset_outcome = reset_outcome
        self.passed = self.behind = 0
        self.ending = self.gone = self.broken = self.ended = self.full = self.closed = False
        self.peek, self.send, self.take = sock.recvmsg_into, sock.send, sock.recv_into

    def on_events(self, events: int) -> None:
        """What epoll says about this socket."""
        if events & _END:
            self.ending = True
            if events & _GONE:
                self.gone = True
                if events & select.EPOLLERR and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.broken = True
        if self.full and events & (select.EPOLLOUT | _GONE):
            self.full = False
            self.link.loop.watch(self.fd, READ_EVENTS)
            self.other.pump()
        if events & _READABLE and not self.closed:
            self.pump()

    def pump(self) -> None:
        """Pass on what can be read here, one chunk at most; more of it after the others had their turn."""
        if self.closed or self.ended or self.other.full:
            if self.ended and self.gone and not self.closed:
                self.link.finish()
            return
        try:
            length, control, flags, _ = self.peek(_views, CONTROL_BYTES, PEEK)
        except BlockingIOError:
            if self.ending:
                self._end_of_stream()
            return
        except ConnectionResetError:
            self.ending = self.gone = self.broken = True
            self.pump()
            return
        behind = self.behind
        if control:
            self._pass_fds(length, received_fds(control), flags)
        elif length > behind:
            self._pass(behind, length)
            if length == CHUNK or self.ending:
                self.link.loop.again(self)
        elif self.ending or not length:
            self._end_of_stream()

    def _pass(self, start: int, end: int) -> bool:
        """Pass on bytes start..end of the peek; true when all went."""
        try:
            sent = self.send_to_other(_view[start:end])
        except BlockingIOError:
            self._wait_for_other()
            return False
        except OSError as error:
            self._undeliverable(error)
            return False
        self.passed += sent
        if start + sent > 1:
            self.take(_scratch, start + sent - 1)
        self.behind = 1
        self.link.seen = self.link.loop.tick
        if start + sent < end:
            self._wait_for_other()
            return False
        return True

    def send_to_other(self, data: memoryview) -> int:
        return self.other.send(data)

    def _pass_fds(self, length: int, fds: list[int], flags: int) -> None:
        """A peek showed fds (ours now, as copies): first the plain bytes before their message, then that with them."""
        link = self.link
        try:
            if flags & socket.MSG_CTRUNC:
                link.end("out_of_files", clean=False)
                return
            if link.refuse_fds:
                link.end("fds_refused", clean=False)
                return
            behind = self.behind
            start = boundary(self.sock, _view, behind, length)
            if start > behind:
                if self._pass(behind, start):
                    link.loop.again(self)
                return
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
                sent = self.other.sock.sendmsg([_view[start:length]], rights)
            except BlockingIOError:
                self._wait_for_other()
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # this uid has too many fds in flight; they will be received
                    link.loop.later(self)
                else:
                    self._undeliverable(error)
                return
        finally:
            close_all(fds)
        self.passed += sent
        # Taking any byte of that message takes its fds along, so a message of one byte is taken whole.
        self.behind = 1 if sent > 1 else 0
        self.take(_scratch, start + sent - self.behind)
        link.seen = link.loop.tick
        if start + sent < length:
            self._wait_for_other()
        else:
            link.loop.again(self)

    def _wait_for_other(self) -> None:
        other = self.other
        other.full = True
        self.link.loop.watch(other.fd, _WRITE_EVENTS)

    def _end_of_stream(self) -> None:
        """All that was sent here is passed on, and nothing more will come."""
        link, other = self.link, self.other
        if self.broken:
            link.cut(self)
            return
        self.ended = True
        if other.ended or self.gone:
            link.finish()
            return
        try:
            other.sock.shutdown(socket.SHUT_WR)
        except OSError:  # its peer has gone: that side's own event says so
            other.gone = True

    def _undeliverable(self, error: OSError) -> None:
        """The other side takes nothing any more (EPIPE, or its reset): let the peer here feel the same."""
        other = self.other
        self.ended = True
        if error.errno == errno.ECONNRESET:
            other.broken = other.gone = other.ending = True
        self.link.outcome = other.reset_outcome
        try:
            self.sock.shutdown(socket.SHUT_RD)
        except OSError:
            self.gone = True
        if other.ended:
            self.link.finish()
        else:
            self.link.loop.again(other)

    def take_the_byte_behind(self) -> None:
        if self.behind:
            self.behind = 0
            try:
                self.take(_scratch, 1)
            except OSError:
                return

    def unread(self) -> int:
        """Bytes in this socket's receive queue (unix(7), SIOCINQ)."""
        count = array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, count)
        return count[0]
