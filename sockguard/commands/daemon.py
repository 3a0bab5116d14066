"""`sockguard --config FILE`: the daemon, in the foreground."""

from __future__ import annotations

import argparse

from sockguard.commands.options import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The daemon is what sockguard does without a command: its arguments are those of the command line itself."""
    add_config(parser, top=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the monitor where there is privilege to hold, else the control process itself."""
    from sockguard.monitor import process as monitor  # here: trio and pydantic take their time, and commands need none

    if monitor.is_useful():
        monitor.main(args.config)
    from sockguard.server.process import without_monitor

    return without_monitor(args.config)
