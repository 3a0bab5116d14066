"""Landlock: everything that this kernel's Landlock knows is handled, and no rule gives any of it back (landlock(7)).

It does not reach what the relay holds already: sockets, its channel, a memfd. A connect to a path is seccomp's to
stop where the ABI is below 9.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from sockguard.sandbox.libc import syscall

_CREATE_RULESET: Final = 444
_RESTRICT_SELF: Final = 446
"""asm-generic/unistd.h; system calls of this age have one number on every architecture but alpha."""

_CREATE_RULESET_VERSION: Final = 1

_FILES: Final = (
    (1, (1 << 13) - 1),  # LANDLOCK_ACCESS_FS_EXECUTE (bit 0) … LANDLOCK_ACCESS_FS_MAKE_SYM (bit 12)
    (2, 1 << 13),  # LANDLOCK_ACCESS_FS_REFER
    (3, 1 << 14),  # LANDLOCK_ACCESS_FS_TRUNCATE
    (5, 1 << 15),  # LANDLOCK_ACCESS_FS_IOCTL_DEV
    (9, 1 << 16),  # LANDLOCK_ACCESS_FS_RESOLVE_UNIX
)
_NET: Final = ((4, 1 << 0), (4, 1 << 1))  # LANDLOCK_ACCESS_NET_BIND_TCP, LANDLOCK_ACCESS_NET_CONNECT_TCP
_SCOPES: Final = ((6, 1 << 0), (6, 1 << 1))  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL
"""linux/landlock.h: what there is to handle, each with the ABI that brought it."""

_MISSING: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Not built in, not chosen at boot, or refused by a filter around all of sockguard."""


def abi() -> int:
    """The kernel's Landlock ABI, 0 for none."""
    if os.uname().machine == "alpha":
        return 0
    try:
        return syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in _MISSING:
            return 0
        raise


def attributes(version: int) -> bytes:
    """struct landlock_ruleset_attr for that ABI: everything it knows, and nothing that it does not (EINVAL)."""
    files, net, scopes = (sum(bit for since, bit in known if since <= version) for known in (_FILES, _NET, _SCOPES))
    fields = 1 if version < 4 else 2 if version < 6 else 3
    return struct.pack(f"={fields}Q", *(files, net, scopes)[:fields])


def enter() -> int:
    """Needs no_new_privs. The ABI that is in force now, 0 without Landlock. Raises OSError."""
    version = abi()
    if version:
        data = attributes(version)
        ruleset = syscall(_CREATE_RULESET, ctypes.create_string_buffer(data, len(data)), len(data), 0)
        try:
            syscall(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    return version
