"""The status as text: everything that matters is in it, it fits, and nothing in it is more than text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.commands.status_view import columns, cut, render, render_connections
from sockguard.server.operator import Status
from tests.support.operator import row, status

WHOLE = """\
sockguard 0.1.0, generation 3
started 2026-03-01 10:00:00, /etc/sockguard/sockguard.toml
reloaded 2026-03-01 11:00:00

PROXY   OPEN   MAX  ADMITTED  DENIED  WOULD DENY   BYTES
docker     3  1024       120       7           0  3.5 MB

USER   UID  PROXY   OPEN
ci    1007  docker     2
-     4242  docker     1

RELAY   PID  OPEN  CAGE
    1  4711     3  seccomp
relays replaced: 0; audit events: 254, not written yet: 0 of at most 10000

DENIED    PROXY    ID  USER     REASON
12:34:56  docker  126  mallory  denied by docker.deny[0]
"""


def changed(**counts: int) -> Status:
    now = status()
    now["proxies"][0].update(counts)  # type: ignore[typeddict-item]
    return now


def line_of(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def test_the_whole() -> None:
    """Totals since the start, when there is nothing to compare with."""
    assert render(status(), None, 0, 80) == WHOLE


def test_rates() -> None:
    """Differences to the status before, by the seconds between."""
    now = changed(admitted=140, denied=8, would_deny=1, bytes_from_client=1_200_500, bytes_from_backend=2_303_500)
    text = render(now, status(), 2.0, 80)
    titles = ["PROXY", "OPEN", "MAX", "ADMITTED/s", "DENIED/s", "WOULD", "DENY/s", "BYTES/s"]
    assert line_of(text, "PROXY") == titles
    assert line_of(text, "docker ") == ["docker", "3", "1024", "10.0", "0.5", "0.5", "2.0", "kB"]


def test_verdicts_on_requests() -> None:
    """A table of their own, for the proxies that have any: totals, then rates."""
    now = changed(requests_denied=12, requests_would_deny=3)
    now["proxies"][0]["protocol"] = "http"
    stream = status()["proxies"][0]
    stream["name"] = "pg"
    now["proxies"].append(stream)
    before = status()
    before["proxies"][0]["requests_denied"] = 2
    text = render(now, None, 0, 80)
    assert "\n\nREQUESTS  PROTOCOL  DENIED  WOULD DENY\ndocker    http          12           3\n\n" in text
    text = render(now, before, 2.0, 80)
    assert "\n\nREQUESTS  PROTOCOL  DENIED/s  WOULD DENY/s\ndocker    http           5.0           1.5\n\n" in text
    before["proxies"] = []
    assert line_of(render(now, before, 2.0, 80), "docker    http") == ["docker", "http", "-", "-"]


def test_a_denied_request_shows_what_was_asked() -> None:
    """A client's own text is escaped as any other."""
    now = status()
    now["latest_denials"][0].update({"request": "GET /\x1b[2J", "reason": "no allow rule matches"})
    shown = line_of(render(now, None, 0, 80), "12:34:56")
    assert shown == ["12:34:56", "docker", "126", "mallory", "GET", "/\\x1b[2J:", "no", "allow", "rule", "matches"]


def test_no_rate_is_better_than_a_wrong_one() -> None:
    """After a restart, for a proxy that is new, and when no time has passed: no number."""
    restarted = changed(admitted=1)
    restarted["started"] = "2026-03-01T12:00:00Z"
    new = status()
    new["proxies"][0]["name"] = "docker"
    before = status()
    before["proxies"] = []
    for now, previous, seconds in ((restarted, status(), 1.0), (new, before, 1.0), (status(), status(), 0.0)):
        assert line_of(render(now, previous, seconds, 80), "docker ")[3:] == ["-"] * 4


def test_what_must_not_be_overlooked() -> None:
    """A refused reload with its errors, a permissive proxy, and a separation that does not hold."""
    now = status()
    now["last_reload"] = {
        "time": "2026-03-01T11:00:00Z",
        "ok": False,
        "errors": [f"/f:{line}: x: unknown key" for line in range(1, 13)],
    }
    now["proxies"][0]["enforce"] = False
    now["separation_warnings"] = ["no separation: control and relays run under one uid (0); " + "x " * 60]
    text = render(now, None, 0, 80)
    assert "RELOAD REFUSED 2026-03-01 11:00:00: the rules before it go on\n  /f:1: x: unknown key\n" in text
    assert "  /f:10: x: unknown key\n  and 2 more\n" in text
    assert "PERMISSIVE: docker: what the rules would deny is let through\n" in text
    assert "WARNING: no separation: control and relays run under one uid (0);" in text


def test_nothing_yet() -> None:
    """A daemon that has just started: no reload, no user, no denial, no relay."""
    now = status()
    now["last_reload"] = None
    now["proxies"][0]["users"] = []
    now["latest_denials"] = []
    now["relays"] = []
    text = render(now, None, 0, 80)
    assert "reloaded" not in text
    assert "USER" not in text
    assert "DENIED  " not in text.splitlines()[-1]


def test_a_peer_that_cannot_be_known() -> None:
    """No name: its uid; no uid: a dash."""
    now = status()
    now["latest_denials"][0].update({"user": None, "uid": 4242})
    assert line_of(render(now, None, 0, 80), "12:34:56")[3] == "4242"
    now["latest_denials"][0]["uid"] = None
    assert line_of(render(now, None, 0, 80), "12:34:56")[3] == "-"


@given(
    text=st.text(max_size=300),
    width=st.integers(20, 200),
    rates=st.booleans(),
    protocol=st.sampled_from(["stream", "http"]),
)
def test_it_fits_whatever_the_names(text: str, width: int, rates: bool, protocol: str) -> None:
    """No line is wider than the terminal, and no name, reason or error makes a line or a control character."""
    now = status()
    now["version"] = now["config"] = text
    now["proxies"][0].update({"name": text, "enforce": False, "protocol": protocol})
    now["proxies"][0]["users"][0]["user"] = text
    now["relays"][0]["cage"] = text
    now["last_reload"] = {"time": text, "ok": False, "errors": [text]}
    now["latest_denials"][0].update({"time": text, "proxy": text, "user": text, "reason": text, "request": text})
    shown = render(now, status() if rates else None, 1.0, width)
    unnamed = status()
    unnamed["proxies"][0]["protocol"] = protocol
    plain = render(unnamed, status() if rates else None, 1.0, width)
    for line in shown.splitlines():
        assert columns(line) <= width
        assert line.isprintable()
    assert shown.count("\n\n") == plain.count("\n\n")


@given(text=st.text(max_size=50), width=st.integers(1, 60))
def test_cut(text: str, width: int) -> None:
    """What fits stays as it is; what does not is cut to fit."""
    result = cut(text, width)
    assert columns(result) <= width
    assert result == text or columns(text) > width


def test_wide_characters_take_two_columns() -> None:
    """A name of wide characters does not push its line out of the table."""
    assert columns("日本") == 4
    assert cut("日本語日本語", 9) == "日本語..."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.2s"), (59.9, "59.9s"), (60, "1m"), (3599, "59m"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_connections(seconds: float, shown: str) -> None:
    """A line for each, with its age in the unit that tells most."""
    connection = row(17)
    connection["seconds"] = seconds
    lines = render_connections([connection, row(1234)], 80).splitlines()
    assert lines[0].split() == ["ID", "PROXY", "USER", "UID", "PID", "SINCE", "STATE", "RULE"]
    assert lines[1].split() == ["17", "docker", "ci", "1007", "4000", shown, "open", "operators"]
