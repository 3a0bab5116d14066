"""Messages from a relay to control: over a pipe, through which no descriptor can be passed (pipe(7)).

What a relay that was taken over could pass, control would have to close, and might wait in that for ever. A message is
four bytes of length in network order, and then its packet (packets.py).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from sockguard.errors import ChannelError
from sockguard.privsep.packets import MAX_PACKET, Message, MessageTable, decode, encode

_LENGTH: Final = struct.Struct("!I")
_READ: Final = 64 * 1024


class Outlet:
    """The end that a relay writes to. Never blocks."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._left = b""
        os.set_blocking(fd, False)

    def send(self, message: Message) -> None:
        """Take over a message, and write it as far as there is room: ``flush`` writes the rest.

        Raises BlockingIOError, and takes nothing over, while there is a rest of an earlier one; BrokenPipeError when
        nobody reads.
        """
        if self._left:
            self._write()
        data = encode(message)
        self._left = _LENGTH.pack(len(data)) + data
        self.flush()

    def flush(self) -> bool:
        """True when all is written."""
        try:
            self._write()
        except BlockingIOError:
            return False
        return True

    def _write(self) -> None:
        while self._left:
            try:
                self._left = self._left[os.write(self.fd, self._left) :]
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                raise BlockingIOError(errno.EAGAIN, "no memory for it now") from error


class Inlet:
    """The end that control reads from. Whoever writes may write anything."""

    def __init__(self, fd: int, table: MessageTable) -> None:
        self.fd = fd
        self._table = table
        self._data = bytearray()
        os.set_blocking(fd, False)

    def receive(self) -> Message | None:
        """The next message; None at the end. Raises BlockingIOError when there is none yet, ChannelError for what is
        no message of the table.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            data = os.read(self.fd, _READ)
            if not data:
                return None
            self._data += data

    def _next(self) -> Message | None:
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_PACKET:
            raise ChannelError(f"a message of {length} bytes, which is over {MAX_PACKET}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        packet = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return decode(packet, self._table)

    def close(self) -> None:
        os.close(self.fd)
