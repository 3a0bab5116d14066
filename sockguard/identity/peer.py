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


NOT_ASKED: Final = Unknown("not looked up: no rule of this proxy asks for it")


@dataclass(frozen=True, slots=True)
class Peer:
    """A client of one connection, as it was when it connected.

    uid, gid    effective ids at connect() (SO_PEERCRED; unsigned 32 bit)
    groups      supplementary groups and ``gid`` together (SO_PEERGROUPS, unix(7)), or Unknown
    pid         thread group id at connect(); 0 when it is in a foreign pid namespace
    user        the account's name, for people only; None when the uid has none
    executable  absolute path of the program, checked to be the file at that path in our own view
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
