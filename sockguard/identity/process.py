"""What /proc says about a process that is pinned by a pidfd: its program, its cgroup, and for `explain` its ids.

A pid may be reused at any time, so each look goes: take the pidfd, read under the pid that its fdinfo names, then ask
the pidfd whether the process still lives. Only if it does, what was read belongs to it. What cannot be read, or not
trusted, is Unknown with its reason. These facts narrow a rule and never authenticate: a process may exec after it
has connected.

Looking at a program's file can wait for a file system that hangs (NFS, FUSE, an automounter), and which one that is the
peer chooses. So ``program`` does not look, and whoever calls ``compare`` must be able to wait.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sockguard.identity.peer import Peer, Unknown
from sockguard.identity.peercred import alive, credentials, peer_pidfd
from sockguard.words import shortened

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


@dataclass(frozen=True, slots=True)
class Program:
    """A program by the path that it has in its own mount namespace. ``pidfd`` pins the process; close it."""

    pidfd: int
    pid: int
    path: str


def program(sock: socket.socket) -> Program | Unknown:
    """What the peer of ``sock`` runs, by its own word: nothing is looked at but /proc. Never raises OSError."""
    pidfd = _pinned(sock)
    if isinstance(pidfd, Unknown):
        return pidfd
    pid = _readable_pid(pidfd)
    path = pid if isinstance(pid, Unknown) else _own_path(pid)
    if isinstance(pid, int) and isinstance(path, str) and alive(pidfd):
        return Program(pidfd, pid, path)
    os.close(pidfd)
    return path if isinstance(path, Unknown) else GONE


def compare(pidfd: int, pid: int, path: str) -> Unknown | None:
    """Is the program of the pinned process the very file that is at ``path`` here? Says why not, or why that cannot be
    known. Waits for the file systems of both for as long as they take.
    """
    fault = _compare(pid, path)
    return fault if alive(pidfd) else GONE


def cgroup_of_peer(sock: socket.socket) -> str | Unknown:
    """Return the cgroup path of the peer of ``sock``. Never raises OSError."""
    pidfd = _pinned(sock)
    if isinstance(pidfd, Unknown):
        return pidfd
    try:
        return cgroup(pidfd)
    finally:
        os.close(pidfd)


def executable(pidfd: int) -> str | Unknown:
    """Return the absolute path of the program that the pinned process runs, if it is that file in our own view too.
    Waits for its file system.
    """
    return _fact(pidfd, _executable)


def cgroup(pidfd: int) -> str | Unknown:
    """Return the cgroup path of the pinned process, e.g. "/system.slice/cron.service"."""
    return _fact(pidfd, _cgroup)


def running_peer(pid: int) -> Peer:
    """Return the peer that the running process ``pid`` would be if it connected now; ``user`` is left None.

    Raises ProcessLookupError when there is no such process or it ends meanwhile, OSError when /proc hides it.
    """
    pidfd = os.pidfd_open(pid)
    try:
        uid, gid, groups = _ids(pid)
        label = _label(pid)
        program, path = executable(pidfd), cgroup(pidfd)
        if not alive(pidfd):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    finally:
        os.close(pidfd)
    return Peer(uid=uid, gid=gid, groups=groups | {gid}, pid=pid, executable=program, cgroup=path, label=label)


def _pinned(sock: socket.socket) -> int | Unknown:
    """A pidfd of the peer of ``sock``, for the caller to close."""
    try:
        pidfd = peer_pidfd(sock)
        if pidfd is None:
            return FOREIGN if credentials(sock)[0] == 0 else GONE
    except OSError as error:
        return Unknown(f"no pidfd of the process: {error.strerror}")
    return pidfd


def _fact(pidfd: int, read: Callable[[int], str | Unknown]) -> str | Unknown:
    pid = _readable_pid(pidfd)
    if isinstance(pid, Unknown):
        return pid
    fact = read(pid)
    # Last: as it lives now, the pid was its own all along, and what was read is about it.
    return fact if alive(pidfd) else GONE


def _readable_pid(pidfd: int) -> int | Unknown:
    try:
        pid = _pid_of(pidfd)
    except (OSError, ValueError):
        return Unknown("/proc does not tell the pid of the process")
    if pid <= 0:
        return FOREIGN if pid == 0 else GONE
    return pid


def _pid_of(pidfd: int) -> int:
    """Return the pid in the namespace of our /proc: 0 when it has none there, -1 when it has gone."""
    for line in _read(f"/proc/self/fdinfo/{pidfd}", FDINFO_LIMIT).splitlines():
        if line.startswith(b"Pid:"):
            return int(line[len(b"Pid:") :])
    raise ValueError("no Pid line: not a pidfd")


def _executable(pid: int) -> str | Unknown:
    path = _own_path(pid)
    return path if isinstance(path, Unknown) else _compare(pid, path) or path


def _own_path(pid: int) -> str | Unknown:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError as error:
        return _no_program(error)


def _compare(pid: int, path: str) -> Unknown | None:
    try:
        running = os.stat(f"/proc/{pid}/exe")
    except OSError as error:
        return _no_program(error)
    # The path is that of the peer's own mount namespace, where anything may be mounted over it. The inode is pinned by
    # the running program, so equal numbers mean the very same file.
    try:
        here = os.stat(path)
    except OSError as error:
        return Unknown(f"its program {_shown(path)} cannot be found at that path: {error.strerror}")
    if (here.st_dev, here.st_ino) != (running.st_dev, running.st_ino):
        return Unknown(f"another file is at the path of its program {_shown(path)}")
    return None


def _no_program(error: OSError) -> Unknown:
    if error.errno in (errno.EACCES, errno.EPERM):
        return NEEDS_PTRACE
    if error.errno in _NO_FILE:
        return HIDDEN
    return Unknown(f"the program cannot be read: {error.strerror}")


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
    """A path for a reason that people read: another user chose it, so it is kept short, and on one line."""
    return shortened(ascii(path) if not path.isprintable() else path)
