"""The command line: argparse and nothing else. What a command does stands in commands/, a file each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sockguard import __version__
from sockguard.commands import check, close, daemon, demo, explain, reload, schema, status, suggest
from sockguard.errors import EXIT_FILE, ConfigError, SockguardError


def parser() -> argparse.ArgumentParser:
    """The whole command line. Without a command it runs the daemon."""
    top = argparse.ArgumentParser(
        prog="sockguard",
        description="Authorizing reverse proxy for UNIX sockets: the kernel says who has connected, rules say who may.",
        epilog="Without a command, run the daemon in the foreground.",
    )
    top.add_argument("--version", action="version", version=f"sockguard {__version__}")
    daemon.add_arguments(top)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in (check, explain, status, reload, close, suggest, schema, demo):
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. Gives its exit status."""
    args = parser().parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_FILE
    except SockguardError as error:
        print(f"sockguard: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of a listing has seen enough
        sys.stderr.close()
        return 0
    return status
