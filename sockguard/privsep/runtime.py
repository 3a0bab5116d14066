"""The runtime folder: made, or given to the uid that control runs under, so that control can bind its socket there.

Called by the monitor, as root, or by an ordinary user's daemon for itself. Gives away nothing that is somebody else's:
what is there must be a folder of root's or of that very uid, in a folder that no other user can change.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from sockguard.errors import SockguardError

MODE: Final = 0o755
"""Of a runtime folder that is made here; the sockets in it have modes of their own."""

_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare_runtime_folder(path: str, uid: int, gid: int) -> None:
    """Have ``path`` be a folder that belongs to ``uid`` and ``gid``. Its parent must exist.

    A folder that is there keeps its mode. Every step is by descriptor: a name could come to mean another file. Raises
    SockguardError with the path and what is wrong with it.
    """
    beside, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", "..") or not beside.startswith("/"):
        raise SockguardError(f"{path}: not an absolute path of a folder")
    try:
        parent = os.open(beside, _FOLDER & ~os.O_NOFOLLOW | os.O_RDONLY)
        try:
            _refuse_open_to_others(path, beside, parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
                _give(path, name, parent, uid, gid, MODE)
                return
            _give(path, name, parent, uid, gid, None)
        finally:
            os.close(parent)
    except OSError as error:
        raise SockguardError(f"{path}: the runtime folder cannot be made: {os.strerror(error.errno or 0)}") from error


def _refuse_open_to_others(path: str, beside: str, parent: int) -> None:
    found = os.fstat(parent)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SockguardError(f"{path}: others can write in {beside}: choose another place ([daemon] control)")


def _give(path: str, name: str, parent: int, uid: int, gid: int, mode: int | None) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | _FOLDER, dir_fd=parent)
    except NotADirectoryError:  # also: a symbolic link
        raise SockguardError(f"{path}: is no folder: move it away") from None
    try:
        found = os.fstat(fd)
        if found.st_uid not in (0, uid):
            raise SockguardError(f"{path}: belongs to uid {found.st_uid}: move it away, or run: chown {uid}")
        if mode is not None:
            os.fchmod(fd, mode)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
    finally:
        os.close(fd)
