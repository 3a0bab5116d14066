"""All findings together: their order, their text, and what a script sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sockguard.checks.members import Member, local_members
from sockguard.checks.report import exit_status, render, system_findings, to_json
from sockguard.config.settings import Config, Daemon, Listen, ListenKind, Log, Proxy
from sockguard.policy.lint import Finding
from sockguard.policy.rule import Action, Rule, Users, Who

ERROR = Finding("error", "proxy.pg.backend", "anyone can", "chmod 0710 /x")
NOTE = Finding("info", "kernel", "X: present", "")


def test_render() -> None:
    """One line a finding, its remedy below it, a count at the end."""
    assert render([NOTE, ERROR, ERROR]).splitlines() == [
        "info     kernel: X: present",
        "error    proxy.pg.backend: anyone can",
        "         remedy: chmod 0710 /x",
        "error    proxy.pg.backend: anyone can",
        "         remedy: chmod 0710 /x",
        "2 errors, 1 note",
    ]
    assert render([]) == "nothing found"


def test_to_json() -> None:
    """Every field of every finding, as plain data."""
    assert json.loads(json.dumps(to_json([ERROR]))) == [
        {"severity": "error", "subject": "proxy.pg.backend", "text": "anyone can", "remedy": "chmod 0710 /x"}
    ]


def test_exit_status() -> None:
    """Only an error fails."""
    assert exit_status([NOTE, Finding("warning", "a", "b", "")]) == 0
    assert exit_status([NOTE, ERROR]) == 1


def test_system_findings(tmp_path: Path) -> None:
    """The kernel, accounts and privileges, then each proxy's backend and rules, proxies in the file's order."""
    anyone = Rule("a", Action.ALLOW, Who(users=Users(anyone=True)))
    proxies = {
        name: Proxy(name, Listen(ListenKind.PATH, "/run/x"), str(tmp_path / name), (anyone,), enforce=False)
        for name in ("zz", "aa")
    }
    found = system_findings(Config(Daemon(), Log(), proxies))
    subjects = list(dict.fromkeys(finding.subject for finding in found))
    assert subjects[0] == "kernel"
    assert subjects[-4:] == ["proxy.zz.backend", "proxy.zz", "proxy.aa.backend", "proxy.aa"]


def test_what_a_rule_says_of_requests(tmp_path: Path) -> None:
    """A proxy's rules are looked at as its protocol and its options have them."""
    create = Rule("a", Action.ALLOW, Who(), what=({"methods": ["POST"], "path": "/containers/create"},))
    proxy = Proxy(
        "d", Listen(ListenKind.PATH, "/run/x"), str(tmp_path / "d"), (create,), protocol="http",
        options={"strip_prefix": "docker-version"},
    )  # fmt: skip
    (said,) = [one for one in system_findings(Config(Daemon(), Log(), {"d": proxy})) if "/containers" in one.text]
    assert "root on the host" in said.text


def test_members_of_root() -> None:
    """A group's members are those whose own group it is, too."""
    assert Member("root", 0) in local_members()(0)
    assert local_members()(4294967290) == []


def test_what_is_imported() -> None:
    """The checks and the suggestions stay out of what takes long to import."""
    code = (
        "import sys, sockguard.checks.report, sockguard.commands.suggest;"
        "print(sorted({'trio', 'structlog', 'prometheus_client', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
