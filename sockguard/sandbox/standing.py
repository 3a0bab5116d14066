"""The parts of the cage that stand already, by privsep/rights.py: looked at here, by the kernel's word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sockguard.sandbox import libc

_PR_GET_DUMPABLE: Final = 3
_PR_GET_NO_NEW_PRIVS: Final = 39
"""linux/prctl.h"""

_STATUS_BYTES: Final = 1 << 20
_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def no_new_privs() -> int:
    if libc.prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise ValueError("it is not set")
    return 1


def not_dumpable() -> int:
    if libc.prctl(_PR_GET_DUMPABLE) != 0:
        raise ValueError("the process is dumpable")
    return 1


def no_capabilities() -> int:
    """The bounding set does not count: with no_new_privs nothing of it can be gained."""
    status = _status()
    if any(int(status[name], 16) for name in _SETS):
        raise ValueError("capabilities are left")
    return 1


def check_single_thread() -> None:
    """Raises RuntimeError: whoever starts threads in a relay has a fault to mend."""
    if _status()["Threads"] != "1":
        raise RuntimeError("a relay must have one thread when it enters its cage")


@contextmanager
def within_reach() -> Iterator[None]:
    """Until the end of this block the kernel can be asked, whatever this process's root is then."""
    _opened.append(os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC))
    try:
        yield
    finally:
        os.close(_opened.pop())


_opened: Final[list[int]] = []


def _status() -> dict[str, str]:
    """proc_pid_status(5), as it is now. Only within_reach."""
    # Not as "ascii": after the change of uid the interpreter may not find that codec any more.
    lines = os.pread(_opened[-1], _STATUS_BYTES, 0).decode("utf-8", "replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
