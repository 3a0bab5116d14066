"""Which separations and settings are said to fail, for which process and which file."""

from __future__ import annotations

import os
from typing import Any

import pytest

from sockguard.checks.privileges import (
    Process,
    own_ids,
    privilege_findings,
    system_account,
    this_process,
)
from sockguard.config.settings import Config, Daemon, Listen, ListenKind, Log, Proxy
from sockguard.policy.lint import Finding
from sockguard.policy.rule import Action, NamedWho, Rule, Who
from sockguard.privsep.rights import CAP_CHOWN, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE

ALL = frozenset(range(41))
ROOT = Process(0, frozenset({0}), ALL, ALL)
BARE_ROOT = Process(0, frozenset({0}), frozenset(), frozenset())
USER = Process(1000, frozenset({1000, 27}), frozenset(), ALL)
ACCOUNTS = {"sockguard": (990, 991), "sockguard-relay": (992, 993)}
EXECUTABLES = Who(executables=("/bin/x",))


def config(**settings: Any) -> Config:
    rules = settings.pop("rules", ())
    listen = settings.pop("listen", Listen(ListenKind.PATH, "/run/x"))
    return Config(Daemon(), Log(), {"pg": Proxy("pg", listen, "/run/pg/s", rules, **settings)})


def bad(process: Process, accounts: dict[str, tuple[int, int]] = ACCOUNTS, **settings: Any) -> list[Finding]:
    return [f for f in privilege_findings(config(**settings), process, accounts.get) if f.severity != "info"]


def test_all_is_well() -> None:
    """Root with every capability and both accounts: nothing to complain of, whatever the file asks for."""
    assert bad(ROOT, identity="client", owner=5, group=5, rules=(Rule("r", Action.ALLOW, EXECUTABLES),)) == []


@pytest.mark.parametrize(("missing", "effect"), [("sockguard", "control stays root"), ("sockguard-relay", "nobody")])
def test_missing_accounts(missing: str, effect: str) -> None:
    """Without one of the users, what happens instead is said, with the command that makes it."""
    (found,) = bad(ROOT, {name: ids for name, ids in ACCOUNTS.items() if name != missing})
    assert found.severity == "warning"
    assert effect in found.text
    assert found.remedy.endswith(f" {missing}")


def test_accounts_that_do_not_separate() -> None:
    """One uid for both, or uid 0 for one, separates nothing."""
    assert [f.severity for f in bad(ROOT, {"sockguard": (990, 1), "sockguard-relay": (990, 1)})] == ["error"]
    assert [f.severity for f in bad(ROOT, {**ACCOUNTS, "sockguard": (0, 0)})] == ["error"]


def test_an_ordinary_user() -> None:
    """Started by an ordinary user, what will not be separated is said, and no error is made of it."""
    (found,) = bad(USER)
    assert found.severity == "warning"
    assert "control and relays are not separated: all run as uid 1000" in found.text


@pytest.mark.parametrize(
    ("settings", "key", "capabilities"),
    [
        ({"identity": "client"}, "identity", {CAP_SETUID, CAP_SETGID}),
        ({"owner": 5}, "owner", {CAP_CHOWN}),
        ({"group": 5}, "group", {CAP_CHOWN}),
        ({"rules": (Rule("r", Action.DENY, EXECUTABLES),)}, "executables", {CAP_SYS_PTRACE}),
        (
            {"rules": (Rule("r", Action.ALLOW, Who(), (NamedWho("n", EXECUTABLES),)),)},
            "executables",
            {CAP_SYS_PTRACE},
        ),
    ],
)
def test_settings_that_need_a_capability(settings: dict[str, Any], key: str, capabilities: set[int]) -> None:
    """A setting whose capability is not there: an error for root, which the daemon will be, else a warning."""
    assert f"proxy.pg.{key}" not in [f.subject for f in bad(ROOT, **settings)]
    for one in capabilities:
        lacking = Process(0, frozenset({0}), ALL - {one}, ALL - {one})
        assert [f.severity for f in bad(lacking, **settings) if f.subject == f"proxy.pg.{key}"] == ["error"]
    assert [f.severity for f in bad(USER, **settings) if f.subject == f"proxy.pg.{key}"] == ["warning"]
    assert all("bounding" in f.remedy for f in bad(BARE_ROOT, **settings))


def test_what_needs_no_capability() -> None:
    """A socket given to oneself or to a group of one's own, and one that systemd made, need no CAP_CHOWN."""
    assert len(bad(USER, owner=1000, group=27)) == 1
    assert len(bad(USER, owner=5, listen=Listen(ListenKind.ADOPTED, "x"))) == 1


def test_own_ids() -> None:
    """sockguard's own are the account's, whoever looks; without an account, those of the one who starts it."""
    for process in (ROOT, USER):
        assert own_ids(process, ACCOUNTS.get) == (frozenset({990}), frozenset({991}))
    nobody: dict[str, tuple[int, int]] = {}
    assert own_ids(USER, nobody.get) == (frozenset({1000}), frozenset())


def test_this_process() -> None:
    """The ids and capabilities are those that the kernel shows."""
    process = this_process()
    assert process.euid == os.geteuid()
    assert os.getegid() in process.gids
    assert process.effective <= ALL
    assert (CAP_SETUID in process.effective) or os.geteuid() != 0 or CAP_SETUID not in process.bounding


def test_system_account() -> None:
    """Accounts come from the account databases."""
    assert system_account("root") == (0, 0)
    assert system_account("no-such-user-here") is None
