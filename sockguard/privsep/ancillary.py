"""Sizes and flags for messages that may bring descriptors or credentials (unix(7), recvmsg(2))."""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Iterable
from typing import Final

from sockguard.privsep.messages import MAX_FDS

_UCRED: Final = struct.Struct("3I")  # struct ucred: pid, uid, gid (unix(7))

CREDENTIALS_BYTES: Final = socket.CMSG_SPACE(_UCRED.size)
"""Room for the sender's credentials and for nothing else. The kernel writes them first (__scm_recv_common of
net/core/scm.c), so descriptors that come with them find no room: MSG_CTRUNC tells of them, and none is installed."""

CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * array("i").itemsize) + CREDENTIALS_BYTES
"""Room for all that one message can bring."""

# Plain numbers: arithmetic with an IntFlag costs a microsecond and more, for each message.
READ: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
PEEK: Final = int(socket.MSG_PEEK) | READ
PEEK_LENGTH: Final = PEEK | int(socket.MSG_TRUNC)
"""Of a record, its own length, however small the buffer (recv(2))."""
CUT: Final = int(socket.MSG_CTRUNC)


def sender(control: Iterable[tuple[int, int, bytes]]) -> int:
    """The uid of who sent a message, by its SCM_CREDENTIALS; -1 where it has none."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) == _UCRED.size:
            uid: int = _UCRED.unpack(data)[1]
            return uid
    return -1
