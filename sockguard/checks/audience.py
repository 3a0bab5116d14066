"""Who there is to get through: anyone, real members of the groups in play, accounts that an ACL or owner field names.

A principal stands for all processes that the files in question cannot tell apart. Processes with CAP_DAC_OVERRIDE or
CAP_DAC_READ_SEARCH pass everywhere and are not among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Final

from sockguard.checks import acl
from sockguard.checks.members import MembersOf, group_text, user_text
from sockguard.checks.walk import Node

NAMES_SHOWN: Final = 5
"""Accounts named in one finding; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Principal:
    """uid    None: somebody who owns none of the files and whom no ACL names
    gids   those of the groups in play that it has
    names  the accounts it stands for, empty for anyone and for a group without known members
    """

    uid: int | None
    gids: frozenset[int]
    names: tuple[str, ...] = ()

    @property
    def is_anyone(self) -> bool:
        return self.uid is None and not self.gids

    def __str__(self) -> str:
        if self.is_anyone:
            return "anyone"
        by = ", ".join(f"group {group_text(gid)}" for gid in sorted(self.gids))
        if not self.names:
            return f"{by} (of which no member is known here)"
        shown = ", ".join(self.names[:NAMES_SHOWN])
        more = f" and {len(self.names) - NAMES_SHOWN} more" if len(self.names) > NAMES_SHOWN else ""
        return f"{shown}{more} ({by})" if by else f"{shown}{more}"


ANYONE: Final = Principal(None, frozenset())


def principals(
    nodes: Iterable[Node], trusted: Set[int], guard_gids: Set[int], members_of: MembersOf
) -> list[Principal]:
    """Return everybody but the trusted uids whom the nodes may tell apart: anyone first, memberless groups last.

    A group of our own (``guard_gids``) counts by its members only; any other also by itself when it has no member:
    a unit's SupplementaryGroups= or a set-gid program may bring its gid.
    """
    accesses = [node.access for node in nodes]
    entries = [entry for access in accesses for entry in access.acl]
    gids = {access.gid for access in accesses} | {entry.id for entry in entries if entry.tag is acl.Tag.GROUP}
    special = {access.uid for access in accesses} | {entry.id for entry in entries if entry.tag is acl.Tag.USER}
    groups_of: dict[tuple[int | None, str], set[int]] = {(uid, user_text(uid)): set() for uid in special}
    memberless = []
    for gid in sorted(gids):
        members = members_of(gid)
        if not members and gid not in guard_gids:
            memberless.append(Principal(None, frozenset({gid})))
        for member in members:
            name = user_text(member.uid) if member.uid in special else member.name
            groups_of.setdefault((member.uid, name), set()).add(gid)
    alike: dict[tuple[int | None, frozenset[int]], list[str]] = {}
    for (uid, name), has in groups_of.items():
        if uid is None or uid not in trusted:
            alike.setdefault((uid if uid in special else None, frozenset(has)), []).append(name)
    accounts = [Principal(uid, has, tuple(sorted(names))) for (uid, has), names in alike.items()]
    accounts.sort(key=lambda one: (one.names, sorted(one.gids)))
    return [ANYONE, *accounts, *memberless]
