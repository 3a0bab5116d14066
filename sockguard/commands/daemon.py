"""`sockguard --config FILE`: the daemon, in the foreground."""

from __future__ import annotations

import argparse
import os
import sys

from sockguard.commands.options import add_config
from sockguard.errors import SockguardError
from sockguard.privsep.leaving import leave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The daemon is what sockguard does without a command: its arguments are those of the command line itself."""
    add_config(parser, top=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the monitor where there is privilege to hold, else the control process itself."""
    _hold_standard_descriptors()
    from sockguard.monitor import process as monitor  # here: trio and pydantic take their time, and commands need none

    if monitor.is_useful():
        monitor.main(args.config)
    from sockguard.server.process import without_monitor

    leave(without_monitor(args.config))


def _hold_standard_descriptors() -> None:
    """Let nothing that is opened later get the number 0, 1 or 2: what is written there is not meant for it."""
    try:
        os.fstat(1)
    except OSError:
        raise SockguardError("standard output is closed: audit events have nowhere to go") from None
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stderr is None:  # as Python has it where 2 was closed
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
