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
from collections.abc import Collection
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
_BOTH: Final = {
    "epoll_wait": "Loop.run, and the master's",
    "epoll_pwait": "the same, where an architecture or a libc has no other",
    "recvmsg": "Side.peek; Carrier",
    "sendto": "Side.put; reports, and orders to the master: socket.send",
    "recvfrom": "Side.take; socket.recv",
    "sendmsg": "Carriers._give, Disposal; _send_with of a carrier",
    "epoll_ctl": "Loop.watch, and the master's",
    "epoll_create1": "Loop, and the master",
    "close": "Side.close; close_all",
    "getsockname": "socket.socket(fileno=...) asks for it",
    "mmap": "memory: the interpreter's, and large blocks",
    "munmap": "the same, given back",
    "mremap": "realloc of large blocks",
    "brk": "malloc",
    "futex": "locks of the interpreter and libc, where somebody waits",
    "getrandom": "malloc of libc, at its first use and after a fork",
    "clock_gettime": "monotonic(), where the vDSO has no clock",
    "exit_group": "leave()",
}

ALLOWED: Final[dict[Kind, dict[str, str]]] = {
    RELAY: {
        **_BOTH,
        "splice": "Side.splice",
        "pipe2": "Pipe",
        "shutdown": "Side.end; Carriers.lose",
        "write": "Outlet.flush",
        "poll": "is there an urgent byte, and the outlet's room",
        "ppoll": "the same, where an architecture has no other",
        "pread64": "memfd.read, of a generation",
        "lseek": "the same",
        "ioctl": "setblocking; what is unread, and untaken",
        "fcntl": "memfd.read asks for seals; Pipe for its size",
        "getsockopt": "foreign.refuses; Side.on_events; what a record needs",
        "setsockopt": "peeking at senders; SO_OOBINLINE; what a record needs",
    },
    CARRIERS: {
        **_BOTH,
        "clone": "os.fork in the master",
        "gettid": "the interpreter, after a fork",
        "rt_sigprocmask": "fork of some libcs",
        "wait4": "os.waitpid in the master",
        "socketpair": "the gate of a keeper",
        "clock_nanosleep": "time.sleep in the master, where no process can be had",
        "restart_syscall": "the same, after SIGSTOP and SIGCONT: the kernel's own",
    },
}
"""Allowed, within CHECKS, and who needs it. By path alone none of them reaches anything; no stat (newfstatat cannot be
held to an fd). What is called most stands first.
"""

# linux/sched.h, CLONE_*: shared memory, other namespaces, and what else fork(3) does not ask for.
_SHARED: Final = 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00002000 | 0x00004000 | 0x00008000 | 0x00010000
_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_CHECKS_OF_BOTH: Final[dict[str, tuple[bpf.Check, ...]]] = {
    # To the peer of a socket and nowhere else: the length of the address, an int, is 0, and then it is not looked at.
    "sendto": (OneOf(5, (0,)),),
    # No new code, ever; refused, not killed, so that an interpreter with a JIT goes on without.
    "mmap": (Without(2, mmap.PROT_EXEC),),
}

CHECKS: Final[dict[Kind, dict[str, tuple[bpf.Check, ...]]]] = {
    RELAY: {
        **_CHECKS_OF_BOTH,
        # Not FIOSETOWN, SIOCSPGRP, FIOASYNC: with them the kernel signals others in the relay's name.
        "ioctl": (OneOf(1, (termios.FIONREAD, termios.FIONBIO, termios.TIOCOUTQ)),),
        # Not F_SETOWN, F_SETSIG: the same, and with any signal. Not F_DUPFD, F_ADD_SEALS, F_NOTIFY, locks, leases.
        "fcntl": (OneOf(1, (fcntl.F_GET_SEALS, fcntl.F_SETPIPE_SZ)),),
        "getsockopt": (
            OneOf(1, (socket.SOL_SOCKET,)),
            OneOf(2, (socket.SO_ERROR, socket.SO_SNDBUF, socket.SO_PASSCRED, SO_PASSRIGHTS)),
        ),
        "setsockopt": (
            OneOf(1, (socket.SOL_SOCKET,)),
            OneOf(2, (socket.SO_PASSCRED, socket.SO_SNDBUF, socket.SO_OOBINLINE)),
        ),
        "write": (OneOf(0, (OUTLET_FD,)),),
    },
    CARRIERS: {**_CHECKS_OF_BOTH, "clone": (Without(0, _SHARED | _NAMESPACES),)},
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


def program(architecture: Architecture, kind: Kind = RELAY, channels: Collection[int] = ()) -> list[bpf.Instruction]:
    """The filter for that architecture. channels: the descriptors by which a relay passes others on to its carriers."""
    refused = bpf.ERRNO | errno.EPERM
    allowed, checked = ALLOWED[kind], {**CHECKS[kind], **_on_channels(kind, channels)}
    killed = tuple(name for name in KILLED if name not in allowed)
    lines = bpf.prologue(architecture.audit, architecture.highest)
    if kind is CARRIERS:  # libc goes on with clone then, the flags of which a filter can see
        lines += _no_such_call(architecture, "clone3")
    for names, action in ((tuple(allowed), bpf.ALLOW), (killed, bpf.KILL_PROCESS)):
        for name in names:
            number = architecture.number(name)
            if number is not None:
                checks = checked.get(name, ()) if action == bpf.ALLOW else ()
                lines += bpf.answer(number, action, checks, refused)
    lines += bpf.above(NEWEST, bpf.ERRNO | errno.ENOSYS)
    lines += bpf.otherwise(refused)
    return lines


def _on_channels(kind: Kind, channels: Collection[int]) -> dict[str, tuple[bpf.Check, ...]]:
    """sendmsg is the one call with an address, or descriptors, that no filter sees. So a relay may make it where nobody
    but a carrier or the master listens, and never closes these, as with its ways to control.
    """
    if kind is not RELAY:
        return {}
    fixed = tuple(sorted(channels))
    return {"sendmsg": (OneOf(0, fixed),), "close": (NoneOf(0, (CHANNEL_FD, OUTLET_FD, *fixed)),)}


def _no_such_call(architecture: Architecture, name: str) -> list[bpf.Instruction]:
    number = architecture.number(name)
    return [] if number is None else bpf.answer(number, bpf.ERRNO | errno.ENOSYS)
