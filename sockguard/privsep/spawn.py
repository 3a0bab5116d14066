"""Starting sockguard's own processes by fork and exec, each with one end of a channel as its descriptor 3."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from sockguard.privsep import channel
from sockguard.privsep.rights import Account

CHANNEL_FD: Final = 3
_BOOT: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "boot.py")


def spawn_relay(account: Account | None, protocols: str) -> tuple[int, socket.socket]:
    """Start a relay that becomes ``account`` (None: keeps its uid) and can read these protocols, joined by commas.

    Gives its pid and our end of its channel.
    """
    # Standard output is where audit events go: a relay must not be able to write one.
    return _spawn(["-I", "-S", _BOOT, "relay", *account_arguments(account), protocols], {}, silent=(0, 1))


def spawn_control(account: Account | None, arguments: Sequence[str]) -> tuple[int, socket.socket]:
    """Start the control process. It needs its packages, so it gets the environment and the site folders."""
    return _spawn(["-P", _BOOT, "control", *account_arguments(account), *arguments], os.environ, silent=(0,))


def account_arguments(account: Account | None) -> list[str]:
    """An account as command-line words; parse_account reads them."""
    if account is None:
        return ["-"]
    return [",".join(map(str, (account.uid, account.gid, *account.groups)))]


def parse_account(word: str) -> Account | None:
    if word == "-":
        return None
    uid, gid, *groups = map(int, word.split(","))
    return Account(uid, gid, tuple(groups))


def _spawn(arguments: list[str], environment: Mapping[str, str], *, silent: Sequence[int]) -> tuple[int, socket.socket]:
    ours, theirs = channel.pair()
    try:
        with theirs:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, *arguments],
                    environment,
                    file_actions=[
                        *((os.POSIX_SPAWN_DUP2, null, fd) for fd in silent),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), CHANNEL_FD),
                    ],
                    setsigmask=[],
                    setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE],
                )
            finally:
                os.close(null)
    except BaseException:
        ours.close()
        raise
    return pid, ours
