"""Read the configuration's bytes: FILE and every ``*.toml`` of the folder ``sockguard.d`` beside it.

The privileged monitor reads the file by this module too: it imports the standard library and the error tree only,
parses nothing, and trusts nothing but the inode that it has opened.

Run as root, a file or folder that others can write is refused: FILE itself, the folder that it was found in,
``sockguard.d`` and each file there. Others are: every user but root, by the owner, by a group that is not root's, by
the world's bits, or by an ACL. A sticky folder (/tmp) is no exception: others could not replace root's file in it, but
they could add a ``sockguard.d``. FILE may be a symbolic link; what it ends at is what is looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sockguard.errors import ConfigError, Mistake

FOLDER: Final = "sockguard.d"
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""A file of the configuration is no larger than this."""
MAX_FOLDER_FILES: Final = 1000
"""``sockguard.d`` holds no more ``*.toml`` files than this."""

_FILE_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not make us wait
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_ACL: Final = "system.posix_acl_access"  # xattr(7), acl(5)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the configuration: its path as given, and its bytes (at most MAX_FILE_BYTES)."""

    path: str
    text: bytes


class _Refused(Exception):
    """Why a file or folder is not read; the text is for people."""


def read_sources(path: str) -> tuple[Source, ...]:
    """Read FILE, then the files of ``sockguard.d`` beside it in name order.

    Raises ConfigError with every file that is missing, unreadable, too large, no regular file, or (as root) can be
    written by others.
    """
    beside = os.path.dirname(path)
    mistakes: list[Mistake] = []
    sources: list[Source] = []
    try:
        with _opened(beside or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, None) as folder:
            _try(mistakes, sources, path, os.path.basename(path), folder)
            _refuse_writable(mistakes, beside or ".", folder)
            _read_folder(mistakes, sources, os.path.join(beside, FOLDER), folder)
    except OSError as error:
        raise ConfigError([Mistake(shown(path), 0, "", _why(error))]) from error
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(sources)


def shown(path: str) -> str:
    """The path as it can be printed: bytes that are not UTF-8 and control characters escaped."""
    if path.isprintable():
        return path
    return path.encode("unicode_escape", "backslashreplace").decode("ascii")


def _read_folder(mistakes: list[Mistake], sources: list[Source], path: str, beside: int) -> None:
    """Read ``sockguard.d`` (absent: nothing to read), found by name in the open folder ``beside``."""
    try:
        with _opened(FOLDER, _FOLDER_FLAGS, beside) as folder:
            _refuse_writable(mistakes, path, folder)
            names = sorted(name for name in os.listdir(folder) if name.endswith(".toml") and name[0] != ".")
            if len(names) > MAX_FOLDER_FILES:
                mistakes.append(Mistake(shown(path), 0, "", f"holds more than {MAX_FOLDER_FILES} files"))
                return
            for name in names:
                _try(mistakes, sources, os.path.join(path, name), name, folder)
    except FileNotFoundError:
        return
    except OSError as error:
        mistakes.append(Mistake(shown(path), 0, "", _why(error)))


def _try(mistakes: list[Mistake], sources: list[Source], path: str, name: str, folder: int) -> None:
    try:
        sources.append(Source(shown(path), _read_file(name, folder)))
    except _Refused as refused:
        mistakes.append(Mistake(shown(path), 0, "", str(refused)))
    except OSError as error:
        mistakes.append(Mistake(shown(path), 0, "", _why(error)))


def _read_file(name: str, folder: int) -> bytes:
    with _opened(name, _FILE_FLAGS, folder) as fd:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise _Refused("is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise _Refused("is not a regular file")
        reason = _others_can_write(found, fd)
        if reason:
            raise _Refused(reason)
        return _read_bounded(fd)


def _read_bounded(fd: int) -> bytes:
    """Read to the end; the size that fstat says is not relied on, because the file may be growing."""
    text = bytearray()
    while chunk := os.read(fd, 1 << 16):
        text += chunk
        if len(text) > MAX_FILE_BYTES:
            raise _Refused(f"is larger than {MAX_FILE_BYTES // (1024 * 1024)} MiB")
    return bytes(text)


def _refuse_writable(mistakes: list[Mistake], path: str, fd: int) -> None:
    reason = _others_can_write(os.fstat(fd), fd)
    if reason:
        mistakes.append(Mistake(shown(path), 0, "", f"the folder {reason}"))


def _others_can_write(found: os.stat_result, fd: int) -> str | None:
    """Why users other than root could change this open file or folder; None when they could not, or we are not root."""
    if os.geteuid() != 0:
        return None
    if found.st_uid != 0:
        return f"belongs to uid {found.st_uid}, who could change it; run: chown root"
    if found.st_mode & stat.S_IWOTH and found.st_mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode):
        return "can be written by everyone; move the file to a folder of root's own"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everyone; run: chmod go-w"
    if found.st_mode & stat.S_IWGRP:
        if found.st_gid != 0:
            return f"can be written by group {found.st_gid}; run: chmod go-w"
        if _has_acl(fd):  # the group's bits are then the mask of every named entry (acl(5))
            return "can be written by those in its ACL; run: chmod go-w"
    return None


def _has_acl(fd: int) -> bool:
    try:
        os.getxattr(f"/proc/self/fd/{fd}", _ACL)  # by the path of the fd: fgetxattr refuses O_PATH (open(2))
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.EOPNOTSUPP)
    return True


def _why(error: OSError) -> str:
    """The system's word in the plain form that other messages have."""
    if error.errno == errno.ENOENT:
        return "no such file"
    return (error.strerror or str(error)).lower()


@contextmanager
def _opened(path: str, flags: int, folder: int | None) -> Iterator[int]:
    try:
        fd = os.open(path, flags, dir_fd=folder)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, "not a path") from error
    try:
        yield fd
    finally:
        os.close(fd)
