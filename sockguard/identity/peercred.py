"""What the kernel says about the peer of a connected UNIX socket. Nothing else: no /proc text, no account, no rule.

Used on the accept path and by the privileged monitor, so it is short enough to read at one go. All ids are those at
connect() (unix(7)): a peer that execs, changes its uid or exits afterwards changes nothing here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from typing import Final

from sockguard.identity.peer import Unknown

# include/uapi/asm-generic/socket.h; Python's socket module does not name them all.
SO_PEERSEC: Final = 31
SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77

NGROUPS_MAX: Final = 65536
"""Most supplementary groups of a process, include/uapi/linux/limits.h."""

MANY_GROUPS: Final = 1024
"""More than a directory gives to anybody: a token of Active Directory holds 1,024 groups at most."""

LABEL_LIMIT: Final = 4096
"""Longest security label that is read, bytes."""

INVALID_ID: Final = 0xFFFFFFFF
"""(uid_t)-1: what SO_PEERCRED shows where there is no peer."""

_UCRED: Final = struct.Struct("=iII")
_GID_SIZE: Final = 4
_PYTHON_LIMIT: Final = 1024  # socket.getsockopt refuses longer buffers
_STAT_LIMIT: Final = 4096  # /proc/PID/stat is one short line
_STAT_STARTTIME: Final = 22 - 3  # proc_pid_stat(5): field 22; what follows the program's name begins with field 3

_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return (pid, effective uid, effective gid) of the peer at connect().

    pid is 0 for a peer in a foreign pid namespace; ids without a mapping here are 65534. Raises OSError; ENOTCONN
    where there is no peer.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid == INVALID_ID:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return pid, uid, gid


def raw_groups(sock: socket.socket) -> bytes | Unknown:
    """Return the peer's supplementary groups at connect(), however many, as the kernel gives them: unsigned, 32 bits
    each, in this machine's byte order. The effective gid is not added.
    """
    try:
        return _option(sock, SO_PEERGROUPS, NGROUPS_MAX * _GID_SIZE)
    except OSError as error:
        return Unknown(f"the kernel does not tell its groups: {error.strerror}")


def supplementary_groups(sock: socket.socket) -> frozenset[int] | Unknown:
    """Return the peer's supplementary groups at connect(), as a set of all of them, which may take 4 MiB."""
    raw = raw_groups(sock)
    return raw if isinstance(raw, Unknown) else frozenset(memoryview(raw).cast("I"))


def has_many_groups(sock: socket.socket) -> bool:
    """Tell whether the peer had more than MANY_GROUPS at connect(). None is copied. False where it is unknown."""
    try:
        return _length(sock, SO_PEERGROUPS) > MANY_GROUPS * _GID_SIZE
    except OSError:
        return False


def label(sock: socket.socket) -> str | Unknown:
    """Return the peer's security label at connect(), without its final NUL. Odd bytes are kept as surrogates."""
    try:
        raw = _option(sock, SO_PEERSEC, LABEL_LIMIT)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return Unknown("no security module labels sockets on this machine")
        return Unknown(f"the kernel does not tell its label: {error.strerror}")
    text = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return text or Unknown("its label is empty")


def peer_pidfd(sock: socket.socket) -> int | None:
    """Return a pidfd of the peer, for the caller to close; None when the peer has gone, or cannot be named.

    Before Linux 6.5 the pidfd is opened by pid. Then a process that started after this call is told apart; one that
    took the pid over earlier, between connect() and this call, cannot be. Raises OSError (EMFILE, ENFILE, ENOMEM).
    """
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ESRCH):
            return None
        if error.errno != errno.ENOPROTOOPT:
            raise
        opened = _pidfd_by_pid(credentials(sock)[0])
        if opened is None:
            return None
        pidfd = opened
    # Newer kernels also give a pidfd of a process that has been reaped (its fdinfo says "Pid: -1").
    if not alive(pidfd):
        os.close(pidfd)
        return None
    return pidfd


def alive(pidfd: int) -> bool:
    """Tell whether the process still runs: a pidfd is readable once its whole thread group has exited."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def _option(sock: socket.socket, option: int, limit: int) -> bytes:
    """Read an option of unknown length, up to ``limit`` bytes. Raises OSError; ERANGE beyond the limit."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option, _PYTHON_LIMIT)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    length = ctypes.c_uint32(_length(sock, option))
    if length.value > limit:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    buffer = ctypes.create_string_buffer(length.value)
    if _getsockopt(sock.fileno(), socket.SOL_SOCKET, option, buffer, ctypes.byref(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]


def _length(sock: socket.socket, option: int) -> int:
    """Return the length of such an option in bytes. Raises OSError."""
    length = ctypes.c_uint32(0)
    if _getsockopt(sock.fileno(), socket.SOL_SOCKET, option, None, ctypes.byref(length)) == 0:
        return 0
    code = ctypes.get_errno()
    if code != errno.ERANGE:
        raise OSError(code, os.strerror(code))
    return length.value  # with ERANGE the kernel writes what it needs


def _pidfd_by_pid(pid: int) -> int | None:
    if pid <= 0:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a thread's id, not a process's: the pid has been reused
            return None
        raise
    try:
        started = _start_time(pid)
    except (OSError, ValueError, IndexError):
        started = None
    if started is None or started > now:
        os.close(pidfd)
        return None
    return pidfd


def _start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        text = file.read(_STAT_LIMIT) or b""
    # The program's name, in parentheses, may itself hold spaces and parentheses.
    return int(text[text.rindex(b")") + 2 :].split()[_STAT_STARTTIME])
