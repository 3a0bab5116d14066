"""What each kind of pattern matches, against a second reading of the same language, and in bounded time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockguard.policy import patterns
from sockguard.policy.patterns import executable_matches, fault, label_matches, unit_matches, unit_of

PATHS = [
    ("/usr/bin/psql", "/usr/bin/psql", True),
    ("/usr/bin/psql", "/usr/bin/psql2", False),
    ("/usr/bin/psql", "/usr/bin/psq", False),
    ("/usr/bin/psql", "/x/usr/bin/psql", False),
    ("/usr/bin/*", "/usr/bin/psql", True),
    ("/usr/bin/*", "/usr/bin/", True),
    ("/usr/bin/*", "/usr/bin/a/b", False),
    ("/usr/bin/*", "/usr/bin/.hidden", True),
    ("/usr/*/psql", "/usr/a/b/psql", False),
    ("/usr/**/psql", "/usr/a/b/psql", True),
    ("/usr/**/psql", "/usr/psql", False),
    ("/usr/**", "/usr/a/b", True),
    ("/usr/***", "/usr/a/b", True),
    ("/usr/bin/p?ql", "/usr/bin/psql", True),
    ("/usr/bin?psql", "/usr/bin/psql", False),
    ("/usr/bin[/]psql", "/usr/bin/psql", False),
    ("/usr/bin[!a]psql", "/usr/bin/psql", False),
    ("/opt/[a-c]x", "/opt/bx", True),
    ("/opt/[a-c]x", "/opt/dx", False),
    ("/opt/[!a-c]x", "/opt/dx", True),
    ("/opt/[^a-c]x", "/opt/ax", False),
    ("/opt/[]]", "/opt/]", True),
    ("/opt/[!]]", "/opt/]", False),
    ("/opt/[a-]", "/opt/-", True),
    ("/opt/[*]", "/opt/*", True),
    ("/opt/[*]", "/opt/x", False),
    ("/opt/[x]", "/opt/[x]", False),
    ("/opt/[x", "/opt/[x", True),
    ("/opt/a\\*", "/opt/a\\b", True),
    ("/opt/*", "/opt/a\n", True),
    ("/opt/a", "/opt/a\n", False),
    ("/opt/*.sh", "/opt/a.sh\n", False),
    ("/opt/ab*ba", "/opt/aba", False),
    ("/opt/ab*ba", "/opt/abba", True),
    ("/opt/*", "/opt/\udcff", True),
]


@pytest.mark.parametrize(("pattern", "path", "matches"), PATHS)
def test_executables(pattern: str, path: str, matches: bool) -> None:
    """Stars stay within a component, double stars do not, and the whole path must match."""
    assert executable_matches(pattern, path) is matches


UNITS = [
    ("nginx.service", "/system.slice/nginx.service", True),
    ("nginx.service", "/system.slice/nginx.service/worker/1", True),
    ("nginx.service", "/system.slice/web-nginx.slice/nginx.service", True),
    ("nginx.service", "/nginx.service", True),
    ("init.scope", "/init.scope", True),
    ("nginx.service", "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", False),
    ("nginx.service", "/user.slice/nginx.service", False),
    ("user@1000.service", "/user.slice/user-1000.slice/user@1000.service", False),
    ("*", "/user.slice/user-1000.slice/session-1.scope", False),
    ("**", "/user.slice/user-1000.slice/session-1.scope", False),
    ("nginx.service", "/system.slice/evil.service/nginx.service", False),
    ("payload", "/system.slice/x.service/payload", False),
    ("x.service", "/system.slice/x.service/user.slice/payload", True),
    ("system.slice", "/system.slice", False),
    ("*", "/system.slice", False),
    ("*", "/", False),
    ("nginx@*.service", "/system.slice/system-nginx.slice/nginx@a.service", True),
    ("nginx@*.service", "/system.slice/system-nginx.slice/nginx@.service", True),
    ("nginx@*.service", "/system.slice/nginx.service", False),
    ("nginx@a\\x2db.service", "/system.slice/nginx@a\\x2db.service", True),
    ("memory.service", "/system.slice/_memory.service", True),
    ("_x.service", "/system.slice/__x.service", True),
    ("/user.slice/user-1000.slice/**", "/user.slice/user-1000.slice/session-1.scope", True),
    ("/system.slice/x.service", "/system.slice/x.service", True),
    ("/system.slice/x.service", "/system.slice/x.service/payload", False),
    ("/system.slice/*", "/system.slice/x.service/payload", False),
    ("/system.slice/**", "/system.slice/x.service/payload", True),
]


@pytest.mark.parametrize(("pattern", "cgroup", "matches"), UNITS)
def test_units(pattern: str, cgroup: str, matches: bool) -> None:
    """A bare name is a system unit's and never one that a user can choose; a path is the whole cgroup path."""
    assert unit_matches(pattern, cgroup) is matches


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/cron.service", "cron.service"),
        ("/system.slice/cron.service/sub", "cron.service"),
        ("/user.slice/user-0.slice/session-1.scope", None),
        ("/system.slice", None),
        ("/", None),
        ("", None),
    ],
)
def test_unit_for_audit(cgroup: str, unit: str | None) -> None:
    """The audit's unit is the name that rules match."""
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("pattern", "label", "matches"),
    [
        ("*", "system_u:system_r:x_t:s0", True),
        ("system_u:*:x_t:*", "system_u:system_r:x_t:s0", True),
        ("/usr/sbin/* (enforce)", "/usr/sbin/a/b (enforce)", True),
        ("a?b", "a/b", True),
        ("a[/]b", "a/b", True),
        ("unconfined", "unconfined (x)", False),
    ],
)
def test_labels(pattern: str, label: str, matches: bool) -> None:
    """In labels a slash is a character like any other."""
    assert label_matches(pattern, label) is matches


def _as_regex(pattern: str) -> str:
    """The same language by the standard library, for patterns without classes."""
    parts = re.split(r"(\*+|\?)", pattern)
    words = {"*": "[^/]*", "?": "[^/]"}
    return "".join(".*" if len(part) > 1 and part[0] == "*" else words.get(part, re.escape(part)) for part in parts)


@settings(deadline=None)
@given(st.text("ab/*?", max_size=8), st.text("ab/", max_size=10))
def test_same_as_a_regular_expression(pattern: str, text: str) -> None:
    """Any pattern matches exactly what the equivalent regular expression does."""
    expected = re.fullmatch(_as_regex(pattern), text, re.DOTALL) is not None
    assert executable_matches(pattern, text) is expected


@settings(deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_a_pattern(pattern: str, text: str) -> None:
    """No pattern and no text raises; a pattern without wildcards matches itself."""
    executable_matches(pattern, text)
    unit_matches(pattern, text)
    fault(pattern)
    if not set(pattern) & set("*?["):
        assert executable_matches(pattern, text) is (pattern == text)
        assert executable_matches(pattern, pattern)


def test_hostile_text_takes_one_step_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that would make a backtracking matcher run for ages moves once for each character."""
    steps = 0
    pattern = patterns._Pattern("/**a*a*a*a*a*a*a*a*b" * 8, "/")
    step = patterns._Pattern._open

    def count(self: patterns._Pattern, state: int) -> int:
        nonlocal steps
        steps += 1
        return step(self, state)

    monkeypatch.setattr(patterns._Pattern, "_open", count)
    text = "/" + "a" * 4094 + "b"
    assert not pattern.matches(text)
    assert steps <= len(text)


def test_what_a_pattern_keeps_is_bounded() -> None:
    """Peers choose the characters; a pattern does not grow with them."""
    pattern = patterns._Pattern("/*", "/")
    for code in range(0x4E00, 0x4E00 + 3 * patterns.MOVES_LIMIT):
        assert pattern.matches("/" + chr(code))
    assert len(pattern._moves) == patterns.MOVES_LIMIT


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "is empty"),
        ("x" * 5000, "is longer than"),
        ("/opt/[x", "'[' without a ']'"),
        ("/opt/[]", "'[' without a ']'"),
        ("/opt/[z-a]", "empty range 'z-a'"),
        ("/opt/[!z-a]", "empty range 'z-a'"),
    ],
)
def test_fault(pattern: str, text: str) -> None:
    """A pattern that cannot be meant is named, as a deny with it would never match."""
    assert text in (fault(pattern) or "")


@pytest.mark.parametrize("pattern", ["/usr/bin/*", "/opt/[a-c]", "/opt/[[]", "/opt/[]x]", "/opt/[-a]", "/opt/]", "*"])
def test_no_fault(pattern: str) -> None:
    """What can be meant is taken."""
    assert fault(pattern) is None
