"""Which facilities this kernel has and what the lack of one costs. Tries each; never goes by the version.

Every probe works on sockets, descriptors and memory of its own and leaves nothing behind. A sandbox around this
process can make a facility look missing: then it is missing here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sockguard.policy.lint import Finding
from sockguard.privsep.sockopt import SO_PASSRIGHTS

SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h; the same on every architecture of Debian."""

SYS_LANDLOCK_CREATE_RULESET: Final = 444
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
"""linux/landlock.h; system calls of this age have one number on every architecture but alpha."""

PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
"""linux/prctl.h, linux/seccomp.h"""

OPTION_MAX: Final = 1024
"""Bytes that socket.getsockopt takes at most. A longer label (ERANGE) is one all the same."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One facility. ``probe`` says what it found, for people, or None when the facility is missing."""

    name: str
    probe: Callable[[], str | None]
    cost: str
    remedy: str


def kernel_findings() -> list[Finding]:
    """Say of each facility whether it is there; always in the same order."""
    return [_finding(feature) for feature in FEATURES]


def _finding(feature: Feature) -> Finding:
    try:
        found = feature.probe()
    except OSError as error:
        text = f"{feature.name} could not be tried ({error.strerror or error}); without it, {feature.cost}"
        return Finding("warning", "kernel", text, feature.remedy)
    if found is None:
        return Finding("warning", "kernel", f"{feature.name} is missing: {feature.cost}", feature.remedy)
    return Finding("info", "kernel", f"{feature.name}: {found}", "")


def _missing(error: OSError) -> bool:
    return error.errno in (errno.ENOPROTOOPT, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def _option(option: int, size: int) -> bytes | None:
    """Read a SOL_SOCKET option about the peer of a connected pair; None where the kernel does not know it."""
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        try:
            return left.getsockopt(socket.SOL_SOCKET, option, size)
        except OSError as error:
            if error.errno == errno.ERANGE:  # there is one, and it is longer
                return b""
            if _missing(error):
                return None
            raise


def peer_pidfd() -> str | None:
    raw = _option(SO_PEERPIDFD, 4)
    if raw is None:
        return None
    os.close(int.from_bytes(raw, sys.byteorder))
    return "present"


def pass_rights() -> str | None:
    return None if _option(SO_PASSRIGHTS, 4) is None else "present"


def peer_groups() -> str | None:
    return None if _option(SO_PEERGROUPS, OPTION_MAX) is None else "present"


def peer_label() -> str | None:
    return None if _option(socket.SO_PEERSEC, OPTION_MAX) is None else "present"


def pidfd_open() -> str | None:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if _missing(error):
            return None
        raise
    return "present"


def sealed_memfd() -> str | None:
    try:
        fd = os.memfd_create("sockguard-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if _missing(error):
            return None
        raise
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    finally:
        os.close(fd)
    return "present"


def seccomp_filter() -> str | None:
    """A null filter ends in EFAULT where filters are supported, EINVAL where not (seccomp(2)); it changes nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_void_p(None))
    return "present" if ctypes.get_errno() == errno.EFAULT else None


def landlock() -> str | None:
    if platform.machine() == "alpha":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(
        ctypes.c_long(SYS_LANDLOCK_CREATE_RULESET),
        ctypes.c_void_p(None),
        ctypes.c_size_t(0),
        ctypes.c_uint(LANDLOCK_CREATE_RULESET_VERSION),
    )
    return f"ABI {version}" if version > 0 else None


FEATURES: Final = (
    Feature(
        "SO_PEERPIDFD",
        peer_pidfd,
        "a client is found by its pid and start time, so more of them have gone before executables and units are known",
        "Linux 6.5 or later",
    ),
    Feature(
        "SO_PASSRIGHTS",
        pass_rights,
        'with fds = "refuse", a client that passes a descriptor is not told at once, but cut off when it is received',
        "Linux 6.16 or later",
    ),
    Feature(
        "SO_PEERGROUPS",
        peer_groups,
        "supplementary groups are unknown: rules with groups go by the effective gid, and a deny with groups denies",
        "Linux 4.13 or later",
    ),
    Feature(
        "LSM labels (SO_PEERSEC)",
        peer_label,
        "labels are unknown: an allow with labels admits nobody, a deny with labels denies everybody it is asked about",
        "boot with AppArmor, SELinux or Smack if rules are to ask for labels",
    ),
    Feature(
        "pidfd_open",
        pidfd_open,
        "a process cannot be pinned: executables and units are unknown, so an allow with them admits nobody",
        "Linux 5.3 or later",
    ),
    Feature(
        "memfd sealing",
        sealed_memfd,
        "rules too long for one packet cannot be handed to relays",
        "a kernel with CONFIG_MEMFD_CREATE",
    ),
    Feature(
        "seccomp filters",
        seccomp_filter,
        "a relay that was taken over could open sockets and signal or trace other processes of its uid",
        "a kernel with CONFIG_SECCOMP_FILTER",
    ),
    Feature(
        "Landlock",
        landlock,
        "only its uid keeps a relay that was taken over from files",
        "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among lsm= at boot",
    ),
)
"""In the order in which they are reported."""
