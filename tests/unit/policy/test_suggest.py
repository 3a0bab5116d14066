"""What rules follow from what events, and that no event can put anything else into the file."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from sockguard.identity.peer import OVERFLOW_ID
from sockguard.policy import suggest
from sockguard.policy.suggest import By, Tally, write

GROUPS = {100: "users", 101: "odd name", 102: "5"}


def event(kind: str = "connection_denied", **more: Any) -> dict[str, Any]:
    base = {"event": kind, "proxy": "pg", "uid": 1000, "gid": 100, "user": "alice", "rule": None, "cause": "rules"}
    return {**base, "time": "2026-05-01T10:00:00Z", **more}


def tallied(*events: dict[str, Any]) -> Tally:
    tally = Tally()
    for one in events:
        tally.add(json.dumps(one))
    return tally


def text(*events: dict[str, Any], by: By = "user") -> str:
    return write(tallied(*events), by, GROUPS.get)


def rules(*events: dict[str, Any], by: By = "user") -> dict[str, Any]:
    """The allow rules by proxy."""
    return {name: table["allow"] for name, table in tomli.loads(text(*events, by=by)).get("proxy", {}).items()}


def test_by_user() -> None:
    """One allow a proxy, names where they are known, sorted, each once, numbers last."""
    found = rules(
        event(uid=1002, user="zoe"),
        event("connection_admitted", rule="pg.allow[0]"),
        event("would_deny"),
        event(uid=1009, user=None),
        event(proxy="docker-1", uid=0, user="root"),
    )
    assert found == {"pg": [{"users": ["alice", "zoe", 1009]}], "docker-1": [{"users": ["root"]}]}


def test_by_group() -> None:
    """The gids that were seen, by their names where those are valid as names."""
    found = rules(event(), event(gid=101), event(gid=102), event(gid=7), by="group")
    assert found == {"pg": [{"groups": ["users", 7, 101, 102]}]}


def test_a_deny_is_a_comment() -> None:
    """Whom a deny rule turned away gets no allow, but a comment that names the rule."""
    for kind in ("connection_denied", "would_deny"):
        written = text(event(kind, rule="pg.deny[0]"), event(uid=5, user=None))
        assert tomli.loads(written) == {"proxy": {"pg": {"allow": [{"users": [5]}]}}}
        assert "# pg: alice (uid 1000), 1 event: denied by 'pg.deny[0]'" in written


@pytest.mark.parametrize("cause", ["limit", "backend", "unknown", None, 1])
def test_only_rules_count(cause: object) -> None:
    """A denial for any other cause asks for no rule."""
    tally = tallied(event(cause=cause))
    assert (tally.events, tally.others, tally.malformed) == (0, 1, 0)
    assert rules(event(cause=cause)) == {}


def test_a_permissive_proxy_s_admission_is_not_a_wish() -> None:
    """Whom a deny would have turned away but a permissive proxy let in gets no allow."""
    assert rules(event("would_deny", rule="pg.deny[0]"), event("connection_admitted", rule=None)) == {}
    assert rules(event("would_deny"), event("connection_admitted", rule=None)) == {"pg": [{"users": ["alice"]}]}


def test_overflow_ids() -> None:
    """An overflow id is never put into a rule; a comment says why."""
    assert rules(event(uid=OVERFLOW_ID)) == {}
    assert rules(event(gid=OVERFLOW_ID), by="group") == {}
    assert "# pg: uid 65534, 1 event" in text(event(uid=OVERFLOW_ID))
    assert "# pg: uid 1000, 1 event: came with gid 65534" in text(event(gid=OVERFLOW_ID), by="group")


def test_a_name_that_is_not_certain_is_a_number() -> None:
    """A name for two uids, and a uid with two names, could admit somebody else: the uid is printed."""
    assert rules(event(), event(user="bob")) == {"pg": [{"users": [1000]}]}
    assert rules(event(), event(uid=1001)) == {"pg": [{"users": [1000, 1001]}]}


@pytest.mark.parametrize("name", ["*", "1000-1999", "7", "-x", "a b", 'a"b', "a\nb", "a\n", "", "é", "a" * 300])
def test_a_name_that_means_something_else_is_a_number(name: str) -> None:
    """What users = [...] would read as a range, as anyone or as another uid is never printed."""
    assert rules(event(user=name)) == {"pg": [{"users": [1000]}]}


BAD_FIELDS = [
    {"uid": -1}, {"uid": True}, {"uid": 4294967295}, {"uid": "0"}, {"uid": 1.0}, {"uid": None}, {"gid": 1 << 70},
    {"proxy": None}, {"proxy": "a.b"}, {"proxy": "a]\n"}, {"proxy": ""}, {"proxy": "ü"}, {"proxy": "a\n"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FIELDS)
def test_impossible_fields(bad: dict[str, Any]) -> None:
    """An event whose fields cannot be is counted, and gives nothing."""
    tally = tallied(event(**bad))
    assert (tally.events, tally.malformed, tally.peers) == (0, 1, {})


def test_lines_that_are_no_events() -> None:
    """Whatever a line holds, it is counted, and nothing is raised."""
    tally = Tally()
    for line in (
        "",
        "\n",
        "x",
        "[" * 100_000,
        "[]",
        "{}",
        '{"event": 1}',
        b"\xff\xfe",
        "9" * 10_000,
        '{"event": "reloaded"}',
    ):
        tally.add(line)
    assert (tally.malformed, tally.others, tally.events) == (7, 1, 0)


def test_heading() -> None:
    """The text begins by saying what it was made from, whatever the order and the quality of the times."""
    times = [
        "2026-05-02T00:00:00+02:00",
        "2026-05-01T10:00:00Z",
        "yesterday",
        "2026-05-03T00:00:00",
        "0001-01-01T00:00:00+14:00",
        5,
    ]
    first = text(*(event(time=time) for time in times)).splitlines()[0]
    assert first == (
        "# sockguard suggest --by user: made from 6 connection events, 2026-05-01T10:00:00Z to 2026-05-01T22:00:00Z"
    )


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bounds a tally keeps no more, counts what it leaves out, and the text says so."""
    monkeypatch.setattr(suggest, "MAX_PEERS", 2)
    monkeypatch.setattr(suggest, "MAX_REFUSALS", 1)
    many = [event(uid=uid, user=f"u{uid}") for uid in range(5)]
    tally = tallied(*many, *(event(rule=f"d{uid}", uid=uid) for uid in range(5)), *many)
    assert (len(tally.peers), len(tally.refusals), tally.not_kept) == (2, 1, 10)
    assert len(tally.names) <= 3
    assert "10 events left out" in write(tally, "user", GROUPS.get)


def test_order_does_not_matter() -> None:
    """The same events give the same text in any order."""
    events = [event(), event(uid=3, user="c"), event(rule="d"), event(proxy="z"), event(uid=OVERFLOW_ID)]
    for by in ("user", "group"):
        assert len({text(*some, by=by) for some in itertools.permutations(events)}) == 1


HOSTILE = st.text() | st.sampled_from(
    ['"]\n[daemon]\ncontrol = ""', "\n", "\r", "\x85", "\u2028", '"""', "\x00", "\ud800"]
)
FIELD = HOSTILE | st.integers() | st.none() | st.booleans() | st.lists(HOSTILE) | st.floats()
IDS = st.integers(0, 3) | st.just(OVERFLOW_ID)
EVENT = st.fixed_dictionaries(
    {"event": st.sampled_from(["connection_denied", "would_deny", "connection_admitted"]), "cause": st.just("rules")}
    | {"proxy": st.sampled_from(["pg", "a-b"]) | FIELD, "uid": IDS | FIELD, "gid": IDS | FIELD, "user": FIELD}
    | {"rule": st.none() | FIELD, "time": FIELD, "executable": FIELD, "label": FIELD}
)


@given(st.lists(EVENT, max_size=5), HOSTILE, st.sampled_from(["user", "group"]))
def test_no_event_can_write_the_file(events: list[dict[str, Any]], group: str, by: By) -> None:
    """Whatever the events hold, the text is ASCII, parses, and has rules of the asked kind for their own peers only."""
    written = write(tallied(*events), by, lambda _: group)
    assert written.isascii()
    assert all(line.isprintable() for line in written.split("\n"))
    parsed = tomli.loads(written)
    assert set(parsed) <= {"proxy"}
    seen = {str(one["proxy"]) for one in events}
    for proxy, table in parsed.get("proxy", {}).items():
        assert proxy in seen
        assert set(table) == {"allow"}
        (rule,) = table["allow"]
        assert set(rule) == {f"{by}s"}
        assert rule[f"{by}s"]
        allowed = {one["user"] for one in events if isinstance(one["user"], str)} if by == "user" else {group}
        for value in rule[f"{by}s"]:
            assert value in allowed or any(value in (one["uid"], one["gid"]) for one in events)
            assert value not in ("*", OVERFLOW_ID)
