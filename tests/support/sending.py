"""Sends a file over a connected socket, and waits until its other side has taken all of it: run as a program.

    sending.py DESCRIPTOR FILE WAY SNDBUF WAITING

WAY       sendfile(2), splice(2) from a pipe, one "sendall", or "small": sends of 1,000 bytes
SNDBUF    what to ask of SO_SNDBUF, or "default"
WAITING   "blocking" calls, or "polling": never a call before poll(2) says that there is room

Says "taken" once the socket is writable and SIOCOUTQ (unix(7)) is 0, while the connection is open. A socket of records
gets the largest that its SO_SNDBUF takes, or small ones.
"""

from __future__ import annotations

import fcntl
import functools
import os
import select
import socket
import sys
import termios
import time
from array import array
from collections.abc import Callable
from pathlib import Path

SECONDS = 30.0
"""Longer than a sender ever waits for room, or for the last byte to be taken."""

SMALL = 1000
PIPE = 1 << 20
DATAGRAM_OVERHEAD = 32
"""What a record must be shorter than SO_SNDBUF by, unix_dgram_sendmsg of net/unix/af_unix.c."""


def unread(sock: socket.socket) -> int:
    """Bytes in memory that the kernel counts for this sender, since its other side has not taken them."""
    count = array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    return count[0]


def wait_writable(sock: socket.socket) -> None:
    """Exits when nobody makes room."""
    if not select.select([], [sock], [], SECONDS)[1]:
        sys.exit(f"the sender is not writable again: {unread(sock)} are unread")


def wait_taken(sock: socket.socket) -> None:
    """Exits when something stays unread."""
    end = time.monotonic() + SECONDS
    while count := unread(sock):
        if time.monotonic() > end:
            sys.exit(f"what was sent is not taken: {count} are unread")
        time.sleep(0.001)


class Sender:
    def __init__(self, sock: socket.socket, polling: bool) -> None:
        self.sock = sock
        self.polling = polling
        sock.setblocking(not polling)

    def repeat(self, send: Callable[[int], int], length: int) -> None:
        """Until as much is sent; ``send`` gets the offset and gives the bytes that one call took."""
        done = 0
        while done < length:
            if self.polling:
                wait_writable(self.sock)
            try:
                done += send(done)
            except BlockingIOError:  # poll's room can be too little for a record
                time.sleep(0.001)

    def sendfile(self, file: int, length: int) -> None:
        self.repeat(lambda done: os.sendfile(self.sock.fileno(), file, done, length - done), length)

    def splice(self, file: int, length: int) -> None:
        """Each time the pipe is filled from the file, and emptied into the socket."""
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
        flags = os.SPLICE_F_NONBLOCK if self.polling else 0
        filled = 0
        while filled < length:
            count = os.splice(file, writer, PIPE, offset_src=filled)
            filled += count
            self.repeat(functools.partial(self._empty, reader, count, flags), count)

    def _empty(self, pipe: int, count: int, flags: int, done: int) -> int:
        return os.splice(pipe, self.sock.fileno(), count - done, flags=flags)

    def send(self, data: bytes, most: int) -> None:
        """In calls of so many bytes at most."""
        view = memoryview(data)
        self.repeat(lambda done: self.sock.send(view[done : done + most]), len(data))


def main(descriptor: str, path: str, way: str, sndbuf: str, waiting: str) -> None:
    sock = socket.socket(fileno=int(descriptor))
    if sndbuf != "default":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(sndbuf))
    sender, data = Sender(sock, waiting == "polling"), Path(path).read_bytes()
    with open(path, "rb") as file:
        if way == "sendfile":
            sender.sendfile(file.fileno(), len(data))
        elif way == "splice":
            sender.splice(file.fileno(), len(data))
        elif way == "small":
            sender.send(data, SMALL)
        elif sock.type == socket.SOCK_SEQPACKET:
            sender.send(data, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - DATAGRAM_OVERHEAD)
        elif waiting == "blocking":
            sock.sendall(data)
        else:
            sender.send(data, len(data))
    wait_writable(sock)
    wait_taken(sock)
    print("taken")


if __name__ == "__main__":
    main(*sys.argv[1:])
