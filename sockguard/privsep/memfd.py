"""Text too large for a packet, in a sealed memfd: neither side can change it afterwards (memfd_create(2))."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from sockguard.errors import ChannelError

MAX_TEXT: Final = 64 * 1024 * 1024
"""Bytes of one memfd: above any configuration that read_sources accepts."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write(name: str, data: bytes) -> int:
    """A new sealed memfd that holds ``data``; the caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> bytes:
    """All of a sealed memfd. Raises ChannelError for one that is not sealed or too large; the caller closes it."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ChannelError("a file that is no sealed memfd") from error
    size = os.lseek(fd, 0, os.SEEK_END)  # not fstat: libc asks by a path that is empty, and a relay may use no path
    if seals & _SEALS != _SEALS or size > MAX_TEXT:
        raise ChannelError("a memfd that is not sealed, or too large")
    data = bytearray()
    while len(data) < size:
        part = os.pread(fd, size - len(data), len(data))
        if not part:
            raise ChannelError("a memfd that ends early")
        data += part
    return bytes(data)
