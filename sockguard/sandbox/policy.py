"""Which system calls a relay may make in its cage. The list to read; pure data and its program.

Three answers to what is not allowed:
- killed: what reaches other processes, the network, new programs or a wider piece of the kernel. No interpreter does
  such a thing by itself, so whoever tries it has taken the relay over.
- "not permitted": all else. An interpreter looks for files when it words a fault, libc asks for limits: such a call
  must fail, but the relay goes on and can still say what is wrong.
- "no such system call": numbers newer than the table, so that a newer libc falls back to one that is known.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import socket
import termios
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sockguard.privsep.sockopt import SO_PASSRIGHTS
from sockguard.privsep.spawn import CHANNEL_FD, OUTLET_FD
from sockguard.sandbox import bpf
from sockguard.sandbox.bpf import NoneOf, OneOf, Without
from sockguard.sandbox.calls import NEWEST, NUMBERS


class Kind(Enum):
    """What a cage is for: relays, or carriers and the master that forks them (sockguard/carriers)."""

    RELAY = "relay"
    CARRIERS = "carriers"


RELAY: Final = Kind.RELAY
CARRIERS: Final = Kind.CARRIERS

# fmt: off
ALLOWED: Final = (
    # the loop, by how often
    "epoll_wait", "epoll_pwait", "recvmsg", "sendto", "recvfrom", "sendmsg", "epoll_ctl", "splice",
    "close", "shutdown", "pipe2", "epoll_create1",
    "getsockname",  # socket.socket(fileno=...) asks for it
    "getpeername",  # so does the text of a socket
    "pread64", "lseek",  # a generation's memfd
    "poll", "ppoll",  # is there an urgent byte
    # the interpreter and libc
    "mmap", "munmap", "mremap", "brk", "madvise", "mprotect", "futex", "getrandom",
    "clock_gettime", "clock_nanosleep", "sched_yield",  # the first is a call where the vDSO has no clock
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "getpid", "gettid",
    "restart_syscall",  # the kernel's own, after SIGSTOP and SIGCONT
    "exit", "exit_group",
    "ioctl", "fcntl", "getsockopt", "setsockopt",
)
"""Allowed, within CHECKS. By path alone none of them reaches anything; no stat (newfstatat cannot be held to an fd)."""

CHECKS: Final[dict[str, tuple[bpf.Check, ...]]] = {
    # Not FIOSETOWN, SIOCSPGRP, FIOASYNC: with them the kernel signals others in the relay's name.
    "ioctl": (OneOf(1, (termios.FIONREAD, termios.FIONBIO, termios.TIOCOUTQ)),),
    # Not F_SETOWN, F_SETSIG: the same, and with any signal. Not F_ADD_SEALS, F_NOTIFY, locks, leases.
    "fcntl": (
        OneOf(1, (
            fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC,
            fcntl.F_GET_SEALS, fcntl.F_SETPIPE_SZ,
        )),
    ),
    "getsockopt": (
        OneOf(1, (socket.SOL_SOCKET,)),
        OneOf(2, (
            socket.SO_ERROR, socket.SO_SNDBUF, socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL,
            socket.SO_PASSCRED, SO_PASSRIGHTS,
        )),
    ),
    "setsockopt": (
        OneOf(1, (socket.SOL_SOCKET,)),
        OneOf(2, (socket.SO_PASSCRED, socket.SO_SNDBUF, socket.SO_OOBINLINE)),
    ),
    # No new code, ever; refused, not killed, so that an interpreter with a JIT goes on without.
    "mmap": (Without(2, mmap.PROT_EXEC),),
    "mprotect": (Without(2, mmap.PROT_EXEC),),
}

# linux/sched.h, CLONE_*: shared memory, other namespaces, and what else fork(3) does not ask for.
_SHARED: Final = 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00002000 | 0x00004000 | 0x00008000 | 0x00010000
_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

MORE: Final = {RELAY: ("write",), CARRIERS: ("clone", "wait4", "socketpair")}
"""What each kind is allowed beyond ALLOWED, within MORE_CHECKS: relays to write to control, carriers to fork."""

MORE_CHECKS: Final[dict[Kind, dict[str, tuple[bpf.Check, ...]]]] = {
    # Neither the channel nor the pipe to control can be closed, so their numbers never come to mean another file.
    RELAY: {"write": (OneOf(0, (OUTLET_FD,)),), "close": (NoneOf(0, (CHANNEL_FD, OUTLET_FD)),)},
    CARRIERS: {"clone": (Without(0, _SHARED | _NAMESPACES),)},
}

KILLED: Final = (
    # new sockets
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4",
    # new processes and programs
    "execve", "execveat", "fork", "vfork", "clone", "clone3",
    # other processes
    "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    "pidfd_open", "pidfd_getfd", "pidfd_send_signal",
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp",
    # other identities, roots and namespaces
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
    "capset", "personality", "unshare", "setns", "chroot", "mount", "umount2", "pivot_root",
    "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
    "name_to_handle_at", "open_by_handle_at",
    # where kernels have had most of their holes, and calls that would pass a filter by
    "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit",
    "bpf", "keyctl", "add_key", "request_key", "userfaultfd", "perf_event_open", "seccomp",
)
"""The end of whoever tries: SIGSYS, which nothing catches."""
# fmt: on


@dataclass(frozen=True, slots=True)
class Architecture:
    """column: in calls.NUMBERS; audit: AUDIT_ARCH_* of linux/audit.h; highest: a number above it is another ABI's."""

    column: int
    audit: int
    highest: int

    def number(self, name: str) -> int | None:
        return NUMBERS[name][self.column]


ARCHITECTURES: Final = {
    "x86_64": Architecture(0, 0xC000003E, 0x3FFFFFFF),  # from 0x40000000 on: x32 (__X32_SYSCALL_BIT, asm/unistd.h)
    "aarch64": Architecture(1, 0xC00000B7, 0x7FFFFFFF),
}
"""By uname -m."""


def program(architecture: Architecture, kind: Kind = RELAY) -> list[bpf.Instruction]:
    """The filter for that architecture."""
    refused = bpf.ERRNO | errno.EPERM
    more, checked = MORE[kind], {**CHECKS, **MORE_CHECKS[kind]}
    killed = tuple(name for name in KILLED if name not in more)
    lines = bpf.prologue(architecture.audit, architecture.highest)
    if kind is CARRIERS:  # libc goes on with clone then, the flags of which a filter can see
        lines += _no_such_call(architecture, "clone3")
    for names, action in ((ALLOWED, bpf.ALLOW), (more, bpf.ALLOW), (killed, bpf.KILL_PROCESS)):
        for name in names:
            number = architecture.number(name)
            if number is not None:
                checks = checked.get(name, ()) if action == bpf.ALLOW else ()
                lines += bpf.answer(number, action, checks, refused)
    lines += bpf.above(NEWEST, bpf.ERRNO | errno.ENOSYS)
    lines += bpf.otherwise(refused)
    return lines


def _no_such_call(architecture: Architecture, name: str) -> list[bpf.Instruction]:
    number = architecture.number(name)
    return [] if number is None else bpf.answer(number, bpf.ERRNO | errno.ENOSYS)
