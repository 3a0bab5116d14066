"""Sockets whose last close(2) waits: TCP with unsent data and SO_LINGER, socket(7), made by whoever likes."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Final

_LINGER: Final = 600
_BUFFER: Final = 4096


class Lingering:
    """Sends such sockets, of each of which there is no other copy then. All go on waiting until this is closed."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # of what is accepted, too
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._unread: list[socket.socket] = []

    def _make(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        sock.connect(self._listener.getsockname())
        self._unread.append(self._listener.accept()[0])
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(_BUFFER))
        _linger(sock, _LINGER)
        return sock

    def send(self, over: socket.socket, data: bytes = b"x") -> None:
        """Send these bytes with a new one. Raises OSError as sending does, and nothing waits then."""
        sock = self._make()
        try:
            assert socket.send_fds(over, [data], [sock.fileno()]) == len(data)
        except OSError:
            _linger(sock, 0)
            raise
        finally:
            sock.close()

    def close(self) -> None:
        """Reset them all: their closes return."""
        for sock in (*self._unread, self._listener):
            sock.close()


def _linger(sock: socket.socket, seconds: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


@contextlib.contextmanager
def lingering() -> Iterator[Lingering]:
    with contextlib.closing(Lingering()) as made:
        yield made
