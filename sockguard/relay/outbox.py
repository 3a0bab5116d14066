"""What waits to be written to one side of an inspected connection (inspected.py): bytes in their order, and fds.

It is written at once where it can be. What cannot is kept here, and the kernel's event, the clock, or a carrier's
report has it tried again; so each way out of here leaves one of the three behind, or nothing that waits. Bytes with
fds are always a carrier's to send: it keeps the fds, and here is only their number.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from sockguard.carriers.jobs import MAX_PART, Job, Op, Problem, Report
from sockguard.relay.boundary import untaken
from sockguard.relay.peeking import MAX_IN_FLIGHT
from sockguard.relay.side import FOR_NOW, READ_EVENTS

if TYPE_CHECKING:
    from sockguard.relay.inspected import InspectedLink
    from sockguard.relay.inspected_side import InspectedSide

_WRITE_EVENTS: Final = READ_EVENTS | select.EPOLLOUT

Data = bytes | bytearray | memoryview


class Outbox:
    """The half of a side that is written to. The fds that go out here have come from ``other``.

    out       what waits, with how many fds, or ~ how many are closed at this place in their order
    held      what waits behind bytes that pass to here unseen
    queued    bytes in both
    carried   a carrier sends the first of ``out``
    armed     epoll tells of room
    in_flight fds passed on to here since the peer was last seen to have taken everything
    deaf      the peer takes nothing any more, or this is closed: what is sent here goes nowhere
    broken    the peer closed with bytes unread (ECONNRESET)
    shut      write no more here; done when all is out
    """

    __slots__ = (
        "armed",
        "broken",
        "carried",
        "closed",
        "deaf",
        "fd",
        "held",
        "in_flight",
        "link",
        "loop",
        "other",
        "out",
        "put",
        "queued",
        "shut",
        "sock",
    )

    other: InspectedSide

    def __init__(self, link: InspectedLink, sock: socket.socket) -> None:
        self.link = link
        self.loop = link.loop
        self.sock = sock
        self.fd = sock.fileno()
        self.put = sock.send
        self.queued = self.in_flight = 0
        self.out: deque[tuple[Data, int]] = deque()
        self.held: list[tuple[bytes, int]] = []
        self.armed = self.broken = self.carried = self.closed = self.deaf = self.shut = False

    @property
    def _whole(self) -> InspectedSide:
        """This side, with the half that is read."""
        return self.other.other

    def write(self, data: Data) -> None:
        """Write now what goes, keep a copy of the rest. What was told of a request is with control first."""
        if self.out or (self.loop.untold and self.loop.is_untold(self._whole)):
            self._keep(data, 0, 0)
        elif not self.deaf:
            try:
                sent = self.put(data)
            except OSError as error:
                self.not_written(data, error)
            else:
                if sent < len(data):
                    self.written_in_part(data, sent)

    def not_written(self, data: Data, error: OSError) -> None:
        """``put`` has failed."""
        if not self._lost(error):
            self._keep(data, 0, 0)

    def written_in_part(self, data: Data, sent: int) -> None:
        """``put`` has sent less than all."""
        self._wait()
        self._keep(data, sent, 0)

    def write_fds(self, data: Data, fds: int) -> None:
        """As write, with so many fds, the first of those from ``other`` that a carrier keeps."""
        if not fds:
            self.write(data)
        elif fds < 0:
            self.drop_in_turn(~fds)
        elif self.deaf:
            self.other.drop(fds)
        else:
            self._keep(data, 0, fds)
            if len(self.out) == 1:
                self.flush()

    def drop_in_turn(self, fds: int) -> None:
        """Have so many closed, behind those that wait to be sent here: a carrier keeps them in their order."""
        if any(count for _, count in self.held):
            self.held.append((b"", ~fds))
        elif any(count for _, count in self.out):
            self.out.append((b"", ~fds))
        else:
            self.other.drop(fds)

    def _keep(self, data: Data, sent: int, fds: int) -> None:
        self.out.append((memoryview(bytes(data[sent:])), fds))
        self.queued += len(data) - sent
        self._in_the_way()

    def hold(self, data: Data, fds: int) -> None:
        """Keep it until the bytes that pass to here are complete."""
        self.held.append((bytes(data), fds))
        self.queued += len(data)
        self._in_the_way()

    def _in_the_way(self) -> None:
        """Something waits to be written here, or cannot be: neither side is read without a look at that."""
        self.other.clear = self._whole.clear = False

    def release(self) -> None:
        """The bytes that passed to here are complete: what waited behind them follows."""
        if self.held:
            held, self.held = self.held, []
            self.queued -= sum(len(data) for data, _ in held)
            for data, fds in held:
                self.write_fds(data, fds)
            self.loop.again(self._whole)  # it may have been read no further for what was held
        if self.shut:
            self.shut_down()

    def shut_down(self) -> None:
        """Write no more than what waits already, or passes to here."""
        self.shut = True
        if not self.queued and not self.out and self.other.passing <= 0 and not self.deaf:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:  # the peer has gone: reading says so
                self.deaf = True
                self._in_the_way()

    def flush(self) -> bool:
        """Write what waits; true when nothing does any more, unless the link has ended meanwhile."""
        while self.out:
            if self.carried or self.loop.is_untold(self._whole):
                return False
            data, fds = self.out[0]
            if fds > 0:
                self._have_carried(data, fds)
                return False
            if fds < 0:
                self.other.drop(~fds)
                self.out.popleft()
                continue
            try:
                sent = self.put(data)
            except OSError as error:
                if self._lost(error):
                    break
                return False
            self._sent(sent)
            if self.out and sent < len(data):
                self._wait()
                return False
        if self.closed:
            return False
        if self.armed:
            self.armed = False
            self.loop.watch(self.fd, READ_EVENTS)
        if self.shut:
            self.shut_down()
        return True

    def _sent(self, count: int) -> None:
        """So many bytes of the first of ``out`` have gone, and its fds with them."""
        data, _ = self.out.popleft()
        self.queued -= count
        if count:
            self.link.seen = self.loop.tick
        if count < len(data):
            self.out.appendleft((data[count:], 0))

    def _have_carried(self, data: Data, fds: int) -> None:
        """Have the carrier that keeps the fds send them, with the bytes that they come with."""
        if self.in_flight + fds > MAX_IN_FLIGHT:
            if untaken(self.fd):
                self._wait()
                return
            self.in_flight = 0
        self.carried = True
        source = self.other
        job = Job(Op.SEND, source.number, fds)
        self.loop.carriers.send(source.account, job, self.sock, bytes(data[:MAX_PART]), self._was_carried)

    def _was_carried(self, report: Report) -> None:
        self.carried = False
        if self.closed:
            return
        try:
            self._carried_on(report)
        except Exception as error:
            self.link.fail(error)

    def _carried_on(self, report: Report) -> None:
        match report.problem:
            case Problem.NONE:
                self.in_flight += report.fds
                self.other.fds_left(report.fds)
                self._sent(report.size)
            case Problem.FULL:
                self.armed = False  # what epoll told meanwhile went unheard: ask anew
                self._wait()
                return
            case Problem.FOR_NOW:
                self.loop.later(self._whole)
                return
            case Problem.GONE | Problem.RESET:
                self._undeliverable(report.problem is Problem.RESET)
            case Problem.STUCK:
                self.link.end("fds_stuck", clean=False)
                return
            case _:
                self.link.end("failed", "a carrier could not pass on descriptors", clean=False)
                return
        self._whole.retry()

    def _lost(self, error: OSError) -> bool:
        """It was not sent: is it lost? Else it is tried again."""
        if error.errno == errno.EAGAIN:
            self._wait()
            return False
        if error.errno in FOR_NOW:
            self.loop.later(self._whole)
            return False
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            self._undeliverable(error.errno == errno.ECONNRESET)
        else:  # not raised: the inspector that sends has no part in it
            self.link.fail(error)
        return True

    def _wait(self) -> None:
        if not self.armed:
            self.armed = True
            self.loop.watch(self.fd, _WRITE_EVENTS)

    def _undeliverable(self, reset: bool) -> None:
        """The peer takes nothing any more. A service may have answered before; to a client there is no more to say."""
        self.deaf = True
        if reset:
            self.broken = True
        self._in_the_way()
        self._forget_out()
        self.loop.again(self._whole)

    def _forget_out(self) -> None:
        self.other.drop(sum(fds if fds >= 0 else ~fds for _, fds in (*self.out, *self.held)))
        self.out.clear()
        self.held.clear()
        self.queued = 0
