"""Passed file descriptors in a byte stream: where among the bytes a message that carries them begins.

recvmsg on a stream socket joins plain bytes with the message behind them that carries fds, and stops after it
(unix(7); net/unix/af_unix.c, unix_stream_read_generic). A service that reads just its header without room for
ancillary data would lose fds that were moved forward to that header; so the boundary has to be found, by peeking.
"""

from __future__ import annotations

import socket
from array import array
from typing import Final

from sockguard.privsep.channel import close_all, received_fds
from sockguard.privsep.messages import MAX_FDS

CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * array("i").itemsize)
PEEK: Final = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


def boundary(sock: socket.socket, view: memoryview, known_plain: int, length: int) -> int:
    """Offset of the first byte of the message that carries fds, for a peek of ``length`` bytes that showed some.

    The first ``known_plain`` bytes carry none. At most 18 peeks, which change nothing; their fds are closed.
    """
    low, high = known_plain, length - 1  # the boundary is in low..high
    guess = low  # most often the message stands alone
    while low < high:
        if _carries(sock, view[: guess + 1]):
            high = guess
        else:
            low = guess + 1
        guess = high - 1 if guess == known_plain and low < high else (low + high) // 2  # then: one byte at the end
    return low


def _carries(sock: socket.socket, view: memoryview) -> bool:
    _, control, _, _ = sock.recvmsg_into([view], CONTROL_BYTES, PEEK)
    fds = received_fds(control)
    close_all(fds)
    return bool(fds)
