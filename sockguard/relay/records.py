"""A connection of a `seqpacket` proxy: records, with their boundaries and passed fds, both ways, unread by anyone.

As in peeking.py nothing is held here: a record is peeked, passed on whole, and only then taken from the kernel's queue;
one with fds is passed on by a carrier. An empty record would look like the end of the connection; SO_PASSCRED on these
sockets tells them apart, since then every record brings a control message and the end brings none (unix(7)).
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from sockguard.carriers.jobs import Job, Op
from sockguard.privsep.ancillary import CREDENTIALS_BYTES, CUT, PEEK_LENGTH, sender
from sockguard.privsep.messages import MAX_FDS
from sockguard.relay.boundary import untaken
from sockguard.relay.peeking import MAX_IN_FLIGHT, PeekingSide
from sockguard.relay.side import CHUNK, FOR_NOW, Side
from sockguard.relay.stream import Link

MAX_RECORD: Final = 64 * 1024 * 1024
"""Bytes of a record: far above what net.core.wmem_max lets anybody send."""


class _Buffer:
    """The buffer of the whole process, which grows to the largest record that has come."""

    def __init__(self) -> None:
        self.views = [memoryview(bytearray(CHUNK))]

    def grow(self, length: int) -> None:
        self.views = [memoryview(bytearray(length))]


_buffer: Final = _Buffer()


class RecordSide(PeekingSide):
    """One of the two sockets, and the direction that is read from it."""

    __slots__ = ()

    def __init__(self, link: Link, sock: socket.socket, index: int, sender: int) -> None:
        super().__init__(link, sock, index, sender)
        self.room = CREDENTIALS_BYTES

    def pump(self) -> None:
        """Pass on one record; more after the others had their turn."""
        if self.cannot_read():
            return
        try:
            length, control, flags, _ = self.peek(_buffer.views, CREDENTIALS_BYTES, PEEK_LENGTH)
        except BlockingIOError:
            if self.ending:
                self.end_of_stream()
            return
        except ConnectionResetError:
            self.was_reset()
            return
        if not control:
            self._look_again()
        elif self.sender >= 0 and sender(control) != self.sender:
            self.link.end("sender_changed")
        elif length > len(_buffer.views[0]):
            self._make_room(length)
        elif flags & CUT:
            if not self.more_comes_than_fds():
                self._pass_record_with_fds(length)
        else:
            self._pass_record(length)

    def _make_room(self, length: int) -> None:
        if length > MAX_RECORD:
            self.link.end("record_too_large")
            return
        _buffer.grow(length)
        self.link.loop.again(self)

    def _pass_record(self, length: int) -> None:
        """Send the record that was peeked, then take it from the queue."""
        try:
            self.put(_buffer.views[0][:length])
        except OSError as error:
            if error.errno == errno.EAGAIN:
                self.wait_for_other()
            elif error.errno in FOR_NOW:
                self.link.loop.later(self)
            elif error.errno == errno.EMSGSIZE:
                self.too_large(length)
            else:
                self.undeliverable(error)
            return
        self.passed += length
        self._take_record()
        self.link.loop.again(self)

    def _pass_record_with_fds(self, length: int) -> None:
        if self.link.options.refuse_fds:
            self.link.end("fds_refused")
            return
        if self.in_flight > MAX_IN_FLIGHT - MAX_FDS:
            if untaken(self.other.fd):
                self.wait_for_other()
                return
            self.in_flight = 0
        self.carry(Job(Op.CARRY, 0, length, self.sender, records=True))

    def _take_record(self) -> None:
        """Take a record that was looked at; the rest of it goes with its first byte."""
        try:
            self.sock.recv(1)
        except ConnectionResetError:  # is told before what is queued, and once
            self.ending = self.gone = self.broken = True
            self.sock.recv(1)

    def _look_again(self) -> None:
        """The kernel says end when records and the end came while it looked; only what is seen after that is sure."""
        if self.ending:
            self.end_of_stream()
        else:
            self.ending = True
            self.link.loop.again(self)

    def discard(self) -> None:
        try:
            while True:
                _, control, flags, _ = self.peek(_buffer.views, CREDENTIALS_BYTES, PEEK_LENGTH)
                if flags & CUT:
                    self.link.end(self.link.outcome)  # a peer that waits for room would wait for ever
                    return
                if not control:
                    return
                self._take_record()
        except OSError:  # dry
            return

    def too_large(self, length: int) -> None:
        if self._widen(length):
            self.link.loop.again(self)
        else:
            self.link.end("record_too_large")

    def _widen(self, length: int) -> bool:
        """The sender had raised its SO_SNDBUF: raise ours as far as net.core.wmem_max allows. True if that helps."""
        sock = self.other.sock
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, length)  # the kernel doubles it (socket(7))
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before


class RecordLink(Link):
    """One connection of records."""

    __slots__ = ()

    def side(self, sock: socket.socket, index: int, sender: int) -> Side:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return RecordSide(self, sock, index, sender)
