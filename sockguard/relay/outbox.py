"""What waits to be written to one side of an inspected connection (inspected.py): bytes in their order, and fds.

It is written at once where it can be. What cannot is kept here, and the kernel's event, or the clock, has it tried
again; so each way out of here leaves one of the two behind, or nothing that waits.
"""

from __future__ import annotations

import errno
import select
import socket
from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sockguard.privsep.channel import close_all
from sockguard.relay.ancillary import untaken
from sockguard.relay.stream import FOR_NOW, MAX_IN_FLIGHT, READ_EVENTS

if TYPE_CHECKING:
    from sockguard.relay.inspected import InspectedLink
    from sockguard.relay.inspected_side import InspectedSide

_WRITE_EVENTS: Final = READ_EVENTS | select.EPOLLOUT

Data = bytes | bytearray | memoryview


class Outbox:
    """The half of a side that is written to.

    out       what waits, with its fds; ``held``: what waits behind bytes that pass to here unseen
    queued    bytes in both
    armed     epoll tells of room
    in_flight fds passed on to here since the peer was last seen to have taken everything
    deaf      the peer takes nothing any more, or this is closed: what is sent here goes nowhere
    broken    the peer closed with bytes unread (ECONNRESET)
    shut      write no more here; done when all is out
    """

    __slots__ = (
        "armed",
        "broken",
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
        self.out: deque[tuple[Data, Sequence[int]]] = deque()
        self.held: list[tuple[bytes, Sequence[int]]] = []
        self.armed = self.broken = self.closed = self.deaf = self.shut = False

    @property
    def _whole(self) -> InspectedSide:
        """This side, with the half that is read."""
        return self.other.other

    def write(self, data: Data) -> None:
        """Write now what goes, keep a copy of the rest."""
        if self.out:
            self._keep(data, 0, ())
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
            self._keep(data, 0, ())

    def written_in_part(self, data: Data, sent: int) -> None:
        """``put`` has sent less than all."""
        self._wait()
        self._keep(data, sent, ())

    def write_fds(self, data: Data, fds: Sequence[int]) -> None:
        """As write; takes the fds over."""
        sent = 0 if self.out else self._send(data, fds)
        if sent < len(data):
            self._keep(data, sent, fds)

    def _keep(self, data: Data, sent: int, fds: Sequence[int]) -> None:
        self.out.append((memoryview(bytes(data[sent:])), () if sent else fds))
        self.queued += len(data) - sent
        self._in_the_way()

    def hold(self, data: Data, fds: Sequence[int]) -> None:
        """Keep it until the bytes that pass to here are complete. Takes the fds over."""
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
        if not self.queued and self.other.passing <= 0 and not self.deaf:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:  # the peer has gone: reading says so
                self.deaf = True
                self._in_the_way()

    def flush(self) -> bool:
        """Write what waits; true when nothing does any more, unless the link has ended meanwhile."""
        while self.out:
            data, fds = self.out.popleft()  # first: whatever closes what waits must not find these fds again
            sent = self._send(data, fds)
            if self.deaf:
                break
            self.queued -= sent
            if sent:
                self.link.seen = self.loop.tick
            if sent < len(data):
                self.out.appendleft((data[sent:], () if sent else fds))
                return False
        if self.closed:
            return False
        if self.armed:
            self.armed = False
            self.loop.watch(self.fd, READ_EVENTS)
        if self.shut:
            self.shut_down()
        return True

    def _send(self, data: Data, fds: Sequence[int]) -> int:
        """Give how many bytes are dealt with; then the fds are closed."""
        if self.deaf:
            close_all(fds)
            return len(data)
        if self.in_flight + len(fds) > MAX_IN_FLIGHT:
            if untaken(self.fd):
                self._wait()
                return 0
            self.in_flight = 0
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            sent = self.sock.sendmsg([data], rights)
        except OSError as error:
            if not self._lost(error):
                return 0
            sent = len(data)
        else:
            self.in_flight += len(fds)
            if sent < len(data):
                self._wait()
        close_all(fds)
        return sent

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
        for _, fds in (*self.out, *self.held):
            close_all(fds)
        self.out.clear()
        self.held.clear()
        self.queued = 0
