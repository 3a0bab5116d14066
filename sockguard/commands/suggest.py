"""``sockguard suggest``: reads audit events, prints allow rules. Changes no file: a person is to judge."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

from sockguard.errors import EXIT_FILE, EXIT_OK, SockguardError
from sockguard.policy.suggest import Tally, write

MAX_LINE: Final = 1 << 16
"""Bytes of one line; a longer one is no event of ours."""
_TOO_LONG: Final = b"(too long)"
"""What stands for such a line: no JSON, so it counts among those that were not understood."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "suggest",
        help="print the least allow rules that would have let the connections and requests of an audit log through",
        description="Read audit events, one JSON object a line, and print the least set of allow rules that would have "
        "let through the connections and requests in them: those let through, and those that no rule allowed. "
        "Exit status: 0 good, 1 the file cannot be read, 2 no line of it is an event.",
    )
    parser.add_argument("--by", choices=("user", "group"), required=True, help="what the rules go by")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: standard input")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the rules on standard output, what was not understood on standard error. Raises SockguardError."""
    tally = Tally()
    try:
        if args.file == "-":
            _read(sys.stdin.buffer, tally)
        else:
            with open(args.file, "rb") as file:
                _read(file, tally)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise SockguardError(f"{args.file!a}: {getattr(error, 'strerror', None) or error}") from error
    if tally.malformed:
        lines = "1 line is" if tally.malformed == 1 else f"{tally.malformed} lines are"
        print(f"sockguard suggest: {lines} no audit event; left out", file=sys.stderr)
    if not tally.events and not tally.others:
        print("sockguard suggest: no audit event in the input; give the daemon's standard output", file=sys.stderr)
        return EXIT_FILE
    print(write(tally, args.by, _group_name), end="")
    return EXIT_OK


def _read(file: BinaryIO, tally: Tally) -> None:
    for line in _lines(file):
        tally.add(line)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        too_long = len(line) > MAX_LINE
        yield _TOO_LONG if too_long else line
        while too_long and line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def _group_name(gid: int) -> str | None:
    import grp  # here: --by user needs no group database

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OSError, OverflowError):
        return None
