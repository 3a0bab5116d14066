"""The peer as plain data: everything a rule can ask about, each fact known, or unknown with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OVERFLOW_ID: Final = 65534
"""The uid or gid that the kernel shows for one that has no mapping here (/proc/sys/kernel/overflowuid)."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that cannot be known. ``reason`` is for people: plain, without a final stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unchecked(Unknown):
    """A program's path in its own mount namespace. To no rule it made a difference, when it was read, whether that very
    file is at that path here, too; so nobody has looked: the path can lead to a file system that hangs.

    A condition whose patterns do not match it is false; one whose patterns do is unknown.
    """

    path: str


def unchecked(path: str) -> Unknown:
    """The path that a process has given itself, with the reason why that is all."""
    if path.endswith(_DELETED):
        return Unknown("its program's file was removed or replaced")
    return Unchecked("its program's file was not looked at, since no rule asked about it then", path)


_DELETED: Final = " (deleted)"
"""What the kernel appends to the path of a program whose file is no longer there (proc_pid_exe(5))."""

NOT_ASKED: Final = Unknown("not looked up: no rule of this proxy asks for it")


@dataclass(frozen=True, slots=True)
class Peer:
    """A client of one connection, as it was when it connected.

    uid, gid    effective ids at connect() (SO_PEERCRED; unsigned 32 bit)
    groups      supplementary groups and ``gid`` together (SO_PEERGROUPS, unix(7)), or Unknown; of a connection's
                peer those that rules name
    pid         thread group id at connect(); 0 when it is in a foreign pid namespace
    user        the account's name, for people only; None when the uid has none
    executable  absolute path of the program, checked to be the file at that path in our own view; or Unchecked
    cgroup      the whole path in the unified (or systemd's) hierarchy, e.g. "/system.slice/cron.service"
    label       the security label at connect() (SO_PEERSEC)
    """

    uid: int
    gid: int
    groups: frozenset[int] | Unknown
    pid: int = 0
    user: str | None = None
    executable: str | Unknown = NOT_ASKED
    cgroup: str | Unknown = NOT_ASKED
    label: str | Unknown = NOT_ASKED
