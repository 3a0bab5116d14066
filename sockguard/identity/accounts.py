"""The account database as it was when the configuration was read. Knows names and ids; decides nothing.

Name services can hang, so nothing that serves a connection may ask them: what it needs (``name_of``, ``group_name_of``,
``owner_of_subuid``) answers from memory. ``uid_of``, ``gid_of`` and ``primary_of`` may ask, and are for the time when a
file is read or a person waits.
"""

from __future__ import annotations

import grp
import os
import pwd
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from sockguard.errors import SockguardError

SUBUID_FILE: Final = "/etc/subuid"
SUBUID_LIMIT: Final = 16 << 20
"""Bytes read of the subuid file; a million lines fit."""
ID_END: Final = (1 << 32) - 1
"""First number that is no uid: (uid_t)-1 means "none"."""

Account = tuple[str, int, int]
"""(name, uid, primary gid)"""


class Accounts:
    """Users, groups and sub-uid ranges. Give them by hand for a test, or take the system's by ``from_system``."""

    __slots__ = ("_gids", "_group_names", "_lookup", "_names", "_primary", "_subuids", "_uids")

    def __init__(
        self,
        users: Iterable[Account] = (),
        groups: Iterable[tuple[str, int]] = (),
        subuid: str = "",
        *,
        lookup: bool = False,
    ) -> None:
        """``subuid`` is the text of subuid(5). ``lookup``: may names that are not given be asked of the system?"""
        self._uids: dict[str, int] = {}
        self._gids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._group_names: dict[int, str] = {}
        self._primary: dict[int, int] = {}
        self._lookup = lookup
        for account in users:
            self._add_user(*account)
        for name, gid in groups:
            self._add_group(name, gid)
        self._subuids = _Ranges(self._subuid_ranges(subuid))

    @classmethod
    def from_system(cls) -> Accounts:
        """Take what the name services list, and /etc/subuid. May be slow where they are remote.

        Raises SockguardError where that file cannot be read: without it nobody knows whom sub-uids count for.
        """
        return cls(
            users=[(entry.pw_name, entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()],
            groups=[(entry.gr_name, entry.gr_gid) for entry in grp.getgrall()],
            subuid=_read_subuid(),
            lookup=True,
        )

    def uid_of(self, name: str) -> int | None:
        """Return the uid of a user. Asks the name services for one that they did not list (sssd lists none)."""
        known = self._uids.get(name)
        if known is not None or not self._lookup:
            return known
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):  # ValueError: a NUL in it, or not encodable
            return None
        # Under the name that was asked for too: some services ignore case.
        self._uids[name] = entry.pw_uid
        self._add_user(entry.pw_name, entry.pw_uid, entry.pw_gid)
        return entry.pw_uid

    def gid_of(self, name: str) -> int | None:
        """Return the gid of a group. Asks the name services for one that they did not list."""
        known = self._gids.get(name)
        if known is not None or not self._lookup:
            return known
        try:
            entry = grp.getgrnam(name)
        except (KeyError, ValueError):
            return None
        self._gids[name] = entry.gr_gid
        self._add_group(entry.gr_name, entry.gr_gid)
        return entry.gr_gid

    def name_of(self, uid: int) -> str | None:
        """Return the name of a uid that is known by now; the first of several. Never asks."""
        return self._names.get(uid)

    def group_name_of(self, gid: int) -> str | None:
        """Return the name of a gid that is known by now. Never asks."""
        return self._group_names.get(gid)

    def primary_of(self, uid: int) -> tuple[int, frozenset[int]] | None:
        """Return (primary gid, all gids a login would have, the primary among them); None without an account. Asks."""
        if uid not in self._names and self._lookup:
            try:
                entry = pwd.getpwuid(uid)
            except (KeyError, OverflowError):
                return None
            self._add_user(entry.pw_name, entry.pw_uid, entry.pw_gid)
        name, gid = self._names.get(uid), self._primary.get(uid)
        if name is None or gid is None:
            return None
        member = os.getgrouplist(name, gid) if self._lookup else []
        return gid, frozenset([gid, *member])

    def close_user_names(self) -> list[str]:
        """Return the user names to look among for "did you mean"."""
        return list(self._uids)

    def close_group_names(self) -> list[str]:
        """Return the group names to look among for "did you mean"."""
        return list(self._gids)

    def owner_of_subuid(self, uid: int) -> int | None:
        """Return the uid whose sub-uid ``uid`` is by /etc/subuid; None when it is nobody's. Never asks."""
        return self._subuids.owner_of(uid)

    def _add_user(self, name: str, uid: int, gid: int) -> None:
        self._uids.setdefault(name, uid)
        if uid not in self._names:
            self._names[uid] = name
            self._primary[uid] = gid

    def _add_group(self, name: str, gid: int) -> None:
        self._gids.setdefault(name, gid)
        self._group_names.setdefault(gid, name)

    def _subuid_ranges(self, text: str) -> list[tuple[int, int, int]]:
        """Return (first, end, owner) of each line that can be read; subuid(5): "OWNER:FIRST:COUNT"."""
        ranges = []
        for line in text.split("\n"):
            fields = line.strip().split(":")
            if len(fields) != 3:
                continue
            first, count = _number(fields[1]), _number(fields[2])
            owner = self.uid_of(fields[0]) if fields[0] else None
            if owner is None:
                owner = _number(fields[0])
            if owner is None or not first or not count or first + count > ID_END:
                continue
            ranges.append((first, first + count, owner))
        return ranges


class _Ranges:
    """Who owns a number. Where ranges overlap, the one that begins last, as the more particular one, has it."""

    __slots__ = ("_furthest", "_ranges", "_starts")

    def __init__(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [first for first, _, _ in self._ranges]
        self._furthest: list[int] = []
        for _, end, _ in self._ranges:
            self._furthest.append(max(end, self._furthest[-1]) if self._furthest else end)

    def owner_of(self, number: int) -> int | None:
        index = bisect_right(self._starts, number) - 1
        # Ranges hardly overlap: one step, save where an earlier one reaches over this one.
        while index >= 0 and self._furthest[index] > number:
            _, end, owner = self._ranges[index]
            if number < end:
                return owner
            index -= 1
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def _read_subuid() -> str:
    try:
        with open(SUBUID_FILE, "rb") as file:
            return file.read(SUBUID_LIMIT).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SockguardError(f"{SUBUID_FILE}: cannot be read: {error.strerror}") from error
