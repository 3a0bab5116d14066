"""A root in which there is nothing: no path leads to a file or a socket of the machine any more (chroot(2)).

No filter of system calls can see the address that sendmsg is given, and Landlock looks at no path of a socket before
its ABI 9: this is what holds a process that sends datagrams through a socket that a client has passed.

The root is the process's own /proc/self/fdinfo, which is there without anybody's having to make it, and in which
nobody can make anything. It has one regular file for each descriptor, and neither sockets nor links nor folders
(proc_pid_fdinfo(5)); once the process has ended it has nothing. Not a folder of ours, which can be written to; not a
user namespace, which would need no privilege, since within one other users' uids read as 65534, and relays compare
them (``sender``).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from sockguard.privsep import rights

TAKES: Final = frozenset({rights.CAP_SYS_CHROOT})
"""The capabilities to have where this is entered. They are given up there."""

_FOLDER: Final = "/proc/self/fdinfo"
_MISSING: Final = (errno.ENOSYS, errno.EPERM)
"""Refused by a filter around all of sockguard."""


def enter() -> int:
    """1 when this process has that root, 0 where it may not. Every capability is given up. Raises OSError."""
    try:
        if not rights.effective_capabilities() >= TAKES:
            return 0
        try:
            os.chroot(_FOLDER)
        except OSError as error:
            if error.errno in _MISSING:
                return 0
            raise
        os.chdir("/")
        return 1
    finally:
        rights.set_capabilities((), ())
