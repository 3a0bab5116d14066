"""Accounts and capabilities: which of sockguard's separations will hold, and what the file asks for that will not work.

Looks at this process: the daemon has what the one who starts it has. Never takes or drops a privilege.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Final, Literal

from sockguard.config.settings import Config, ListenKind, Proxy
from sockguard.policy.lint import Finding
from sockguard.policy.rule import Rule
from sockguard.privsep.rights import (
    CAP_CHOWN,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_PTRACE,
    CAPABILITY_NAMES,
    CONTROL_USER,
    RELAY_USER,
)

STATUS_LIMIT: Final = 1 << 16
"""Bytes read of /proc/self/status."""

AccountOf = Callable[[str], tuple[int, int] | None]
"""From a user's name to its uid and primary gid; None without such a user."""


@dataclass(frozen=True, slots=True)
class Process:
    """What this process may do: its ids, and its capabilities as sets of numbers (capabilities(7))."""

    euid: int
    gids: frozenset[int]
    effective: frozenset[int]
    bounding: frozenset[int]


def this_process() -> Process:
    """Read the ids and capabilities of this process. Raises OSError."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file.read(STATUS_LIMIT).splitlines() if ":" in line)
    gids = frozenset({os.getegid(), *os.getgroups()})
    return Process(os.geteuid(), gids, _bits(fields.get("CapEff", "")), _bits(fields.get("CapBnd", "")))


def _bits(text: str) -> frozenset[int]:
    try:
        mask = int(text, 16)
    except ValueError:
        return frozenset()
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def system_account(name: str) -> tuple[int, int] | None:
    """Look a user up in the account databases."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, OSError):
        return None
    return entry.pw_uid, entry.pw_gid


def own_ids(process: Process, account_of: AccountOf = system_account) -> tuple[frozenset[int], frozenset[int]]:
    """Return the uids that are sockguard's own on this machine, and the groups by which it reaches backends.

    With the user ``sockguard`` that is the daemon's; without, the daemon runs as whoever starts it.
    """
    account = account_of(CONTROL_USER)
    if account is None:
        return frozenset({process.euid}), frozenset()
    return frozenset({account[0]}), frozenset({account[1]})


def privilege_findings(config: Config, process: Process, account_of: AccountOf = system_account) -> list[Finding]:
    """Say which separations will not hold and which settings will not work, started from this process."""
    return [*_accounts(process, account_of), *_separation(process), *_settings(config, process)]


def _accounts(process: Process, account_of: AccountOf) -> Iterator[Finding]:
    found = {name: account_of(name) for name in (CONTROL_USER, RELAY_USER)}
    instead = {CONTROL_USER: "control stays root", RELAY_USER: "relays become nobody"}
    for name, account in found.items():
        remedy = f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {name}"
        if account is None:
            yield Finding("warning", "accounts", f"there is no user {name}: started as root, {instead[name]}", remedy)
        elif account[0] == 0:
            yield Finding("error", "accounts", f"the user {name} has uid 0: it separates nothing", remedy)
    control, relay = found[CONTROL_USER], found[RELAY_USER]
    if control is not None and relay is not None and control[0] == relay[0] != 0:
        text = f"{CONTROL_USER} and {RELAY_USER} have one uid: a relay that was taken over could signal control"
        yield Finding("error", "accounts", text, f"give {RELAY_USER} a uid of its own")


def _separation(process: Process) -> Iterator[Finding]:
    lacking = _lacking(process, {CAP_SETUID, CAP_SETGID})
    if lacking:
        text = f"started from here ({lacking}), control and relays are not separated: all run as uid {process.euid}"
        yield Finding("warning", "privileges", text, _get(process, {CAP_SETUID, CAP_SETGID}))
    else:
        yield Finding("info", "privileges", "control and relays can run under uids of their own", "")


def _settings(config: Config, process: Process) -> Iterator[Finding]:
    for proxy in config.proxies.values():
        for key, wanted, effect in _needs(proxy, process):
            lacking = _lacking(process, wanted)
            if lacking:
                # Root without a capability is what the daemon will be; anyone else may merely have come to look.
                severity: Literal["error", "warning"] = "error" if process.euid == 0 else "warning"
                text = f"started from here ({lacking}), {effect}"
                yield Finding(severity, f"proxy.{proxy.name}.{key}", text, _get(process, wanted))


def _needs(proxy: Proxy, process: Process) -> Iterator[tuple[str, Set[int], str]]:
    """The settings of a proxy that need a capability: key, capabilities, and what happens without."""
    if proxy.identity == "client":
        effect = "sockguard cannot connect under the client's identity, and will refuse to start"
        yield "identity", {CAP_SETUID, CAP_SETGID}, effect
    if any(map(_asks_for_executables, proxy.rules)):
        effect = "the programs of other users are unknown: an allow with executables admits none, a deny denies all"
        yield "executables", {CAP_SYS_PTRACE}, effect
    if proxy.listen.kind is ListenKind.PATH:
        if proxy.owner is not None and proxy.owner != process.euid:
            yield "owner", {CAP_CHOWN}, "the socket cannot be given to its owner"
        if proxy.group is not None and proxy.group not in process.gids:
            yield "group", {CAP_CHOWN}, "the socket cannot be given to its group"


def _asks_for_executables(rule: Rule) -> bool:
    return any(who.executables is not None for who in (rule.own, *(named.who for named in rule.sets)))


def _lacking(process: Process, wanted: Set[int]) -> str:
    """Name the capabilities that are not in effect, "" when all are."""
    lacking = sorted(wanted - process.effective)
    return f"without {' and '.join(CAPABILITY_NAMES[number] for number in lacking)}" if lacking else ""


def _get(process: Process, wanted: Set[int]) -> str:
    if wanted - process.bounding:
        return (
            "start it where its bounding set has these: CapabilityBoundingSet= of the unit, --cap-add of the container"
        )
    return "start it as root, or by its systemd unit"
