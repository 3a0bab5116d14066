"""``sockguard reload``: has the daemon read its file again, waits for it, and prints what it says is wrong with it."""

from __future__ import annotations

import argparse
import sys
from http import HTTPStatus

from sockguard.commands import control_client
from sockguard.errors import EXIT_FILE, EXIT_OK, Mistake


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "reload",
        help="have the running daemon read its configuration again",
        description="Have the running daemon read its configuration again, and wait until every relay goes by it. "
        "Exit status: 0 done, 2 refused (its mistakes are printed, the old rules go on), 1 no daemon.",
    )
    control_client.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Nothing to say when it is done; each mistake on standard error when it is refused. Raises SockguardError."""
    client = control_client.ControlClient(control_client.find(args))
    try:
        status, value = client.ask("POST", "/reload", seconds=control_client.RELOAD_SECONDS)
    finally:
        client.close()
    match value:
        case {"ok": True} if status == HTTPStatus.OK:
            return EXIT_OK
        case {"ok": False, "mistakes": list(mistakes)}:
            for mistake in mistakes:
                print(_line(mistake), file=sys.stderr)
            return EXIT_FILE
    raise control_client.unexpected(status, value)


def _line(mistake: object) -> str:
    match mistake:
        case {"file": str(file), "line": int(line), "key": str(key), "text": str(text)}:
            return control_client.clean(Mistake(file, line, key, text))
    return control_client.clean(mistake)
