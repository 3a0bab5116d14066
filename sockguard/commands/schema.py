"""``sockguard schema``: the JSON Schema of the configuration, for editors; what presets stand for. Reads nothing."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import cast

from sockguard.errors import EXIT_OK

_WIDTH = 100


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the configuration file, for editors",
        description="Print the JSON Schema (2020-12) of the configuration file, for editors.",
    )
    parser.add_argument("--presets", action="store_true", help="print instead what each preset of http stands for")
    parser.add_argument("--json", action="store_true", help="print JSON; the schema always is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the schema, or the presets, on standard output."""
    if args.presets:
        from sockguard.protocols.http.rules import presets_listing

        listing = presets_listing()
        print(json.dumps(listing, indent=2) if args.json else "\n\n".join(map(_preset, listing)))
        return EXIT_OK

    from sockguard.config.model import json_schema  # here: other commands need not pay for pydantic

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK


def _preset(preset: Mapping[str, object]) -> str:
    """Its name, what it is for, and its entries: a rule could have ``http = [...]`` with these instead."""
    about = textwrap.wrap(str(preset["description"]), _WIDTH, initial_indent="  ", subsequent_indent="  ")
    entries = [f"    {_toml(entry)}," for entry in cast("list[object]", preset["http"])]
    return "\n".join([str(preset["name"]), *about, "  http = [", *entries, "  ]"])


def _toml(value: object) -> str:
    """As TOML has it, for what presets are made of: strings, lists and tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
