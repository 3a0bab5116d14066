"""What /proc says about a process that is pinned by a pidfd: its program, its cgroup, and for `explain` its ids.

A pid may be reused at any time, so each look goes: take the pidfd, read under the pid that its fdinfo names, then ask
the pidfd whether the process still lives. Only if it does, what was read belongs to it. What cannot be read, or not
trusted, is Unknown with its reason. These facts narrow a rule and never authenticate: a process may exec after it
has connected.

Looking at a program's path can wait for a file system that hangs (NFS, FUSE).
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from sockguard.identity.peer import NOT_ASKED, Peer, Unknown
from sockguard.identity.peercred import alive, peer_pidfd

FDINFO_LIMIT: Final = 4096
CGROUP_LIMIT: Final = 65536
"""Bytes read of /proc/PID/cgroup: one line a hierarchy (a dozen at most), each with a path of up to PATH_MAX."""
STATUS_LIMIT: Final = 1 << 20
"""Bytes read of /proc/PID/status: its Groups line holds up to 65536 ids."""
ATTR_LIMIT: Final = 4096

GONE: Final = Unknown("the process has gone")
FOREIGN: Final = Unknown("in a foreign pid namespace")
HIDDEN: Final = Unknown("/proc does not show the process (hidepid or ProtectProc)")
NEEDS_PTRACE: Final = Unknown("reading another user's program needs CAP_SYS_PTRACE")

_NO_FILE: Final = (errno.ENOENT, errno.ESRCH)


def process_facts(
    sock: socket.socket, pid: int, *, want_executable: bool, want_cgroup: bool
) -> tuple[str | Unknown, str | Unknown]:
    """Return (program's path, cgroup path) of the peer of ``sock``; NOT_ASKED for what is not wanted.

    pid is the one that SO_PEERCRED gave; it only words the answer where there is no pidfd. Never raises OSError.
    """
    if not (want_executable or want_cgroup):
        return NOT_ASKED, NOT_ASKED
    try:
        pidfd = peer_pidfd(sock)
    except OSError as error:
        return _both(Unknown(f"no pidfd of the process: {error.strerror}"), want_executable, want_cgroup)
    if pidfd is None:
        return _both(FOREIGN if pid == 0 else GONE, want_executable, want_cgroup)
    try:
        return _facts(pidfd, want_executable=want_executable, want_cgroup=want_cgroup)
    finally:
        os.close(pidfd)


def executable(pidfd: int) -> str | Unknown:
    """Return the absolute path of the program that the pinned process runs, if it is that file in our own view too."""
    return _facts(pidfd, want_executable=True, want_cgroup=False)[0]


def cgroup(pidfd: int) -> str | Unknown:
    """Return the cgroup path of the pinned process, e.g. "/system.slice/cron.service"."""
    return _facts(pidfd, want_executable=False, want_cgroup=True)[1]


def running_peer(pid: int) -> Peer:
    """Return the peer that the running process ``pid`` would be if it connected now; ``user`` is left None.

    Raises ProcessLookupError when there is no such process or it ends meanwhile, OSError when /proc hides it.
    """
    pidfd = os.pidfd_open(pid)
    try:
        uid, gid, groups = _ids(pid)
        label = _label(pid)
        program, path = _facts(pidfd, want_executable=True, want_cgroup=True)
        if not alive(pidfd):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    finally:
        os.close(pidfd)
    return Peer(uid=uid, gid=gid, groups=groups | {gid}, pid=pid, executable=program, cgroup=path, label=label)


def _both(fact: Unknown, want_executable: bool, want_cgroup: bool) -> tuple[Unknown, Unknown]:
    return (fact if want_executable else NOT_ASKED), (fact if want_cgroup else NOT_ASKED)


def _facts(pidfd: int, *, want_executable: bool, want_cgroup: bool) -> tuple[str | Unknown, str | Unknown]:
    try:
        pid = _pid_of(pidfd)
    except (OSError, ValueError):
        return _both(Unknown("/proc does not tell the pid of the process"), want_executable, want_cgroup)
    if pid <= 0:
        return _both(FOREIGN if pid == 0 else GONE, want_executable, want_cgroup)
    program = _executable(pid) if want_executable else NOT_ASKED
    path = _cgroup(pid) if want_cgroup else NOT_ASKED
    # Last: as it lives now, the pid was its own all along, and what was read is about it.
    if not alive(pidfd):
        return _both(GONE, want_executable, want_cgroup)
    return program, path


def _pid_of(pidfd: int) -> int:
    """Return the pid in the namespace of our /proc: 0 when it has none there, -1 when it has gone."""
    for line in _read(f"/proc/self/fdinfo/{pidfd}", FDINFO_LIMIT).splitlines():
        if line.startswith(b"Pid:"):
            return int(line[len(b"Pid:") :])
    raise ValueError("no Pid line: not a pidfd")


def _executable(pid: int) -> str | Unknown:
    link = f"/proc/{pid}/exe"
    try:
        path = os.readlink(link)
        running = os.stat(link)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            return NEEDS_PTRACE
        if error.errno in _NO_FILE:
            return HIDDEN
        return Unknown(f"the program cannot be read: {error.strerror}")
    # The path is that of the peer's own mount namespace, where anything may be mounted over it. The inode is pinned by
    # the running program, so equal numbers mean the very same file.
    try:
        here = os.stat(path)
    except OSError as error:
        return Unknown(f"its program {_shown(path)} cannot be found at that path: {error.strerror}")
    if (here.st_dev, here.st_ino) != (running.st_dev, running.st_ino):
        return Unknown(f"another file is at the path of its program {_shown(path)}")
    return path


def _cgroup(pid: int) -> str | Unknown:
    try:
        raw = _read(f"/proc/{pid}/cgroup", CGROUP_LIMIT)
    except OSError as error:
        if error.errno in _NO_FILE:
            return HIDDEN
        return Unknown(f"the cgroup cannot be read: {error.strerror}")
    if len(raw) >= CGROUP_LIMIT:
        return Unknown("its list of cgroups is too long")
    return cgroup_path(raw.decode("utf-8", "surrogateescape"))


def cgroup_path(text: str) -> str | Unknown:
    """Return systemd's cgroup path out of the text of /proc/PID/cgroup (cgroups(7)): "ID:CONTROLLERS:PATH" a line.

    The unified hierarchy is asked first. Where it is not in use (absent, or everything in its root), systemd's own
    version 1 hierarchy is.
    """
    unified: str | None = None
    named: str | None = None
    for line in text.split("\n"):  # not splitlines: a name may hold what Python takes for line ends
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            unified = path
        elif controllers == "name=systemd":
            named = path
    path = (named if named and unified in (None, "", "/") else unified) or ""
    if not path.startswith("/"):
        return Unknown("it is in no cgroup that systemd manages")
    if path == "/.." or path.startswith("/../"):
        return Unknown("its cgroup is outside of our cgroup namespace")
    return path


def _ids(pid: int) -> tuple[int, int, frozenset[int]]:
    """Return (effective uid, effective gid, supplementary groups) from /proc/PID/status, proc_pid_status(5)."""
    fields: dict[bytes, list[int]] = {}
    for line in _read(f"/proc/{pid}/status", STATUS_LIMIT).split(b"\n"):
        key, _, values = line.partition(b":")
        if key in (b"Uid", b"Gid", b"Groups"):
            fields[key] = [int(value) for value in values.split()]
    # real, effective, saved, file system
    return fields[b"Uid"][1], fields[b"Gid"][1], frozenset(fields[b"Groups"])


def _label(pid: int) -> str | Unknown:
    try:
        raw = _read(f"/proc/{pid}/attr/current", ATTR_LIMIT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return Unknown("no security module labels processes on this machine")
        return Unknown(f"the label cannot be read: {error.strerror}")
    return raw.rstrip(b"\0\n").decode("utf-8", "surrogateescape") or Unknown("its label is empty")


def _read(path: str, limit: int) -> bytes:
    """Read at most ``limit`` bytes; /proc may give them in several pieces."""
    with open(path, "rb") as file:
        return file.read(limit)


def _shown(path: str) -> str:
    """A path for a reason that people read: another user chose it, so it is kept on one line."""
    return ascii(path) if not path.isprintable() else path
