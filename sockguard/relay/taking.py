"""A side on which no descriptors can come, since the kernel refuses them (SO_PASSRIGHTS at 0): read and sent on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from sockguard.relay.side import BULK, CHUNK, Side

if TYPE_CHECKING:
    from sockguard.relay.stream import Link

_buffer: Final = bytearray(CHUNK)
_view: Final = memoryview(_buffer)


class TakingSide(Side):
    """bulk: much comes here at a time, so it is spliced."""

    __slots__ = ("bulk", "read")

    def __init__(self, link: Link, sock: socket.socket, index: int, sender: int) -> None:
        super().__init__(link, sock, index, sender)
        self.bulk = False
        self.read = sock.recv_into
        if not index:  # a reload may have come between: a read would end where another sender begins
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)

    def pump(self) -> None:
        if self.halted and self.cannot_read():
            return
        if self.bulk and self._pump_bulk():
            return
        try:
            length = self.read(_buffer)
        except BlockingIOError:
            if self.ending:
                self.end_of_stream()
            return
        except ConnectionResetError:
            self.was_reset()
            return
        if not length:
            self.end_of_stream()
            return
        data = _view[:length]
        try:
            sent = self.put(data)
        except OSError as error:
            self.keep(data, error)
            return
        self.passed += sent
        if sent < length:
            self.keep(data[sent:])
        elif length == CHUNK:
            self.bulk = True
            self.link.loop.again(self)
        elif self.ending:
            self.link.loop.again(self)

    def _pump_bulk(self) -> bool:
        """False: it is better copied."""
        moved = self.splice(BULK)
        self.bulk = moved is not None and moved >= CHUNK // 2
        if moved == BULK and not self.halted:
            self.link.loop.again(self)
        return moved is not None

    def discard(self) -> None:
        while True:
            try:
                if not self.read(_buffer):
                    self.drained = True
                    return
            except OSError:  # dry
                return

    def close(self) -> None:
        self.drained = True  # of descriptors there are none
        super().close()
