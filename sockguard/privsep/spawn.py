"""Starting sockguard's own processes by fork and exec, each with one end of a channel as its descriptor 3.

A relay's channel goes one way, to the relay; what it says comes over a pipe, its descriptor 4 (pipe.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from sockguard.privsep import channel
from sockguard.privsep.rights import Account

CHANNEL_FD: Final = 3
OUTLET_FD: Final = 4
_BOOT: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "boot.py")


def spawn_relay(account: Account | None, protocols: str) -> tuple[int, socket.socket, int]:
    """Start a relay that becomes ``account`` (None: keeps its uid) and can read these protocols, joined by commas.

    Gives its pid, our end of its channel, and the reading end of its pipe.
    """
    inlet, outlet = os.pipe2(os.O_CLOEXEC)
    try:
        # Standard output is where audit events go: a relay must not be able to write one.
        arguments = ["-I", "-S", _BOOT, "relay", *account_arguments(account), protocols]
        pid, ours = _spawn(arguments, {}, silent=(0, 1), more={OUTLET_FD: outlet})
    except BaseException:
        os.close(inlet)
        raise
    finally:
        os.close(outlet)
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RD)  # nothing that it sends there is ever queued
    return pid, ours, inlet


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


def _spawn(
    arguments: list[str],
    environment: Mapping[str, str],
    *,
    silent: Sequence[int],
    more: Mapping[int, int] | None = None,
) -> tuple[int, socket.socket]:
    """silent: descriptors that are to be /dev/null; more: others that it gets, by their number there."""
    ours, theirs = channel.pair()
    above: list[int] = []  # where none of the numbers is that they get
    try:
        with theirs:
            given = {CHANNEL_FD: theirs.fileno(), **(more or {})}
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in silent]
                for number, fd in given.items():
                    above.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(given) + 1))
                    actions.append((os.POSIX_SPAWN_DUP2, above[-1], number))
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, *arguments],
                    environment,
                    file_actions=actions,
                    setsigmask=[],
                    setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE],
                )
            finally:
                os.close(null)
                channel.close_all(above)
    except BaseException:
        ours.close()
        raise
    return pid, ours
