"""A connection of a `seqpacket` proxy: records, with their boundaries and passed fds, both ways, unread by anyone.

As in a stream (stream.py) nothing is held here: a record is peeked, passed on whole, and only then taken from the
kernel's queue. An empty record would look like the end of the connection; SO_PASSCRED on these sockets tells them
apart, since then every record brings a control message and the end brings none (unix(7)).
"""

from __future__ import annotations

import errno
import socket
from array import array
from typing import Final

from sockguard.privsep.channel import close_all, received_fds
from sockguard.relay.ancillary import CONTROL_BYTES, CUT, PEEK, sender, untaken
from sockguard.relay.stream import CHUNK, FOR_NOW, MAX_IN_FLIGHT, Link, Side

MAX_RECORD: Final = 64 * 1024 * 1024
"""Bytes of a record: far above what net.core.wmem_max lets anybody send."""

_PEEK_LENGTH: Final = PEEK | int(socket.MSG_TRUNC)  # the record's own length, however small the buffer (recv(2))


class _Buffer:
    """The buffer of the whole process, which grows to the largest record that has come."""

    def __init__(self) -> None:
        self.views = [memoryview(bytearray(CHUNK))]

    def grow(self, length: int) -> None:
        self.views = [memoryview(bytearray(length))]


_buffer: Final = _Buffer()


class RecordSide(Side):
    """One of the two sockets, and the direction that is read from it."""

    __slots__ = ()

    def pump(self) -> None:
        """Pass on one record; more after the others had their turn."""
        if self.closed or self.ended or self.other.full:
            if self.ended and self.gone and not self.closed:
                self._gone_at_last()
            return
        try:
            length, control, flags, _ = self.peek(_buffer.views, CONTROL_BYTES, _PEEK_LENGTH)
        except BlockingIOError:
            if self.ending:
                self._end_of_stream()
            return
        except ConnectionResetError:
            self.ending = self.gone = self.broken = True
            self.pump()
            return
        fds = received_fds(control)
        if not control:
            self._look_again()
        elif self.sender >= 0 and sender(control) != self.sender:
            close_all(fds)
            self.link.end("sender_changed", clean=False)
        elif length > len(_buffer.views[0]):
            close_all(fds)
            self._make_room(length)
        else:
            self._pass_record(length, fds, flags)

    def _make_room(self, length: int) -> None:
        if length > MAX_RECORD:
            self.link.end("record_too_large", clean=False)
            return
        _buffer.grow(length)
        self.link.loop.again(self)

    def _pass_record(self, length: int, fds: list[int], flags: int) -> None:
        """Send the record that was peeked with its fds (ours, as copies), then take it from the queue."""
        link = self.link
        try:
            if flags & CUT:
                link.end("out_of_files", clean=False)
                return
            if fds and link.options.refuse_fds:
                link.end("fds_refused", clean=False)
                return
            if fds and self.in_flight + len(fds) > MAX_IN_FLIGHT and untaken(self.other.fd):
                self._wait_for_other()
                return
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            try:
                self.other.sock.sendmsg([_buffer.views[0][:length]], rights)
            except BlockingIOError:
                self._wait_for_other()
                return
            except OSError as error:
                self._not_sent(length, error)
                return
        finally:
            close_all(fds)
        self.passed += length
        self.in_flight = self.in_flight + len(fds) if self.in_flight + len(fds) <= MAX_IN_FLIGHT else len(fds)
        self._take_record()
        link.seen = link.loop.tick
        link.loop.again(self)

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
            self._end_of_stream()
        else:
            self.ending = True
            self.link.loop.again(self)

    def _discard(self) -> None:
        """Take what nobody wants: a peer that polls for room before it writes waits for just that."""
        while self.unread():
            self._take_record()

    def _not_sent(self, length: int, error: OSError) -> None:
        if error.errno in FOR_NOW:
            self.link.loop.later(self)
        elif error.errno != errno.EMSGSIZE:
            self._undeliverable(error)
        elif self._widen(length):
            self.link.loop.again(self)
        else:
            self.link.end("record_too_large", clean=False)

    def _widen(self, length: int) -> bool:
        """The sender had raised its SO_SNDBUF: raise ours as far as net.core.wmem_max allows. True if that helps."""
        sock = self.other.sock
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, length)  # the kernel doubles it (socket(7))
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before


class RecordLink(Link):
    """One connection of records."""

    __slots__ = ()

    def side(self, sock: socket.socket, reset_outcome: str) -> Side:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return RecordSide(self, sock, reset_outcome)
