"""How a process gives up its rights, for good, and checks that it has. Python's standard library and libc only.

Sources: capabilities(7), prctl(2), credentials(7), linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

CAP_CHOWN: Final = 0
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_SYS_CHROOT: Final = 18
CAP_SYS_PTRACE: Final = 19
CAPABILITY_NAMES: Final = {
    CAP_CHOWN: "CAP_CHOWN",
    CAP_SETGID: "CAP_SETGID",
    CAP_SETUID: "CAP_SETUID",
    CAP_SYS_CHROOT: "CAP_SYS_CHROOT",
    CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
}

CONTROL_USER: Final = "sockguard"
RELAY_USER: Final = "sockguard-relay"
"""The users that the processes become where there is privilege; the package makes them."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
_HIGHEST_CAPABILITY: Final = 63

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    """The ids that a process runs under; groups are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def _prctl(option: int, *args: int) -> None:
    values = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def harden(name: str) -> None:
    """First act of each process: no core, no ptrace by its own uid, nothing gained by exec; ``name`` shows in ps."""
    stay_undumpable()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def stay_undumpable() -> None:
    """After each change of ids, too: the kernel resets it to /proc/sys/fs/suid_dumpable then (proc_sys_fs(5))."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send that signal when the parent ends. It helps under one uid; else the channel's end tells."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def effective_capabilities(status: str = "/proc/self/status") -> frozenset[int]:
    """The effective set of a process, as numbers of linux/capability.h."""
    return _capability_line(status, "CapEff:")


def _capability_line(status: str, key: str) -> frozenset[int]:
    with open(status) as file:
        for line in file:
            if line.startswith(key):
                bits = int(line.split()[1], 16)
                return frozenset(n for n in range(_HIGHEST_CAPABILITY + 1) if bits >> n & 1)
    return frozenset()


def keep_capabilities(keep: Collection[int]) -> None:
    """Reduce permitted and effective set to ``keep``; inheritable, ambient and (where it may) the bounding set go."""
    held = effective_capabilities()
    if CAP_SETPCAP in held:
        for number in _capability_line("/proc/self/status", "CapBnd:") - frozenset(keep):
            _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    left = held & frozenset(keep)
    set_capabilities(left, left)


def set_capabilities(effective: Iterable[int], permitted: Iterable[int]) -> None:
    """Set these two sets; the inheritable one is emptied. Raises OSError: what is not permitted cannot become so."""
    sets = (sum(1 << n for n in effective), sum(1 << n for n in permitted), 0)
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(*(bits & 0xFFFFFFFF for bits in sets), *(bits >> 32 for bits in sets))
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def become(account: Account | None, *, keep: Collection[int] = ()) -> None:
    """Take over ``account`` (None: stay) and give up every capability but those of ``keep`` that it has.

    Raises OSError where that is not permitted, RuntimeError if anything is left afterwards.
    """
    _drop_bounding_set()  # before the uid goes, and CAP_SETPCAP with it
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        if keep:
            _prctl(_PR_SET_KEEPCAPS, 1)
        os.setresuid(account.uid, account.uid, account.uid)
        if keep:
            _prctl(_PR_SET_KEEPCAPS, 0)
            permitted = _capability_line("/proc/self/status", "CapPrm:")
            set_capabilities(permitted & frozenset(keep), permitted)
    keep_capabilities(keep)
    stay_undumpable()
    if account is not None and (
        os.getresuid() != (account.uid,) * 3
        or os.getresgid() != (account.gid,) * 3
        or sorted(os.getgroups()) != sorted(account.groups)
    ):
        raise RuntimeError("the kernel did not change this process's identity")
    if (effective_capabilities() | _capability_line("/proc/self/status", "CapPrm:")) - frozenset(keep):
        raise RuntimeError("capabilities are left after they were given up")


def _drop_bounding_set() -> None:
    if CAP_SETPCAP in effective_capabilities():
        for number in _capability_line("/proc/self/status", "CapBnd:"):
            _prctl(_PR_CAPBSET_DROP, number)


def open_files_limit() -> int:
    """No descriptor of this process has this number, or a higher one."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one; gives that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
