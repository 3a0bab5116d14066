"""``sockguard check``: the daemon's own reading of the file, expectations included. Binds nothing, changes nothing.

With ``--system`` it also looks at this machine (sockguard/checks). Without, ways around sockguard are said all the
same, as warnings: a file that is good guards nothing if others can reach the backend.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from sockguard.commands.options import add_config
from sockguard.errors import EXIT_FILE, ConfigError, Mistake


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="read the configuration as the daemon would, and say every mistake in it",
        description="Read the configuration as the daemon would, expectations included. "
        "Exit status: 0 good, 2 bad; with --system 1 if a finding is an error.",
    )
    add_config(parser)
    parser.add_argument(
        "--system",
        action="store_true",
        help="also look at this machine: ways around sockguard, kernel, capabilities, rules that cannot match",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line for a good file (standard output), or each mistake of a bad one (standard error)."""
    from sockguard.checks.report import exit_status, render, system_findings, ways_around
    from sockguard.checks.report import to_json as findings_json
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
    findings = system_findings(loaded.config) if args.system else []
    for finding in [] if args.system else ways_around(loaded.config):
        print(f"warning: {finding.subject}: {finding.text}; remedy: {finding.remedy}", file=sys.stderr)
    status = exit_status(findings)
    if args.json:
        found = {"findings": findings_json(findings)} if args.system else {}
        print(json.dumps({**_report(file, ()), **counts, **found}))
        return status
    print(
        f"{file}: good: {_count(counts['proxies'], 'proxy', 'proxies')}, {_count(counts['rules'], 'rule', 'rules')}, "
        f"{_count(counts['expectations'], 'expectation', 'expectations')} met"
    )
    if args.system:
        print(render(findings))
    return status


def _report(file: str, mistakes: Sequence[Mistake]) -> dict[str, object]:
    return {
        "ok": not mistakes,
        "file": file,
        "mistakes": [{"file": bad.file, "line": bad.line, "key": bad.key, "text": bad.text} for bad in mistakes],
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
