"""Ending a socket that a peer may have sent descriptors to: who closes it last releases them, and may wait for that.

So each is ended by ``end`` here, or by exiting. Facts (Linux 5.10 to 6.18, tried): nothing is queued on a socket any
more once shutdown(SHUT_RD) has returned. A peek without room for control data installs nothing, stops behind the first
message that carries descriptors, and tells of it by MSG_CTRUNC.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import termios
from array import array
from collections.abc import Iterable
from typing import Final, Protocol

from sockguard.privsep.ancillary import CUT, PEEK
from sockguard.privsep.sockopt import SO_PASSPIDFD, SO_PASSRIGHTS, SO_PASSSEC

_PEEKED: Final = memoryview(bytearray(64 * 1024))
_count: Final = array("i", [0])


class Disposer(Protocol):
    """Closes sockets elsewhere."""

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        """Close them here, and have a process that exits be the last that has them. Never blocks."""


def takes_none(sock: socket.socket) -> bool:
    """Has the kernel refused every descriptor for this socket from its first moment on (SO_PASSRIGHTS at 0)?"""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 0
    except OSError:  # ENOPROTOOPT before Linux 6.16
        return False


def refuse_all(sock: socket.socket) -> None:
    """Have the kernel refuse descriptors for this socket and what it accepts, where it can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def ask_for_nothing(sock: socket.socket, *, credentials: bool) -> None:
    """Have messages bring no label and no pidfd of their sender, and its credentials only if they are wanted: each sets
    MSG_CTRUNC where there is no room for it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, int(credentials))
    for unwanted in (SO_PASSSEC, SO_PASSPIDFD):
        with contextlib.suppress(OSError):  # a kernel that does not know it does not do it; a relay may not
            sock.setsockopt(socket.SOL_SOCKET, unwanted, 0)


def may_hold_fds(sock: socket.socket) -> bool:
    """May descriptors be waiting in this socket, which receives nothing more? Also true where that cannot be told."""
    records = sock.type == socket.SOCK_SEQPACKET
    try:
        if records:
            # Each record brings credentials then, an empty one too, and the end of the connection does not (unix(7)).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        length, flags = _peek(sock)
        if flags & CUT and not records and sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)  # credentials without room set MSG_CTRUNC, too
            length, flags = _peek(sock)
    except BlockingIOError:
        length = flags = 0  # nothing waits
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.EINVAL)  # it never was connected: nothing can wait
    if flags & CUT or length == len(_PEEKED):
        return True
    return not records and unread(sock.fileno()) > length  # a peek passes over an urgent byte, or stops before it


def _peek(sock: socket.socket) -> tuple[int, int]:
    for _ in range(2):
        try:
            length, _, flags, _ = sock.recvmsg_into([_PEEKED], 0, PEEK)
        except ConnectionResetError:  # is told once, before what is queued
            continue
        return length, flags
    return 0, CUT


def plain_bytes(sock: socket.socket, limit: int) -> int:
    """How many bytes of those that are there, ``limit`` at most, can be read without any descriptor; 0 at the end of
    the connection. Raises BlockingIOError when nothing is there, PermissionError when a descriptor is.
    """
    length, _, flags, _ = sock.recvmsg_into([_PEEKED[:limit]], 0, PEEK)
    if flags & CUT:
        raise PermissionError(errno.EPERM, "descriptors are not taken here")
    return length


def unread(fd: int) -> int:
    """Bytes in that socket's receive queue (unix(7), SIOCINQ)."""
    fcntl.ioctl(fd, termios.FIONREAD, _count)
    return _count[0]


def end(sock: socket.socket, disposer: Disposer) -> None:
    """Close it; through ``disposer`` where descriptors may be waiting in it. Not for a socket that was read to its end
    after its peer had closed: that one can be closed. Never blocks, never raises OSError; does nothing with one that is
    closed already.
    """
    if sock.fileno() < 0:
        return
    with contextlib.suppress(OSError):  # ENOTCONN: the peer has gone
        sock.shutdown(socket.SHUT_RD)
    if takes_none(sock) or not may_hold_fds(sock):
        sock.close()
        return
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # its peer sees the end now, whenever the last close may be
    disposer.dispose((sock,))


def close_shared(sock: socket.socket, disposer: Disposer) -> None:
    """Close our copy of a connection that another process has got, and could have closed by now. Changes nothing of
    it: it is in use there, and a reset is told once.
    """
    try:
        if sock.type == socket.SOCK_SEQPACKET:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            held = bool(poll.poll(0))
        else:
            waiting = unread(sock.fileno())
            held = bool(waiting) and _shows_less_than(sock, waiting)
    except OSError:  # a listening socket, which both go on having
        held = False
    if held:
        disposer.dispose((sock,))
    else:
        sock.close()


def _shows_less_than(sock: socket.socket, waiting: int) -> bool:
    """Is there more in a stream's queue than a peek shows? What it passes over may have brought descriptors."""
    try:
        length, _, flags, _ = sock.recvmsg_into([_PEEKED], 0, PEEK)
    except BlockingIOError:
        return True
    return bool(flags & CUT) or length < waiting


def end_all(socks: Iterable[socket.socket], disposer: Disposer) -> None:
    for sock in socks:
        end(sock, disposer)


def end_listener(listener: socket.socket, disposer: Disposer) -> None:
    """Close a listening socket of which no other process has a copy: what waits in its backlog is ended one by one.

    After the shutdown nobody can connect, and what is queued can still be accepted.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.setblocking(False)
    while True:
        try:
            sock, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINVAL):  # there are no more
                listener.close()
            else:  # no descriptor to be had for them
                disposer.dispose((listener,))
            return
        sock.setblocking(False)
        end(sock, disposer)
