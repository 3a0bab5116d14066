"""A side on which descriptors may come. It is peeked without room for them, passed on, and what was passed on is taken.

The peek installs no descriptor, and tells of one (MSG_CTRUNC). Then the bytes before it are passed on, and a carrier
passes on the message that has it: no descriptor of a peer is ever open in this process.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from sockguard.carriers.jobs import Job, Op, Problem, Report
from sockguard.privsep import foreign
from sockguard.privsep.ancillary import CREDENTIALS_BYTES, CUT, sender
from sockguard.privsep.messages import MAX_FDS
from sockguard.relay.boundary import PEEK_SEES_ALL, boundary, carries_fds, plain_bytes, untaken
from sockguard.relay.side import BULK, BUSY, CHUNK, FOR_NOW, Side

if TYPE_CHECKING:
    from sockguard.relay.stream import Link

MAX_IN_FLIGHT: Final = 4 * MAX_FDS
"""fds that one direction may have on their way at once: the kernel counts them by uid, for all connections together."""

PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

_view: Final = memoryview(bytearray(CHUNK))
_views: Final = [_view]
_scratch: Final = bytearray(CHUNK)  # where bytes go that were passed on already


class PeekingSide(Side):
    """room       bytes for ancillary data: for the sender's credentials where it matters, else none
    in_flight  fds passed on since ``other`` was last seen to have taken everything
    asked      the kernel was told what each message is to bring, and what not
    bulk       much comes here at a time, so what carries no fds is spliced
    """

    __slots__ = ("asked", "bulk", "in_flight", "peek", "room", "take")

    def __init__(self, link: Link, sock: socket.socket, index: int, sender: int) -> None:
        super().__init__(link, sock, index, sender)
        self.in_flight = self.room = 0
        self.bulk = self.asked = False
        self.peek, self.take = sock.recvmsg_into, sock.recv_into
        if sender >= 0:
            # The listener has had SO_PASSCRED set before the first byte, unless a reload asked for it when this
            # connection was on its way: then what came meanwhile is nobody's, and ends it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.room = CREDENTIALS_BYTES

    def pump(self) -> None:
        if self.halted and self.cannot_read():
            return
        if self.bulk and self._pump_bulk():
            return
        try:
            length, control, flags, _ = self.peek(_views, self.room, PEEK)
        except BlockingIOError:
            if self.ending:
                self.end_of_stream()
            return
        except ConnectionResetError:
            self.was_reset()
            return
        if flags or control:
            self._pass_with_control(length, control, flags)
            return
        if not length:
            self.end_of_stream()
            return
        try:  # as _pass, and saves its call
            sent = self.put(_view[:length])
        except OSError as error:
            self._not_sent(error)
            return
        self.passed += sent
        taken = self.take(_scratch, sent)
        if taken != sent:
            self._take(sent - taken)
        if sent < length:
            self.wait_for_other()
        elif length == CHUNK:
            self.bulk = PEEK_SEES_ALL and not self.room
            self.link.loop.again(self)
        elif self.ending:
            self.link.loop.again(self)

    def _pass(self, length: int) -> bool:
        """Pass on the first bytes of the peek; true when all went."""
        try:
            sent = self.put(_view[:length])
        except OSError as error:
            self._not_sent(error)
            return False
        self.passed += sent
        taken = self.take(_scratch, sent)
        if taken != sent:  # it stops before an urgent byte
            self._take(sent - taken)
        if sent < length:
            self.wait_for_other()
            return False
        return True

    def _take(self, count: int) -> None:
        while count:
            count -= self.take(_scratch, count)

    def _not_sent(self, error: OSError) -> None:
        """Nothing was taken: it is all in the kernel's queue."""
        if error.errno == errno.EAGAIN:
            self.wait_for_other()
        elif error.errno in FOR_NOW:
            self.link.loop.later(self)
        else:
            self.undeliverable(error)

    def _pump_bulk(self) -> bool:
        """False: it is better copied."""
        count = min(plain_bytes(self.sock), BULK)
        if count < CHUNK // 2:
            self.bulk = False
            return False
        moved = self.splice(count)
        if moved == count and not self.halted:
            self.link.loop.again(self)
        return moved is not None

    def _pass_with_control(self, length: int, control: list[tuple[int, int, bytes]], flags: int) -> None:
        """A peek that told of more than bytes: fds, or the sender's credentials, or both."""
        if not length:
            self.end_of_stream()
        elif self.sender >= 0 and sender(control) != self.sender:
            self.link.end("sender_changed")
        elif flags & CUT:
            if not self.more_comes_than_fds():
                self._pass_fds(length)
        elif self._pass(length):
            self.link.loop.again(self)  # the peek may have ended where another sender's bytes begin

    def more_comes_than_fds(self) -> bool:
        """Does each message bring what nobody here asks for, since the listener was set to it when this connection came
        in? Then no more, and what is queued is looked at again.
        """
        if self.asked:
            return False
        self.asked = True
        foreign.ask_for_nothing(self.sock, credentials=bool(self.room))
        self.link.loop.again(self)
        return True

    def _pass_fds(self, length: int) -> None:
        """First the plain bytes before the message that has fds, then that with them."""
        link = self.link
        if link.options.refuse_fds:
            link.end("fds_refused")
            return
        start = boundary(self.sock, _view, length)
        if not start and length == CHUNK and not carries_fds(self.sock, 0, length):
            start = length
        if start:
            if self._pass(start):
                link.loop.again(self)
            return
        if self.in_flight > MAX_IN_FLIGHT - MAX_FDS:
            if untaken(self.other.fd):
                self.wait_for_other()
                return
            self.in_flight = 0
        self.carry(Job(Op.CARRY, 0, length, self.sender))

    def carry(self, job: Job) -> None:
        """Have a carrier pass on what is first in the queue."""
        self.halted |= BUSY
        link = self.link
        link.loop.carriers.carry((link.user, self.index), job, self.sock, self.other.sock, self._carried)

    def _carried(self, report: Report) -> None:
        self.halted &= ~BUSY
        if self.closed:
            return
        link = self.link
        try:
            self._go_on(report)
            if link.finishing and not self.closed:
                link.finish()
        except Exception as error:
            link.fail(error)

    def _go_on(self, report: Report) -> None:
        if report.reset:
            self.ending = self.gone = self.broken = True
        link = self.link
        match report.problem:
            case Problem.NONE:
                self.passed += report.size
                self.in_flight += report.fds
                link.loop.again(self)
            case Problem.NOT_THERE:  # the end, or nothing: reading tells
                link.loop.again(self)
            case Problem.FULL:
                self.wait_for_other()
            case Problem.FOR_NOW:
                link.loop.later(self)
            case Problem.GONE:
                self.undeliverable(BrokenPipeError(errno.EPIPE, ""))
            case Problem.RESET:
                self.undeliverable(ConnectionResetError(errno.ECONNRESET, ""))
            case Problem.TOO_LARGE:
                self.too_large(report.size)
            case Problem.CUT:
                link.end("out_of_files")
            case Problem.SENDER:
                link.end("sender_changed")
            case Problem.STUCK:
                link.end("fds_stuck")
            case _:
                link.end("failed", "a carrier could not pass on descriptors")

    def too_large(self, length: int) -> None:
        """Only a record can be too large for the other side's buffer."""
        self.link.end("failed", f"{length} bytes are too many for one message")

    def discard(self) -> None:
        try:
            while True:
                length, _, flags, _ = self.peek(_views, self.room, PEEK)
                if not length:
                    self.drained = True
                    return
                if flags & CUT:
                    self.link.end(self.link.outcome)  # a peer that waits for room would wait for ever
                    return
                self._take(length)
        except OSError:  # dry
            return
