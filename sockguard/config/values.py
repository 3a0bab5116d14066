"""Single values of the file: from what tomli gives to plain data, or Bad (a ValueError) in plain words.

Pure: looks nothing up, neither accounts nor paths. Every function takes any TOML value.
"""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime
from typing import Final

from sockguard.config.settings import Listen, ListenKind
from sockguard.policy import patterns
from sockguard.words import kind, quoted

MAX_SECONDS: Final = 30 * 24 * 3600.0
"""The longest duration: 30 days."""
MAX_SOCKET_BYTES: Final = 107
"""A socket's path without its final NUL, or an abstract name without its first one (unix(7): sun_path[108])."""
MAX_FD_NAME: Final = 255
"""sd_listen_fds_with_names(3)."""
MAX_ID: Final = 4_294_967_294
"""The largest uid or gid; the one above it means "none" to the kernel (setresuid(2))."""
MAX_NAME: Final = 256
"""Characters in a name of a user, group, rule or set."""
MAX_PATH: Final = 4096
"""Bytes of a path and its final NUL (limits.h: PATH_MAX)."""
NAME_PATTERN: Final = "[A-Za-z0-9_-]{1,64}"
"""Names of proxies and named sets."""

_DURATION: Final = re.compile(r"([0-9]{1,12})(ms|s|m|h)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_RANGE: Final = re.compile(r"\s*([0-9]+)\s*-\s*([0-9]+)\s*", re.ASCII)
_UNIT_SUFFIXES: Final = (".service", ".scope", ".socket", ".mount", ".swap")  # systemd.unit(5): those with a cgroup


class Bad(ValueError):
    """A value that the file may not hold; the text is for people."""


def text(value: object, *, longest: int = MAX_NAME) -> str:
    """A string that is not empty and can be shown on one line."""
    if not isinstance(value, str):
        raise Bad(f"must be a string, not {kind(value)}")
    if not value:
        raise Bad("must not be empty")
    if not value.isprintable():
        raise Bad("holds a control character")
    if len(value) > longest:
        raise Bad(f"is longer than {longest} characters")
    return value


def seconds(value: object) -> float:
    """``"30s"``, ``"500ms"``, ``"2m"``, ``"1h"`` in seconds, from 0 to MAX_SECONDS."""
    if not isinstance(value, str):
        raise Bad(f'must be a string such as "30s" or "500ms", not {kind(value)}')
    found = _DURATION.fullmatch(value)
    if found is None:
        raise Bad(f'must be a whole number and ms, s, m or h, such as "30s" or "500ms"; not {quoted(value)}')
    result = int(found[1]) * _SECONDS[found[2]]
    if result > MAX_SECONDS:
        raise Bad(f"must be at most {MAX_SECONDS / 3600:.0f}h")
    return result


def mode(value: object) -> int:
    """The mode of a socket, 0 to 0o777."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Bad(f"must be an integer such as 0o660, not {kind(value)}")
    if not 0 <= value <= 0o777:
        hint = f"; did you mean 0o{value}?" if 0 <= value <= 777 and set(str(value)) <= set("01234567") else ""
        raise Bad(f"must be from 0o0 to 0o777{hint}")
    return value


def listen(value: object) -> Listen:
    """``"/a/path"``, ``"@abstract"`` or ``"fd:NAME"``."""
    given = text(value, longest=patterns.PATTERN_LIMIT)
    if given.startswith("@"):
        if not 1 <= len(given[1:].encode()) <= MAX_SOCKET_BYTES:
            raise Bad(f"an abstract name has 1 to {MAX_SOCKET_BYTES} bytes after the '@'")
        return Listen(ListenKind.ABSTRACT, given[1:])
    if given.startswith("fd:"):
        name = given[3:]
        if not name.isascii() or ":" in name or not 1 <= len(name) <= MAX_FD_NAME:  # sd_listen_fds_with_names(3)
            raise Bad(f"the name after 'fd:' is systemd's FileDescriptorName: 1 to {MAX_FD_NAME} ASCII, no ':'")
        return Listen(ListenKind.ADOPTED, name)
    if not given.startswith("/"):
        raise Bad(f"must be an absolute path, '@NAME' or 'fd:NAME'; not {quoted(given)}")
    return Listen(ListenKind.PATH, socket_path(given))


def backend(value: object) -> str:
    """The absolute path of the private socket."""
    given = text(value, longest=patterns.PATTERN_LIMIT)
    if given.startswith("@"):
        raise Bad("an abstract socket cannot be a backend: it has no permissions, anyone can reach it")
    return socket_path(given)


def socket_path(given: str) -> str:
    """An absolute path that fits into a socket address and names something in a folder."""
    if not given.startswith("/"):
        raise Bad(f"must be an absolute path, not {quoted(given)}")
    if len(given.encode()) > MAX_SOCKET_BYTES:
        raise Bad(f"is longer than the {MAX_SOCKET_BYTES} bytes that a socket's path may have")
    if posixpath.basename(given) in ("", ".", ".."):
        raise Bad("names a folder, not a socket")
    return given


def until(value: object) -> datetime:
    """A TOML offset date-time, in UTC."""
    if not isinstance(value, datetime):
        raise Bad(f"must be a date-time such as 2027-01-31T00:00:00Z, without quotes; not {kind(value)}")
    if value.tzinfo is None:
        raise Bad(f"has no time zone: add Z for UTC ({value.isoformat()}Z)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise Bad("lies outside of the years 1 to 9999") from None


def identifier(value: object) -> int:
    """A uid or gid as a number, 0 to MAX_ID."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Bad(f"must be a number, not {kind(value)}")
    if not 0 <= value <= MAX_ID:
        raise Bad(f"must be from 0 to {MAX_ID}")
    return value


def account(value: object) -> str | int:
    """A user or group: its name, or its number."""
    if isinstance(value, str):
        if value.isascii() and value.isdigit():
            raise Bad(f"a number is written without quotes: {value[:12]}")
        return text(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Bad(f"must be a name or a number, not {kind(value)}")
    return identifier(value)


def user(value: object) -> str | int | tuple[int, int]:
    """One of ``users``: a name, ``"*"``, a number, or a range ``"1000-1999"`` as its first and last number.

    What has the form of a range is one, even if an account should be called so.
    """
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        if len(found[1]) > len(str(MAX_ID)) or len(found[2]) > len(str(MAX_ID)):
            raise Bad(f"a range ends at {MAX_ID}")
        first, last = int(found[1]), int(found[2])
        if last > MAX_ID:
            raise Bad(f"a range ends at {MAX_ID}")
        if first > last:
            raise Bad(f"is a range from the larger to the smaller number; write '{last}-{first}'")
        return first, last
    return account(value)


def executable(value: object) -> str:
    """A program's absolute path, or a glob of one."""
    given = label(value)
    if not given.startswith("/"):
        raise Bad(f"must be an absolute path or a glob of one, not {quoted(given)}")
    return _plain(given)


def unit(value: object) -> str:
    """A unit's name, an absolute cgroup path, or a glob of either."""
    given = label(value)
    if given.startswith("/"):
        return _plain(given)
    if "/" in given:
        raise Bad("must be a unit's name, or a whole cgroup path that starts with '/'")
    if not set(given) & set("*?[") and not given.endswith(_UNIT_SUFFIXES):
        if given.endswith(".slice"):
            raise Bad("a slice is no unit that a process runs in; write its path: '/NAME.slice/*.service'")
        raise Bad(f"has no unit's ending; did you mean {quoted(given + '.service')}?")
    return given


def label(value: object) -> str:
    """A security label, or a glob of one: any pattern."""
    given = text(value, longest=patterns.PATTERN_LIMIT)
    reason = patterns.fault(given)
    if reason:
        raise Bad(reason)
    return given


def program(value: object) -> str:
    """A program's absolute path as a fact about a peer, no pattern: /usr/bin/[ is one."""
    given = text(value, longest=MAX_PATH)
    if not given.startswith("/"):
        raise Bad(f"must be an absolute path, not {quoted(given)}")
    return _plain(given)


def cgroup(value: object) -> str:
    """A whole cgroup path as a fact about a peer; a unit's name is taken to be in /system.slice."""
    given = text(value, longest=MAX_PATH)
    if given.startswith("/"):
        return _plain(given)
    return f"/system.slice/{unit(given)}"


def _plain(path: str) -> str:
    """Refuse a path that the kernel never shows: with ``//``, ``.``, ``..`` or a slash at its end."""
    parts = path.split("/")[1:]
    if path != "/" and any(part in ("", ".", "..") for part in parts):
        raise Bad("holds an empty, '.' or '..' part, which the kernel never shows; write the path without")
    return path
