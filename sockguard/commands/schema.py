"""``sockguard schema``: the JSON Schema of the configuration, for editors. Reads nothing."""

from __future__ import annotations

import argparse
import json

from sockguard.errors import EXIT_OK


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the configuration file, for editors",
        description="Print the JSON Schema (2020-12) of the configuration file, for editors.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the schema on standard output."""
    from sockguard.config.model import json_schema  # here: other commands need not pay for pydantic

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK
