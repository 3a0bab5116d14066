"""The file's own tests: each ``[[proxy.NAME.expect]]`` judged by the rules, as a connection or a request would be."""

from __future__ import annotations

from datetime import datetime

from sockguard.config.document import Document, Faults
from sockguard.config.hypothetical import hypothetical_peer
from sockguard.config.locate import Path
from sockguard.config.lookup import AccountsLike
from sockguard.config.model import ExpectTable, ProxyTable
from sockguard.config.settings import Proxy
from sockguard.identity.peer import Peer
from sockguard.policy.decide import decide
from sockguard.policy.requests import Asked, ask, decide_request, has_requests
from sockguard.policy.rule import Verdict
from sockguard.protocols.base import Bad
from sockguard.words import quoted


def check_expectations(
    document: Document,
    name: str,
    table: ProxyTable,
    proxy: Proxy | None,
    now: datetime,
    *,
    accounts: AccountsLike,
    faults: Faults,
) -> None:
    """Add a mistake for each expectation that cannot be meant or is not met.

    ``proxy`` is None when its rules have mistakes: then nothing is judged. ``now`` is aware. An expectation is about
    the rules: ``enforce = false`` changes nothing.
    """
    for index, expect in enumerate(table.expect):
        path: Path = ("proxy", name, "expect", index)
        asked = _asked(document, path, expect, table.protocol, proxy, faults)
        peer = _peer(document, path, expect, accounts, faults)
        if peer is None or proxy is None or expect.verdict is None:
            continue
        verdict = decide_request(proxy.rules, peer, now, asked) if asked else decide(proxy.rules, peer, now)
        if verdict.allowed != (expect.verdict == "allow"):
            text = f"expected {expect.verdict} for {_called(expect)}, but {_found(verdict)}"
            faults.add(document, (*path, "verdict"), text)


def _asked(
    document: Document, path: Path, expect: ExpectTable, protocol: str, proxy: Proxy | None, faults: Faults
) -> Asked | None:
    if expect.request is None or faults.within(document, *path[:2], "protocol"):
        return None
    where = (*path, "request")
    if not has_requests(protocol):
        faults.add(document, where, f"proxy has protocol {quoted(protocol)}, which has no requests")
    elif proxy is not None:  # else its options may be what has a mistake
        try:
            return ask(protocol, proxy.options, expect.request)
        except Bad as bad:
            faults.add(document, where, str(bad))
    return None


def _peer(document: Document, path: Path, expect: ExpectTable, accounts: AccountsLike, faults: Faults) -> Peer | None:
    if expect.verdict is None and not faults.within(document, *path):
        faults.add(document, path, "needs verdict")
    if faults.within(document, *path):
        return None
    try:
        return hypothetical_peer(
            accounts,
            user=expect.user,
            uid=expect.uid,
            gid=expect.gid,
            groups=None if expect.groups is None else [group for group in expect.groups if group is not None],
            executable=expect.executable,
            unit=expect.unit,
            label=expect.label,
        )
    except ValueError as error:
        faults.add(document, path, str(error))
        return None


def _called(expect: ExpectTable) -> str:
    who = f"user {expect.user}" if expect.user is not None else f"uid {expect.uid}"
    return who if expect.request is None else f"{who}, request {quoted(expect.request)}"


def _found(verdict: Verdict) -> str:
    if verdict.rule is None:
        return "no rule allows"
    if verdict.allowed:
        return f"rule {verdict.rule} allows"
    why = verdict.reason.removeprefix(f"denied by {verdict.rule}")  # ": its condition on units cannot be known (…)"
    return f"rule {verdict.rule} denies{why if why.startswith(': ') else ''}"
