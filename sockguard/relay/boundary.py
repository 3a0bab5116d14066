"""Where, among the bytes of a stream, a message begins that carries descriptors. Looked at only, and none is received.

recvmsg on a stream socket joins plain bytes with the message behind them that carries fds, and stops after it
(unix(7); net/unix/af_unix.c, unix_stream_read_generic). A service that reads just its header without room for
ancillary data would lose fds that were moved forward to that header; so the boundary has to be found, by peeking.

A shorter peek does not find it: a peek that has filled its buffer goes on to the messages behind, with no room left,
and tells of their fds all the same (MSG_CTRUNC). But a message is copied before its fds are looked at, and a peek ends
before a message that cannot be copied: hence a buffer that ends at a page that nobody may touch.

That a peek of one byte tells of fds anywhere in the queue is a way, too, to know how much can be taken unseen. Since no
manual page promises it, it is used only where PEEK_SEES_ALL has found it to be so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import termios
from array import array
from typing import Final

from sockguard.privsep.ancillary import CUT, PEEK
from sockguard.privsep.foreign import unread

_PROT_NONE: Final = 0  # mmap(2)


def _untouchable_page() -> mmap.mmap:
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), len(page), _PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return page


_fence: Final = _untouchable_page()
_byte: Final = [memoryview(bytearray(1))]
_count: Final = array("i", [0])


def boundary(sock: socket.socket, view: memoryview, length: int) -> int:
    """How many bytes stand before the message that carries fds, for a peek into ``view`` that gave ``length`` bytes.

    Where that peek has filled ``view``, the fds may be those of a message further on; then it is the number of bytes
    of the messages that are in ``view`` as a whole, and these carry none; whether the next one is it, carries_fds says.
    ``view`` holds the same bytes afterwards.
    """
    try:
        return sock.recvmsg_into([view[: length - 1], _fence], 0, PEEK)[0]
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return 0  # the very first message cannot be copied as a whole: it is the one


def carries_fds(sock: socket.socket, start: int, filled: int) -> bool:
    """Does the message that begins behind ``start`` bytes carry the fds that a peek of ``filled`` bytes has told of?

    For one that ends no sooner than these bytes, as what sendfile(2) and splice(2) send may: a wider peek tells.
    """
    size = filled
    while True:
        size *= 2
        view = memoryview(bytearray(size))
        length = sock.recvmsg_into([view], 0, PEEK)[0]
        if length < size:  # so it ended at the message with the fds
            return boundary(sock, view, length) <= start


def _peek_sees_all() -> bool:
    """Does a peek of one byte tell of fds that came with a later message? Tried on this kernel."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.send(b"plain")
        if near.recvmsg_into(_byte, 0, PEEK)[2] & CUT:
            return False
        far.send(b"more")
        socket.send_fds(far, [b"with"], [far.fileno()])
        return bool(near.recvmsg_into(_byte, 0, PEEK)[2] & CUT) and unread(near.fileno()) == len(b"plainmorewith")


def plain_bytes(sock: socket.socket) -> int:
    """How many bytes can be taken at once without any fds; 0 where some are queued. Only where PEEK_SEES_ALL.

    A peek ends before an urgent byte, and a further one would make that an ordinary one: so there must be none.
    """
    count = unread(sock.fileno())  # first: what comes meanwhile is not counted, but is looked at
    if not count or sock.recvmsg_into(_byte, 0, PEEK)[2] & CUT:
        return 0
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    return 0 if poll.poll(0) else count


def untaken(fd: int) -> bool:
    """Has the peer not taken all that was sent there (unix(7), SIOCOUTQ)? The event that says so comes while one byte
    is still counted (sock_wfree of linux/net/core/sock.c); no message is that small with the kernel's own.
    """
    fcntl.ioctl(fd, termios.TIOCOUTQ, _count)
    return _count[0] > 1


PEEK_SEES_ALL: Final = _peek_sees_all()  # now: in its cage a relay can make no socket
