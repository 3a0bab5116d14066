"""POSIX ACLs: the kernel's binary form read strictly, and who is granted what by it. Judges one file, never a path.

Sources: linux/posix_acl_xattr.h (the form), acl(5) and posix_acl_permission() in fs/posix_acl.c (the algorithm).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

XATTR: Final = "system.posix_acl_access"
VERSION: Final = 2
MAX_ENTRIES: Final = 8191
"""What fits into the largest extended attribute (XATTR_SIZE_MAX, 64 KiB)."""

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


class Tag(IntEnum):
    """e_tag (linux/posix_acl.h)."""

    OWNER = 0x01
    USER = 0x02
    GROUP_OWNER = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED: Final = (Tag.USER, Tag.GROUP)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``perm``: rwx as 4, 2, 1. ``id``: a uid or gid for USER and GROUP, else without meaning."""

    tag: Tag
    perm: int
    id: int


@dataclass(frozen=True, slots=True)
class Access:
    """Who owns a file, and its ACL; a file without one gets the three entries that its mode stands for."""

    uid: int
    gid: int
    acl: tuple[Entry, ...]


def parse(raw: bytes) -> tuple[Entry, ...]:
    """Read the value of system.posix_acl_access. Raises ValueError for anything the kernel would not accept."""
    if len(raw) < _HEADER.size or (len(raw) - _HEADER.size) % _ENTRY.size:
        raise ValueError(f"an ACL of {len(raw)} bytes")
    (version,) = _HEADER.unpack_from(raw)
    if version != VERSION:
        raise ValueError(f"an ACL of version {version}")
    entries = tuple(Entry(_tag(tag), perm, ident) for tag, perm, ident in _ENTRY.iter_unpack(raw[_HEADER.size :]))
    if len(entries) > MAX_ENTRIES:
        raise ValueError("an ACL with too many entries")
    _refuse_incomplete(entries)
    return entries


def _tag(number: int) -> Tag:
    try:
        return Tag(number)
    except ValueError:
        raise ValueError(f"an ACL entry of kind {number:#x}") from None


def _refuse_incomplete(entries: Sequence[Entry]) -> None:
    """Raise ValueError unless posix_acl_valid() (fs/posix_acl.c) would take these entries."""
    if any(entry.perm > READ | WRITE | SEARCH for entry in entries):
        raise ValueError("an ACL entry with unknown permissions")
    tags = [entry.tag for entry in entries]
    if any(tags.count(tag) != 1 for tag in (Tag.OWNER, Tag.GROUP_OWNER, Tag.OTHER)) or tags.count(Tag.MASK) > 1:
        raise ValueError("an ACL that lacks or repeats a base entry")
    named = [(entry.tag, entry.id) for entry in entries if entry.tag in _NAMED]
    if len(set(named)) != len(named):
        raise ValueError("an ACL that names someone twice")
    if named and Tag.MASK not in tags:
        raise ValueError("an ACL that names someone and has no mask")


def read(path: str) -> tuple[Entry, ...] | None:
    """Return the access ACL of a file that is no symlink; None without one. Raises OSError, ValueError."""
    try:
        return parse(os.getxattr(path, XATTR, follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def from_mode(mode: int) -> tuple[Entry, ...]:
    """Return the three entries that a mode stands for."""
    return (
        Entry(Tag.OWNER, mode >> 6 & 7, 0),
        Entry(Tag.GROUP_OWNER, mode >> 3 & 7, 0),
        Entry(Tag.OTHER, mode & 7, 0),
    )


def grants(access: Access, uid: int | None, gids: frozenset[int], wanted: int) -> bool:
    """Whether a process without capabilities gets all of ``wanted`` (READ, WRITE, SEARCH, or'ed).

    ``uid`` None: somebody who owns nothing and whom no ACL names.
    """
    if uid is not None and uid == access.uid:
        return _holds(_perm(access, Tag.OWNER), wanted)
    mask = next((entry.perm for entry in access.acl if entry.tag is Tag.MASK), 7)
    # With an empty mask acl_permission_check() (fs/namei.c) never looks at the ACL: whom it names is anybody then.
    named = [entry for entry in access.acl if entry.tag in _NAMED and mask]
    for entry in named:
        if entry.tag is Tag.USER and entry.id == uid:
            return _holds(entry.perm & mask, wanted)
    of_groups = [entry.perm & mask for entry in named if entry.tag is Tag.GROUP and entry.id in gids]
    if access.gid in gids:
        of_groups.append(_perm(access, Tag.GROUP_OWNER) & mask)
    if of_groups:
        # One entry has to grant all of it: those of several groups are not added up.
        return any(_holds(perm, wanted) for perm in of_groups)
    return _holds(_perm(access, Tag.OTHER), wanted)


def _holds(perm: int, wanted: int) -> bool:
    return perm & wanted == wanted


def _perm(access: Access, tag: Tag) -> int:
    return next(entry.perm for entry in access.acl if entry.tag is tag)
