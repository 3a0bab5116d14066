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
from sockguard.privsep.messages import MAX_FDS
from sockguard.relay.ancillary import CONTROL_BYTES, CUT, PEEK, boundary, carries_fds, sender, untaken
from sockguard.relay.faults import place_of

if TYPE_CHECKING:
    from sockguard.relay.loop import Loop
    from sockguard.relay.options import Options

CHUNK: Final = 64 * 1024
"""Bytes read at a time: one buffer for the whole process, and what one wake may do for one side."""

READ_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_WRITE_EVENTS: Final = READ_EVENTS | select.EPOLLOUT
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_URGENT: Final = int(socket.MSG_OOB | socket.MSG_PEEK)

FOR_NOW: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The kernel cannot take it just now, for want of memory or since this uid has too many fds in flight: tried again."""

MAX_IN_FLIGHT: Final = 4 * MAX_FDS
"""fds that one direction may have on their way at once: the kernel counts them by uid, for all connections together."""

_buffer: Final = bytearray(CHUNK)
_view: Final = memoryview(_buffer)
_views: Final = [_view]
_scratch: Final = bytearray(CHUNK)  # where bytes go that were passed on already


class Link:
    """One connection. ``number`` is control's name for it, ``uid`` that of the client who connected."""

    __slots__ = ("backend", "client", "loop", "number", "options", "outcome", "seen")

    def __init__(
        self, loop: Loop, number: int, client: socket.socket, backend: socket.socket, options: Options, uid: int
    ) -> None:
        self.loop = loop
        self.number = number
        self.options = options
        self.seen = loop.tick
        self.outcome = ""
        self.client = self.side(client, "client_reset")
        self.backend = self.side(backend, "backend_reset")
        if options.same_user:
            self.client.only_from(uid)
        self.client.other = self.backend
        self.backend.other = self.client

    def start(self) -> None:
        """Both sides are in the loop, which tells of what comes."""

    def on_time(self) -> bool:
        """A tick of the loop's clock. False when this link waits for no time any more."""
        if self.options.idle_ticks and self.loop.tick - self.seen > self.options.idle_ticks:
            self.end("idle_timeout", clean=False)
            return False
        return self.options.idle_ticks > 0

    def side(self, sock: socket.socket, reset_outcome: str) -> Side:
        """What reads one of the two sockets."""
        return Side(self, sock, reset_outcome)

    def cut(self, side: Side) -> None:
        """``side`` was reset, and all it had sent is passed on: show that to the other side."""
        self.end(side.reset_outcome, clean=False)

    def finish(self) -> None:
        """Both directions have ended by themselves."""
        for side in (self.client, self.backend):
            if side.reset():  # the kernel shows the end a moment before it shows the reset (unix_release_sock)
                self.cut(side)
                return
        outcome = self.outcome or "closed"
        for side in (self.client, self.backend):
            side.take_the_byte_behind()
            if side.unread():  # its peer wrote on to a side that had gone
                outcome = side.other.reset_outcome
        self.end(outcome, clean=True)

    def fail(self, error: Exception) -> None:
        """That was raised while it was served, which nobody expects: it ends this connection, and no other."""
        if not self.client.closed:
            self.end("failed", place_of(error), clean=False)

    def end(self, outcome: str, why: str = "", *, clean: bool) -> None:
        """Close both sockets and tell. Not ``clean``: with a byte unread, so that a peer sees a reset."""
        for side in (self.client, self.backend):
            if clean:
                side.take_the_byte_behind()
            self.loop.forget(side.fd)
            side.closed = True
            side.sock.close()
        self.loop.link_ended(self.number, self.client.passed, self.backend.passed, outcome, why)


class Side:
    """One of the two sockets of a link, and the direction that is read from it and written to ``other``.

    passed     bytes read here and passed on
    behind     1 when the last byte passed on still stands unread in the kernel's queue, else 0
    stay       whether to stay behind (1 or 0): not where senders are looked at, since a byte of one would hide that
               the next are another's
    passes_fds fds have come here: then the byte behind stays for a tick of silence or two, or whoever sent them
               (another sockguard with its MAX_IN_FLIGHT) could not tell that they were taken
    sender     the only uid that may send here; -1: any
    in_flight  fds passed on since ``other`` was last seen to have taken everything
    ending     the peer sends nothing more after what is queued (EPOLLRDHUP)
    gone       the peer can neither send nor receive any more (EPOLLHUP)
    broken     the peer closed with bytes unread (ECONNRESET)
    ended      this direction is over: its end was passed on, or nobody takes it any more
    full       ``other`` waits for room in this socket; armed: epoll tells of room
    """

    __slots__ = (
        "armed",
        "behind",
        "broken",
        "closed",
        "ended",
        "ending",
        "fd",
        "full",
        "gone",
        "in_flight",
        "link",
        "other",
        "passed",
        "passes_fds",
        "peek",
        "reset_outcome",
        "send",
        "sender",
        "sock",
        "stay",
        "take",
    )

    other: Side

    def __init__(self, link: Link, sock: socket.socket, reset_outcome: str) -> None:
        self.link = link
        self.sock = sock
        self.fd = sock.fileno()
        self.reset_outcome = reset_outcome
        self.passed = self.behind = self.in_flight = 0
        self.stay = 1
        self.sender = -1
        self.passes_fds = False
        self.ending = self.gone = self.broken = self.ended = self.full = self.armed = self.closed = False
        self.peek, self.send, self.take = sock.recvmsg_into, sock.send, sock.recv_into

    def only_from(self, uid: int) -> None:
        """Let nobody but ``uid`` send here. The listener has had SO_PASSCRED set before the first byte, unless a reload
        asked for it when this connection was on its way: then what came meanwhile is nobody's, and ends it.
        """
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sender = uid
        self.stay = 0

    def on_events(self, events: int) -> None:
        """What epoll says about this socket."""
        if events & select.EPOLLPRI:  # MSG_OOB: there is no place for it in an ordered copy
            self.link.end("urgent_refused", clean=False)
            return
        if events & _END:
            self.ending = True
            if events & _GONE:
                self.gone = True
                if events & select.EPOLLERR and self.reset():
                    self.broken = True
        if self.full and events & (select.EPOLLOUT | _GONE):
            self.full = False
            self.other.pump()
            if self.armed and not self.full and not self.closed:
                self.armed = False
                self.link.loop.watch(self.fd, READ_EVENTS)
        if events & _READABLE and not self.closed:
            self.pump()

    def retry(self) -> None:
        """Try again what the kernel could not do."""
        self.pump()

    def pump(self) -> None:
        """Pass on what can be read here, one chunk at most; more of it after the others had their turn."""
        if self.closed or self.ended or self.other.full:
            if self.ended and self.gone and not self.closed:
                self._gone_at_last()
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
        if length and not behind and self._is_urgent():
            close_all(received_fds(control))
            self.link.end("urgent_refused", clean=False)
        elif control or flags & CUT:
            self._pass_with_control(length, control, flags)
        elif length > behind:
            passed = self._pass(behind, length)
            if (length == CHUNK or self.ending) and (passed or self.ended):
                self.link.loop.again(self)
        elif self.ending or not length:
            self._end_of_stream()

    def _is_urgent(self) -> bool:
        """Is an urgent byte here, that came since epoll was asked? A peek passes over one that is first in the queue,
        and taking what stands behind it drops it in silence; a byte behind keeps it from being first.
        """
        try:
            return self.take(_scratch, 1, _URGENT) > 0
        except OSError:  # EINVAL: there is none
            return False

    def _pass(self, start: int, end: int) -> bool:
        """Pass on bytes start..end of the peek; true when all went."""
        try:
            sent = self.other.send(_view[start:end])
        except BlockingIOError:
            self._wait_for_other()
            return False
        except OSError as error:
            if error.errno in FOR_NOW:
                self.link.loop.later(self)
            else:
                self._undeliverable(error)
            return False
        self.passed += sent
        stay = self.stay
        taken = start + sent - stay
        if taken:
            self.take(_scratch, taken)
        self.behind = stay
        if self.passes_fds:
            self._stay_behind(stay)
        self.link.seen = self.link.loop.tick
        if start + sent < end:
            self._wait_for_other()
            return False
        return True

    def _stay_behind(self, stay: int) -> None:
        if stay and self.passes_fds:
            self.link.loop.catch_up(self)
        self.behind = stay

    def _pass_with_control(self, length: int, control: list[tuple[int, int, bytes]], flags: int) -> None:
        """A peek that came with more than bytes: fds, or the sender's credentials, or both."""
        fds = received_fds(control)
        if self.sender >= 0 and length and sender(control) != self.sender:
            close_all(fds)
            self.link.end("sender_changed", clean=False)
        elif fds or flags & CUT:
            self._pass_fds(length, fds, flags)
        elif not length:
            self._end_of_stream()
        elif self._pass(self.behind, length):
            self.link.loop.again(self)  # the peek may have ended where another sender's bytes begin

    def _pass_fds(self, length: int, fds: list[int], flags: int) -> None:
        """A peek showed fds (ours now, as copies): first the plain bytes before their message, then that with them."""
        link = self.link
        try:
            if flags & CUT:
                link.end("out_of_files", clean=False)
                return
            if link.options.refuse_fds:
                link.end("fds_refused", clean=False)
                return
            behind = self.behind
            start = boundary(self.sock, _view, length)
            if start <= behind and length == CHUNK and not carries_fds(self.sock, start, length):
                start = length
            if start > behind:
                if self._pass(behind, start):
                    link.loop.again(self)
                return
            if self.in_flight + len(fds) > MAX_IN_FLIGHT and untaken(self.other.fd):
                self._wait_for_other()
                return
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
                sent = self.other.sock.sendmsg([_view[start:length]], rights)
            except BlockingIOError:
                self._wait_for_other()
                return
            except OSError as error:
                if error.errno in FOR_NOW:
                    link.loop.later(self)
                else:
                    self._undeliverable(error)
                return
        finally:
            close_all(fds)
        self.passed += sent
        self.in_flight = self.in_flight + len(fds) if self.in_flight + len(fds) <= MAX_IN_FLIGHT else len(fds)
        # Taking any byte of that message takes its fds along, so a message of one byte is taken whole.
        stay = self.stay if sent > 1 else 0
        self.take(_scratch, start + sent - stay)
        self.passes_fds = True
        self._stay_behind(stay)
        link.seen = link.loop.tick
        if start + sent < length:
            self._wait_for_other()
        else:
            link.loop.again(self)

    def _wait_for_other(self) -> None:
        other = self.other
        other.full = True
        if not other.armed:
            other.armed = True
            self.link.loop.watch(other.fd, _WRITE_EVENTS)

    def _end_of_stream(self) -> None:
        """All that was sent here is passed on, and nothing more will come."""
        link, other = self.link, self.other
        if self.broken or self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # the hang-up can show before it
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

    def _gone_at_last(self) -> None:
        """The peer had ended its direction before; now it has closed: with bytes unread, or having read everything."""
        if self.broken:
            self.link.cut(self)
        else:
            self.link.finish()

    def _undeliverable(self, error: OSError) -> None:
        """The other side takes nothing any more (EPIPE, or its reset): let the peer here feel the same."""
        other = self.other
        self.ended = True
        if error.errno == errno.ECONNRESET:
            other.broken = other.gone = other.ending = True
        self.link.outcome = other.reset_outcome
        try:
            self.sock.shutdown(socket.SHUT_RD)
            self._discard()
        except OSError:
            self.gone = True
        if other.ended:
            self.link.finish()
        else:
            self.link.loop.again(other)

    def _discard(self) -> None:
        """Take what nobody will get, all but a byte: a peer that polls for room would not hear of the shutdown else."""
        while (left := self.unread()) > 1:
            self.take(_scratch, min(left - 1, CHUNK))

    def take_the_byte_behind(self) -> None:
        if self.behind and not self.closed:
            self.behind = 0
            try:
                self.take(_scratch, 1)
            except OSError:
                return

    def reset(self) -> bool:
        """Has the peer closed with bytes unread? Says so once (socket(7), SO_ERROR)."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def unread(self) -> int:
        """Bytes in this socket's receive queue (unix(7), SIOCINQ)."""
        count = array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, count)
        return count[0]
