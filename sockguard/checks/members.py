"""Who belongs to a group, and names for numbers, as the account databases say now. Decides nothing."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ACCOUNTS_FILE: Final = "/etc/passwd"
ACCOUNTS_LIMIT: Final = 16 << 20
"""Bytes read of it."""
LOOKUPS: Final = 64
"""Members of one group that are looked up one by one, because /etc/passwd does not have them."""


@dataclass(frozen=True, slots=True)
class Member:
    """An account in a group. ``uid`` None: there is no such account, or it was not looked up."""

    name: str
    uid: int | None


MembersOf = Callable[[int], list[Member]]
"""From a gid to the accounts that have it, as their own group or as a supplementary one."""


def local_members() -> MembersOf:
    """Return a look-up that has read /etc/passwd once.

    Accounts of a network service count where the group lists them. Their own groups are not seen: listing such a
    service can take minutes, and this is used when the daemon starts.
    """
    accounts = _local_accounts()
    uids = {name: uid for name, uid, _ in accounts}

    def members(gid: int) -> list[Member]:
        found = {name: Member(name, uid) for name, uid, own in accounts if own == gid}
        lookups = 0
        for name in _listed(gid):
            uid = uids.get(name)
            if uid is None and lookups < LOOKUPS:
                lookups += 1
                uid = uid_of(name)
            found.setdefault(name, Member(name, uid))
        return sorted(found.values(), key=lambda member: member.name)

    return members


def uid_of(name: str) -> int | None:
    """Return a user's uid, None without such a user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError, OSError):
        return None


def user_text(uid: int) -> str:
    """Name a uid for people."""
    name = account_text(uid)
    return f"uid {uid}" if name == str(uid) else name


def account_text(uid: int) -> str:
    """Name a uid for chown(1): by its account, else by its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError, OSError):
        return str(uid)


def group_text(gid: int) -> str:
    """Name a gid for people and for chgrp(1): by its group, else by its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError, OSError):
        return str(gid)


def _listed(gid: int) -> list[str]:
    try:
        return grp.getgrgid(gid).gr_mem
    except (KeyError, OverflowError, OSError):
        return []


def _local_accounts() -> list[tuple[str, int, int]]:
    try:
        with open(ACCOUNTS_FILE, encoding="utf-8", errors="replace") as file:
            text = file.read(ACCOUNTS_LIMIT)
    except OSError:
        return []
    accounts = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
            accounts.append((fields[0], int(fields[2]), int(fields[3])))
    return accounts
