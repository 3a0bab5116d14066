"""``sockguard explain``: the verdict on a peer, supposed or running, and why. Opens no socket, changes nothing.

It loads the file as the daemon does and asks the functions that the daemon asks. Facts that are not given are unknown,
as they may be for a real peer: an allow that needs them does not match, a deny that needs them does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from datetime import UTC, datetime
from typing import Final

from sockguard.commands.options import add_config
from sockguard.config.settings import Config, Proxy
from sockguard.errors import EXIT_OK, UsageError
from sockguard.identity.accounts import Accounts
from sockguard.identity.peer import Peer
from sockguard.identity.process import running_peer
from sockguard.policy.explain import Explanation, explain, render, to_json
from sockguard.policy.requests import Asked, ask, has_requests
from sockguard.protocols.base import Bad

EXIT_DENY: Final = 1
PID_MAX: Final = (1 << 31) - 1
"""pid_t; longer numbers are not asked of the kernel."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "explain",
        help="say what the rules decide on a peer or a request, and why",
        description="Say what the rules decide on a peer, or on a request of it, and why. "
        "Exit status: 0 allow, 1 deny, 2 error.",
    )
    parser.add_argument("--proxy", metavar="P", required=True, help="the proxy that it connects to")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--user", metavar="U", help="an account, with the gid and groups of its login")
    peer.add_argument("--uid", metavar="N", type=int, help="a uid; its gid and groups are unknown unless given")
    peer.add_argument("--pid", metavar="N", type=int, help="a running process, as if it connected now")
    parser.add_argument("--gid", metavar="G", help="its gid, or a group's name (with --uid or --user)")
    parser.add_argument("--groups", metavar="A,B", help="its supplementary groups (with --uid or --user)")
    parser.add_argument("--executable", metavar="X", help="path of its program")
    parser.add_argument("--unit", metavar="U", help="its systemd unit, or its whole cgroup path")
    parser.add_argument("--label", metavar="L", help="its security label")
    parser.add_argument(
        "--request",
        metavar="R",
        help="a request that it makes, such as "
        "'call org.example.App / org.example.App.Quit' (dbus) or 'GET /info' (http)",
    )
    parser.add_argument("--against", metavar="NEW", help="also judge by this file; the exit status is by this one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanation. Return 0 for allow, 1 for deny. Raises ConfigError, UsageError."""
    from sockguard.config.load import load_file  # here: other commands need not pay for pydantic

    accounts = Accounts.from_system()
    old = _proxy(load_file(args.config, accounts), args.proxy, args.config)
    new = None if args.against is None else _proxy(load_file(args.against, accounts), args.proxy, args.against)
    asked = _asked(args.request, old)
    asked_new = None if new is None else _asked(args.request, new)
    peer = _peer(args, accounts)
    now = datetime.now(UTC)
    explanation = explain(old.rules, peer, now, accounts, asked)
    if new is None:
        _print(_json(explanation, old) if args.json else _text(explanation, old, accounts))
        return _status(explanation)
    after = explain(new.rules, peer, now, accounts, asked_new)
    changed = _change(explanation, after)
    if args.json:
        _print({**_json(after, new), "before": _json(explanation, old), "changed": changed is not None})
    else:
        _print(
            f"{args.config}:\n{_text(explanation, old, accounts)}\n\n"
            f"{args.against}:\n{_text(after, new, accounts)}\n\n{changed or 'no difference'}"
        )
    return _status(after)


def _proxy(config: Config, name: str, file: str) -> Proxy:
    from sockguard.words import did_you_mean, quoted

    if name not in config.proxies:
        raise UsageError(f"{file} has no proxy {quoted(name)}{did_you_mean(name, config.proxies)}")
    return config.proxies[name]


def _asked(request: str | None, proxy: Proxy) -> Asked | None:
    if request is None:
        return None
    if not has_requests(proxy.protocol):
        raise UsageError(f"proxy {proxy.name!r} has protocol {proxy.protocol!r}: there are no requests to judge")
    try:
        return ask(proxy.protocol, proxy.options, request)
    except Bad as bad:
        raise UsageError(f"--request: {bad}") from None


def _peer(args: argparse.Namespace, accounts: Accounts) -> Peer:
    if args.pid is None:
        return _supposed(args, accounts, user=_number_or_name(args.user), uid=args.uid)
    if args.gid is not None or args.groups is not None:
        raise UsageError("--gid and --groups go with --uid or --user: those of a process are read")
    peer = _running(args.pid)
    given = _supposed(args, accounts, user=None, uid=peer.uid)
    return dataclasses.replace(
        peer,
        user=accounts.name_of(peer.uid),
        executable=peer.executable if args.executable is None else given.executable,
        cgroup=peer.cgroup if args.unit is None else given.cgroup,
        label=peer.label if args.label is None else given.label,
    )


def _supposed(args: argparse.Namespace, accounts: Accounts, *, user: str | int | None, uid: int | None) -> Peer:
    from sockguard.config.hypothetical import hypothetical_peer

    groups = None
    if args.groups is not None:
        groups = [_number_or_name(group) for group in args.groups.split(",") if group]
    try:
        return hypothetical_peer(
            accounts,
            user=user,
            uid=uid,
            gid=_number_or_name(args.gid),
            groups=[group for group in groups if group is not None] if groups is not None else None,
            executable=args.executable,
            unit=args.unit,
            label=args.label,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _running(pid: int) -> Peer:
    if not 0 < pid <= PID_MAX:
        raise UsageError(f"there is no process {pid}")
    try:
        return running_peer(pid)
    except (ProcessLookupError, FileNotFoundError):
        raise UsageError(f"there is no process {pid}, or /proc does not show it") from None
    except OSError as error:
        raise UsageError(f"process {pid} cannot be looked at: {error.strerror}") from None


def _number_or_name(text: str | None) -> str | int | None:
    """On a command line digits are an id; a name of digits only cannot be in the file either."""
    if text is not None and text.isascii() and text.isdecimal() and len(text) <= 10:
        return int(text)
    return text


def _change(before: Explanation, after: Explanation) -> str | None:
    """Say what differs between two verdicts; None when it is the same verdict by the same rule."""
    old, new = before.verdict, after.verdict
    if old.allowed != new.allowed:
        return f"changed: from {_word(before)} to {_word(after)}: {new.reason}"
    if old.rule != new.rule:
        return f"same verdict, by another rule: {new.reason} (before: {old.reason})"
    return None


def _text(explanation: Explanation, proxy: Proxy, accounts: Accounts) -> str:
    text = render(explanation, proxy.name, accounts)
    if _let_through(explanation, proxy):
        what = "peer" if explanation.asked is None else "request"
        text += f"\nbut the proxy is permissive (enforce = false): it logs the denial and lets the {what} through"
    return text


def _let_through(explanation: Explanation, proxy: Proxy) -> bool:
    """Whether a denial is only logged. What cannot be known of a peer that connects is denied all the same."""
    return not (proxy.enforce or explanation.verdict.allowed or explanation.verdict.uncertain)


def _json(explanation: Explanation, proxy: Proxy) -> dict[str, object]:
    return {**to_json(explanation, proxy.name), "enforce": proxy.enforce}


def _print(result: str | dict[str, object]) -> None:
    print(result if isinstance(result, str) else json.dumps(result))


def _word(explanation: Explanation) -> str:
    return "allow" if explanation.verdict.allowed else "deny"


def _status(explanation: Explanation) -> int:
    return EXIT_OK if explanation.verdict.allowed else EXIT_DENY
