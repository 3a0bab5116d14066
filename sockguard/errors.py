"""The error tree and the exit statuses that go with it.

Expected outcomes (a verdict, how a connection ended) are values; what stands here are faults.

    SockguardError            exit status 1: the world's fault (a missing folder, a busy socket)
    ├── ConfigError           exit status 2: the file's faults, all of them at once
    ├── UsageError            exit status 2: a command line that cannot be meant
    └── ChannelError          a message between our own processes that is not on the list, or one of them has gone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_WORLD = 1
EXIT_FILE = 2


class SockguardError(Exception):
    """The world's fault: the message says what is wrong and what to do about it."""

    exit_status = EXIT_WORLD


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in the configuration.

    ``file`` is the path as it was given (empty: it is in no file), ``line`` counts from 1 (0: the file as a whole),
    ``key`` is the key path in TOML's own notation (``proxy.docker.allow[1].usres``; empty for the file as a whole).
    """

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, self.text) if part)


class ConfigError(SockguardError):
    """Everything that is wrong with the configuration, in the order of the files and their lines."""

    exit_status = EXIT_FILE

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, mistakes)))


class UsageError(SockguardError):
    """A command line that cannot be meant: an unknown proxy, two ways to name a peer."""

    exit_status = EXIT_FILE


class ChannelError(SockguardError):
    """A message between sockguard's processes that is not on the list, or a process that has gone."""
