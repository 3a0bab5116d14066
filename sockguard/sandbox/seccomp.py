"""Putting the filter of policy.py in force (seccomp(2)). On an unknown architecture there is none, and that is said."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Collection
from typing import Final

from sockguard.sandbox import bpf, policy
from sockguard.sandbox.libc import syscall

_SET_MODE_FILTER: Final = 1
_GET_ACTION_AVAIL: Final = 2
"""linux/seccomp.h, SECCOMP_*"""

_MISSING: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Not built in, no filters, this action is too new, or refused by a filter around all of sockguard."""


def enter(kind: policy.Kind = policy.RELAY, channels: Collection[int] = ()) -> int:
    """See policy.program. Needs no_new_privs. 1 when the filter is in force, 0 where it cannot be. Raises OSError."""
    architecture = policy.ARCHITECTURES.get(os.uname().machine)
    seccomp = architecture.number("seccomp") if architecture else None
    if architecture is None or seccomp is None:
        return 0
    if sys.maxsize < 2**32:  # a 32-bit interpreter on a 64-bit kernel: its calls have other numbers
        return 0
    try:
        action = ctypes.create_string_buffer(struct.pack("=I", bpf.KILL_PROCESS), 4)
        syscall(seccomp, _GET_ACTION_AVAIL, 0, action)
    except OSError as error:
        if error.errno in _MISSING:
            return 0
        raise
    code = bpf.assemble(policy.program(architecture, kind, channels))
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a short count, padding, a pointer
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    # No SECCOMP_FILTER_FLAG_SPEC_ALLOW: what older kernels add against speculation for filtered processes stays on.
    syscall(seccomp, _SET_MODE_FILTER, 0, ctypes.create_string_buffer(program, len(program)))
    return 1
