"""Expectations, and the supposed peers that they are judged with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sockguard.config.hypothetical import NOT_GIVEN, hypothetical_peer
from sockguard.config.settings import Config
from sockguard.identity.accounts import Accounts
from sockguard.identity.peer import OVERFLOW_ID, Peer

RULES = """\
[proxy.docker]
listen = "/l"
backend = "/b"
[[proxy.docker.allow]]
users = ["ci"]
[[proxy.docker.allow]]
groups = ["docker"]
units = ["x.service"]
executables = ["/usr/bin/*"]
[[proxy.docker.deny]]
users = [7]
[[proxy.docker.deny]]
users = [8]
labels = ["bad"]
[[proxy.docker.expect]]
"""
LINE = RULES.count("\n") + 1


@pytest.mark.parametrize(
    "facts",
    [
        'user = "ci"\nverdict = "allow"',
        'user = "root"\nverdict = "deny"',
        'uid = 1000\nverdict = "allow"',
        'uid = 5\ngroups = ["docker"]\nunit = "x.service"\nexecutable = "/usr/bin/["\nverdict = "allow"',
        'uid = 5\ngroups = ["docker"]\nunit = "x.service"\nverdict = "deny"',
        'uid = 5\ngroups = ["docker"]\nunit = "/user.slice/x.service"\nexecutable = "/usr/bin/x"\nverdict = "deny"',
        'uid = 7\ngid = "docker"\nverdict = "deny"',
    ],
)
def test_met(load_texts: Callable[..., Config], facts: str) -> None:
    """What the rules say of such a peer; a fact that is not given is unknown, and unknown is denied."""
    assert load_texts(RULES + facts)


@pytest.mark.parametrize(
    ("facts", "line", "said"),
    [
        ('user = "ci"\nverdict = "deny"', 1, ".verdict: expected deny for user ci, but rule docker.allow[0] allows"),
        ('uid = 7\nverdict = "allow"', 1, ".verdict: expected allow for uid 7, but rule docker.deny[0] denies"),
        (
            'uid = 8\nverdict = "allow"',
            1,
            ".verdict: expected allow for uid 8, but rule docker.deny[1] denies: its con",
        ),
        ('uid = 9\nverdict = "allow"', 1, ".verdict: expected allow for uid 9, but no rule allows"),
        ('user = "ci"', -1, ": needs verdict"),
        ('verdict = "deny"', -1, ": needs either user or uid"),
        ('user = "ci"\nuid = 1\nverdict = "deny"', -1, ": needs either user or uid"),
        ('user = "rot"\nverdict = "deny"', -1, ": unknown user 'rot'; did you mean 'root'?"),
        ('uid = 5\ngroups = ["dokcer"]\nverdict = "deny"', -1, ": unknown group 'dokcer'; did you mean 'docker'?"),
        (
            'user = "ci"\nrequest = "GET /"\nverdict = "deny"',
            1,
            ".request: proxy has protocol 'stream', which has no req",
        ),
        ('verdict = "maybe"\nuser = "ci"', 0, ".verdict: must be one of 'allow', 'deny', not 'maybe'"),
        ('user = "ci"\nexecutable = "x"\nverdict = "deny"', 1, ".executable: must be an absolute path, not 'x'"),
        ('uid = 4294967295\nverdict = "deny"', 0, ".uid: must be from 0 to 4294967294"),
    ],
)
def test_not_met(mistakes_of: Callable[..., list[str]], facts: str, line: int, said: str) -> None:
    """An expectation that is not met, or cannot be meant, is one mistake of the file, and says why."""
    (found,) = mistakes_of(RULES + facts)
    assert found.startswith(f"f:{LINE + line}: proxy.docker.expect[0]{said}")


def test_permissive_changes_no_expectation(mistakes_of: Callable[..., list[str]]) -> None:
    """Expectations are about the rules, not about what becomes of their verdicts."""
    text = RULES.replace('backend = "/b"', 'backend = "/b"\nenforce = false') + 'uid = 9\nverdict = "allow"'
    assert len(mistakes_of(text)) == 1


def test_rules_with_a_mistake_are_not_judged(mistakes_of: Callable[..., list[str]]) -> None:
    """A broken rule is said; the expectation that it would have met is not."""
    (found,) = mistakes_of(RULES.replace('users = ["ci"]', 'users = ["rot"]') + 'user = "ci"\nverdict = "allow"')
    assert "unknown user 'rot'" in found


@pytest.mark.parametrize(
    ("given", "peer"),
    [
        ({"user": "ci"}, Peer(1000, 100, frozenset({100}), user="ci")),
        ({"user": 1000}, Peer(1000, 100, frozenset({100}), user="ci")),
        ({"user": "ci", "gid": "docker"}, Peer(1000, 999, frozenset({999}), user="ci")),
        ({"user": "ci", "groups": ["docker", 5]}, Peer(1000, 100, frozenset({100, 999, 5}), user="ci")),
        ({"uid": 1000}, Peer(1000, OVERFLOW_ID, NOT_GIVEN, user="ci")),
        ({"uid": 5, "gid": 6}, Peer(5, 6, NOT_GIVEN)),
        ({"uid": 5, "gid": 6, "groups": []}, Peer(5, 6, frozenset({6}))),
    ],
)
def test_hypothetical_ids(accounts: Accounts, given: dict[str, Any], peer: Peer) -> None:
    """A user brings the account's groups, a uid only what is given; every other fact is unknown."""
    found = hypothetical_peer(accounts, **given)
    assert (found.uid, found.gid, found.groups, found.user) == (peer.uid, peer.gid, peer.groups, peer.user)
    assert (found.executable, found.cgroup, found.label) == (NOT_GIVEN, NOT_GIVEN, NOT_GIVEN)


def test_hypothetical_facts(accounts: Accounts) -> None:
    """A unit's name is taken to be a system service; paths stay."""
    peer = hypothetical_peer(accounts, uid=5, executable="/usr/bin/[", unit="x.service", label="l")
    assert (peer.executable, peer.cgroup, peer.label) == ("/usr/bin/[", "/system.slice/x.service", "l")
    assert hypothetical_peer(accounts, uid=5, unit="/user.slice/x").cgroup == "/user.slice/x"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs either user or uid"),
        ({"user": 77}, "uid 77 has no account"),
        ({"user": "rot"}, "unknown user 'rot'"),
        ({"uid": -1}, "must be from 0"),
        ({"uid": 1, "gid": 1 << 32}, "must be from 0"),
        ({"uid": 1, "executable": "x"}, "must be an absolute path"),
        ({"uid": 1, "unit": "x"}, "has no unit's ending"),
        ({"uid": 1, "label": ""}, "must not be empty"),
    ],
)
def test_hypothetical_mistakes(accounts: Accounts, given: dict[str, Any], said: str) -> None:
    """Every mistake is a ValueError in plain words."""
    with pytest.raises(ValueError, match=said):
        hypothetical_peer(accounts, **given)
