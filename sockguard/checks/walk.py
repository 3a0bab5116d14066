"""The way to a path, as the kernel goes it: each folder, each symlink, what stands at the end. Looks, never judges."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sockguard.checks import acl

MAX_LINKS: Final = 40
"""Symlinks on one way (MAXSYMLINKS, linux/namei.h)."""


class End(Enum):
    """How the way ended."""

    FOUND = "found"
    MISSING = "missing"
    NO_FOLDER = "no folder"  # something on the way is neither folder nor symlink
    TOO_MANY_LINKS = "too many links"
    UNSEEN = "unseen"  # this process may not look


@dataclass(frozen=True, slots=True)
class Node:
    """A folder, symlink or file. ``path`` has no symlink in it but, maybe, its last component.

    fault  why its ACL could not be read, None when it could; ``access`` then rests on its mode alone
    """

    path: str
    mode: int
    links: int
    access: acl.Access
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One entry looked up: in the last of ``folders`` (from "/" down, all real), ``path``; ``found`` None: missing."""

    folders: tuple[Node, ...]
    path: str
    found: Node | None


@dataclass(frozen=True, slots=True)
class Walk:
    """The whole way.

    folders  those of the real path, from "/" down, as far as they exist
    target   what stands at the end, when FOUND
    stopped  the path at which the way ended, when it did not end well
    last     whether that was the path's last component
    """

    steps: tuple[Step, ...]
    end: End
    folders: tuple[Node, ...]
    target: Node | None = None
    stopped: str = ""
    last: bool = False


def walk(path: str) -> Walk:
    """Go an absolute path. Raises OSError if "/" itself cannot be looked at, ValueError for a path with a NUL."""
    root = look("/")
    folders = [root]
    steps: list[Step] = []
    pending = _components(path)
    links = 0
    target = root
    while pending:
        name = pending.pop()
        if name == "..":
            if len(folders) > 1:
                folders.pop()
            target = folders[-1]
            continue
        at = os.path.join(folders[-1].path, name)
        end = None
        try:
            target = look(at)
        except FileNotFoundError:
            end = End.MISSING
            steps.append(Step(tuple(folders), at, None))
        except OSError:
            end = End.UNSEEN
        if end is None:
            steps.append(Step(tuple(folders), at, target))
            if stat.S_ISLNK(target.mode):
                links += 1
                to = os.readlink(at)
                if to.startswith("/"):
                    folders = [root]
                pending += _components(to)
                if links > MAX_LINKS:
                    end = End.TOO_MANY_LINKS
            elif stat.S_ISDIR(target.mode):
                folders.append(target)
            elif pending:
                end = End.NO_FOLDER
        if end is not None:
            return Walk(tuple(steps), end, tuple(folders), None, at, not pending)
    if stat.S_ISDIR(target.mode) and len(folders) > 1:
        folders.pop()
    return Walk(tuple(steps), End.FOUND, tuple(folders), target)


def _components(path: str) -> list[str]:
    """The components of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def look(path: str) -> Node:
    """Look at one file, not following a symlink. Raises OSError."""
    status = os.lstat(path)
    entries, fault = None, None
    if not stat.S_ISLNK(status.st_mode):  # the mode of a symlink means nothing, and it has no ACL
        try:
            entries = acl.read(path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            fault = str(error)
    access = acl.Access(status.st_uid, status.st_gid, entries or acl.from_mode(status.st_mode))
    return Node(path, status.st_mode, status.st_nlink, access, fault)
