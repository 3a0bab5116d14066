"""One message, one packet: sending and receiving over a SOCK_SEQPACKET pair. Knows no event loop."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from sockguard.errors import ChannelError
from sockguard.privsep.messages import MAX_FDS, MAX_PACKET, Message, MessageTable, decode, encode

_FDS: Final = array("i")
_CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * _FDS.itemsize)
# Plain numbers: arithmetic with an IntFlag costs a microsecond and more, for each message.
_SEND: Final = int(socket.MSG_NOSIGNAL)
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel; neither survives an exec unless it is made inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message and copies of ``fds``. Raises OSError (BlockingIOError when a non-blocking end is full)."""
    if len(fds) != message.fds():
        raise ChannelError(f"a {message.TAG} message carries {message.fds()} fds, not {len(fds)}")
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    channel.sendmsg([encode(message)], control, _SEND)


def receive(channel: socket.socket, table: MessageTable) -> tuple[Message, list[int]] | None:
    """The next message and its fds (close-on-exec, now the caller's), or None at the end of the channel.

    Raises ChannelError for what is not on ``table``, with a wrong number of fds, or cut short: whatever fds
    came along are closed then. Raises OSError as recvmsg does.
    """
    data, control, flags, _ = channel.recvmsg(MAX_PACKET, _CONTROL_BYTES, _RECEIVE)
    fds = received_fds(control)
    if not data:
        close_all(fds)
        return None
    try:
        if flags & _CUT:
            raise ChannelError("a message was cut short: out of file descriptors?")
        message = decode(data, table)
        if len(fds) != message.fds():
            raise ChannelError(f"a {message.TAG} message with {len(fds)} fds instead of {message.fds()}")
    except ChannelError:
        close_all(fds)
        raise
    return message, fds


def received_fds(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg returned as ancillary data (unix(7), SCM_RIGHTS)."""
    fds = array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
