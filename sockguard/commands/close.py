"""``sockguard close ID``: has the daemon close one live connection. Its audit event says when that is done."""

from __future__ import annotations

import argparse
import sys
from http import HTTPStatus

from sockguard.commands import control_client
from sockguard.errors import EXIT_OK, EXIT_WORLD


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "close",
        help="close one live connection",
        description="Close one live connection of the running daemon. Exit status: 0 done, 1 no such connection, "
        "or no daemon.",
    )
    parser.add_argument("id", metavar="ID", type=_number, help="its number, as audit events and status have it")
    control_client.add_arguments(parser)
    parser.set_defaults(run=run)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise argparse.ArgumentTypeError("must be a connection's number")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Nothing to say when it is done. Raises SockguardError."""
    client = control_client.ControlClient(control_client.find(args))
    try:
        status, value = client.ask("DELETE", f"/connections/{args.id}")
    finally:
        client.close()
    if status == HTTPStatus.OK:
        return EXIT_OK
    if status == HTTPStatus.NOT_FOUND:
        print(f"sockguard: no connection {args.id} is open", file=sys.stderr)
        return EXIT_WORLD
    raise control_client.unexpected(status, value)
