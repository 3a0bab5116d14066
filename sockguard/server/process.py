"""How the control process begins, with a monitor or without, and how it ends."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from sockguard.carriers.master import Master, start
from sockguard.errors import EXIT_FILE, SockguardError
from sockguard.privsep import rights, spawn
from sockguard.protocols import registry
from sockguard.server import daemon
from sockguard.server.privileges import FromMonitor, OwnRights
from sockguard.server.separation import Separation


def main(arguments: Sequence[str], master: Master) -> int:
    """Control under a monitor, by descriptor 3. ``arguments``: the account to become, the relays' uid, the file.

    master: forked before, for what peers make.
    """
    rights.harden("sockguard-ctl")
    rights.raise_open_files()
    _load_what_is_asked_for_later()
    rights.become(spawn.parse_account(arguments[0]))
    rights.die_with_parent(signal.SIGKILL)
    # The monitor hears these and says so; a terminal sends them to the whole group.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(spawn.CHANNEL_FD, False)
    relay_uid = int(arguments[1])
    separation = Separation(True, os.geteuid(), os.geteuid() if relay_uid < 0 else relay_uid)
    monitor = socket.socket(fileno=spawn.CHANNEL_FD)
    return _run(lambda: daemon.run(arguments[2], FromMonitor(monitor), separation, master), master)


def _load_what_is_asked_for_later() -> None:
    """Another file may need any protocol's rules, and by then the interpreter may be out of reach."""
    importlib.import_module("difflib")
    for protocol in registry.PROTOCOLS:
        registry.rules_of(protocol)


def without_monitor(config: str) -> int:
    """The daemon under one uid, with no privilege to hold."""
    rights.harden("sockguard")
    rights.raise_open_files()
    separation = Separation(False, os.geteuid(), os.geteuid())
    master = start()
    return _run(lambda: daemon.run(config, OwnRights(config), separation, master), master)


def _run(serve: Callable[[], Awaitable[int]], master: Master) -> int:
    async def inside() -> int:
        return await serve()

    try:
        master.wait_ready()
        return trio.run(inside)
    except (SockguardError, BaseExceptionGroup) as raised:
        error = _sockguard_error(raised)
        if error is None:
            raise
    finally:
        master.end()
    for line in str(error).splitlines():
        print(line if error.exit_status == EXIT_FILE else f"sockguard: {line}", file=sys.stderr)
    return error.exit_status


def _sockguard_error(raised: BaseException) -> SockguardError | None:
    """The error in what trio's nurseries made a group of; None when there is something else in it too."""
    if isinstance(raised, SockguardError):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        found = [_sockguard_error(inner) for inner in raised.exceptions]
        if None not in found:
            return found[0]
    return None
