"""System calls that Python has no function for, by number."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Argument = int | ctypes.Array[ctypes.c_char] | None
"""None is a null pointer; a buffer goes by its address."""


def syscall(number: int, *arguments: Argument) -> int:
    """Make the call. Raises OSError."""
    values = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *values))


def prctl(option: int) -> int:
    """A prctl(2) that asks. Raises OSError."""
    return _checked(_libc.prctl(option, *(ctypes.c_ulong(0) for _ in range(4))))


def _checked(result: int) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
