"""``sockguard check``: the daemon's own reading of the file, expectations included. Binds nothing, changes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final

from sockguard.errors import EXIT_FILE, EXIT_OK, ConfigError, Mistake

DEFAULT_CONFIG: Final = "/etc/sockguard/sockguard.toml"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="read the configuration as the daemon would, and say every mistake in it",
        description="Read the configuration as the daemon would, expectations included. Exit status: 0 good, 2 bad.",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line for a good file (standard output), or each mistake of a bad one (standard error)."""
    from sockguard.config.load import examine  # here: other commands need not pay for pydantic
    from sockguard.config.read import read_sources, shown
    from sockguard.identity.accounts import Accounts

    file = shown(args.config)
    try:
        loaded = examine(read_sources(args.config), Accounts.from_system())
    except ConfigError as error:
        if args.json:
            print(json.dumps(_report(file, error.mistakes)))
        else:
            print(error, file=sys.stderr)
        return EXIT_FILE
    counts = {
        "proxies": len(loaded.config.proxies),
        "rules": sum(len(proxy.rules) for proxy in loaded.config.proxies.values()),
        "expectations": loaded.expectations,
    }
    if args.json:
        print(json.dumps({**_report(file, ()), **counts}))
        return EXIT_OK
    print(
        f"{file}: good: {_count(counts['proxies'], 'proxy', 'proxies')}, {_count(counts['rules'], 'rule', 'rules')}, "
        f"{_count(counts['expectations'], 'expectation', 'expectations')} met"
    )
    return EXIT_OK


def _report(file: str, mistakes: Sequence[Mistake]) -> dict[str, object]:
    return {
        "ok": not mistakes,
        "file": file,
        "mistakes": [{"file": bad.file, "line": bad.line, "key": bad.key, "text": bad.text} for bad in mistakes],
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
