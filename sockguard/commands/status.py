"""``sockguard status``: what the running daemon does, once or each second. Asks only; changes nothing."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from http import HTTPStatus
from typing import Any, cast

from sockguard.commands import control_client
from sockguard.commands.control_client import ControlClient
from sockguard.errors import EXIT_OK, SockguardError
from sockguard.server.operator import Status


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "status",
        help="show what the running daemon does",
        description="Show what the running daemon does: proxies, connections by user, relays, the last reload, and the "
        "latest denials with their reasons. Times are UTC. Exit status: 0, or 1 without a daemon.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one a line)")
    parser.add_argument("--watch", action="store_true", help="each second anew, with rates; q or Ctrl-C ends it")
    parser.add_argument("--connections", action="store_true", help="list the live connections instead")
    control_client.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the status on standard output. Raises SockguardError."""
    if not args.json and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may be beyond the terminal's character set
    view = _View(ControlClient(control_client.find(args)), args.connections, args.json)
    try:
        if args.watch:
            from sockguard.commands.watch import watch  # here: termios and signals are for this alone

            return watch(view.draw)
        print(view.draw(shutil.get_terminal_size().columns if sys.stdout.isatty() else 0), end="")
    finally:
        view.close()
    return EXIT_OK


class _View:
    """Asks anew for each drawing, and remembers the answer before for rates."""

    def __init__(self, client: ControlClient, connections: bool, as_json: bool) -> None:
        self._client = client
        self._connections = connections
        self._json = as_json
        self._previous: tuple[Status, float] | None = None

    def close(self) -> None:
        self._client.close()

    def draw(self, width: int) -> str:
        """The text of one listing. Raises SockguardError."""
        from sockguard.commands import status_view

        status, value = self._client.ask("GET", "/connections" if self._connections else "/status")
        if status != HTTPStatus.OK:
            raise control_client.unexpected(status, value)
        if self._json:
            return json.dumps(value) + "\n"
        try:
            if self._connections:
                return status_view.render_connections(value["connections"], width)
            return self._draw_status(value, width)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SockguardError(
                f"the daemon is of another version: its answer is not understood ({control_client.clean(error)}); "
                "use --json"
            ) from error

    def _draw_status(self, value: Any, width: int) -> str:
        from sockguard.commands.status_view import render

        now = time.monotonic()
        status = cast(Status, value)
        before, then = self._previous or (None, now)
        text = render(status, before, now - then, width)
        self._previous = (status, now)
        return text
