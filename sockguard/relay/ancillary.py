"""Passed file descriptors in a byte stream: where among the bytes a message that carries them begins.

recvmsg on a stream socket joins plain bytes with the message behind them that carries fds, and stops after it
(unix(7); net/unix/af_unix.c, unix_stream_read_generic). A service that reads just its header without room for
ancillary data would lose fds that were moved forward to that header; so the boundary has to be found, by peeking.

A shorter peek does not find it: a peek that has filled its buffer goes on to the messages behind, with no room left,
and shows their fds all the same. But a message is copied before its fds are looked at, and a peek ends before a
message that cannot be copied: hence a buffer that ends at a page that nobody may touch.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
from array import array
from collections.abc import Iterable
from typing import Final

from sockguard.privsep.channel import close_all, received_fds
from sockguard.privsep.messages import MAX_FDS

_UCRED: Final = struct.Struct("3I")  # struct ucred: pid, uid, gid (unix(7))
CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * array("i").itemsize) + socket.CMSG_SPACE(_UCRED.size)
# Plain numbers: arithmetic with an IntFlag costs a microsecond and more, for each message.
READ: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
PEEK: Final = int(socket.MSG_PEEK) | READ
CUT: Final = int(socket.MSG_CTRUNC)

_PROT_NONE: Final = 0  # mmap(2)


def _untouchable_page() -> mmap.mmap:
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), len(page), _PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return page


_fence: Final = _untouchable_page()


def sender(control: Iterable[tuple[int, int, bytes]]) -> int:
    """The uid of who sent a message, by its SCM_CREDENTIALS; -1 where it has none."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) == _UCRED.size:
            uid: int = _UCRED.unpack(data)[1]
            return uid
    return -1


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
    """Does the message that begins behind ``start`` bytes carry the fds that a peek of ``filled`` bytes has shown?

    For one that ends no sooner than these bytes, as what sendfile(2) and splice(2) send may: a wider peek tells.
    """
    size = filled
    while True:
        size *= 2
        view = memoryview(bytearray(size))
        length, control, _, _ = sock.recvmsg_into([view], CONTROL_BYTES, PEEK)
        close_all(received_fds(control))
        if length < size:  # so it ended at the message with the fds
            return boundary(sock, view, length) <= start


def untaken(fd: int) -> bool:
    """Has the peer not taken all that was sent there (unix(7), SIOCOUTQ)? The event that says so comes while one byte
    is still counted (sock_wfree of linux/net/core/sock.c); no message is that small with the kernel's own.
    """
    count = array("i", [0])
    fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    return count[0] > 1
