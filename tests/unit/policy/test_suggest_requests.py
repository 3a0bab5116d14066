"""Rules for requests out of audit events: what is seen is let through, and no more."""

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
from sockguard.policy.entries import can_be_meant, toml
from sockguard.policy.suggest import By, Tally, write
from sockguard.protocols.registry import PROTOCOLS, rules_of

CALL = "call o.A / x.y.M"
GROUPS = {100: "users"}


def event(kind: str = "request_denied", **more: Any) -> dict[str, Any]:
    base = {"event": kind, "proxy": "bus", "uid": 1000, "gid": 100, "user": "alice", "rule": None}
    return {**base, "protocol": "dbus", "request": CALL, "time": "2026-05-01T10:00:00Z", **more}


def connection(kind: str = "connection_admitted", **more: Any) -> dict[str, Any]:
    base = {"event": kind, "proxy": "bus", "uid": 1000, "gid": 100, "user": "alice", "rule": "x", "cause": "rules"}
    return {**base, **more}


def text(*events: dict[str, Any], by: By = "user") -> str:
    tally = Tally()
    for one in events:
        tally.add(json.dumps(one))
    return write(tally, by, GROUPS.get)


def rules(*events: dict[str, Any], by: By = "user") -> dict[str, Any]:
    return {name: table["allow"] for name, table in tomli.loads(text(*events, by=by)).get("proxy", {}).items()}


def test_what_is_written() -> None:
    """The text as a person gets it: users that asked for the same share a rule."""
    found = text(
        event(), event("would_deny", uid=1001, user="bob"), event("request_allowed", rule="r", request="own o.B"),
        event(uid=1001, user="bob", request="own o.B"), event(uid=1002, user="zoe", request="own o.C"),
    )  # fmt: skip
    assert found == (
        "# sockguard suggest --by user: made from 5 events, 2026-05-01T10:00:00Z to 2026-05-01T10:00:00Z\n"
        "\n"
        "[[proxy.bus.allow]]\n"
        'users = ["alice", "bob"]\n'
        "dbus = [\n"
        '  { destination = "o.A", path = "/", interface = "x.y", member = "M" },\n'
        '  { own = "o.B" },\n'
        "]\n"
        "[[proxy.bus.allow]]\n"
        'users = ["zoe"]\n'
        "dbus = [\n"
        '  { own = "o.C" },\n'
        "]\n"
    )


def test_by_group() -> None:
    """A group's rule allows what any of its peers asked for; a peer with an overflow gid gets a comment."""
    found = rules(event(), event(uid=5, user=None, request="own o.B"), event(gid=7, request="own o.C"), by="group")
    entry = {"destination": "o.A", "path": "/", "interface": "x.y", "member": "M"}
    assert found == {
        "bus": [{"groups": ["users"], "dbus": [entry, {"own": "o.B"}]}, {"groups": [7], "dbus": [{"own": "o.C"}]}]
    }
    assert rules(event(gid=OVERFLOW_ID), by="group") == {}
    assert "uid 1000, 1 event: came with gid 65534" in text(event(gid=OVERFLOW_ID), by="group")


def test_no_rule_for_everything_where_requests_are_known() -> None:
    """A connection alone asks for no rule that would let every request through."""
    found = text(connection(), connection("connection_denied", uid=5, user=None, rule=None), event(uid=6, user=None))
    assert tomli.loads(found)["proxy"]["bus"]["allow"][0]["users"] == [6]
    none = 'no request of it is in the log ([log] requests = "all" tells all), so no rule is written for it'
    assert f"# bus: alice (uid 1000), 1 event: {none}" in found
    assert "# bus: uid 5, 1 event: no request of it is in the log" in found
    assert rules(connection(), event(proxy="other"))["bus"] == [{"users": ["alice"]}]
    assert rules(connection(), event())["bus"][0].keys() == {"users", "dbus"}
    assert rules(connection(), event(rule="deny")) == {}


@pytest.mark.parametrize("kind", ["connection_admitted", "connection_denied", "would_deny"])
def test_no_rule_for_everything_where_requests_are_judged(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when none is in the log, since it tells of denied ones alone or there were none."""
    rule = "x" if kind == "connection_admitted" else None
    found = text(connection(kind, rule=rule, protocol="http"))
    assert "allow" not in found
    assert "# bus: alice (uid 1000), 1 event: no request of it is in the log" in found
    assert rules(connection(kind, rule=rule, protocol="stream")) == {"bus": [{"users": ["alice"]}]}
    assert rules(connection(kind, rule=rule, protocol="http"), connection(kind, rule=rule, protocol="stream")) == {}
    monkeypatch.setattr(suggest, "MAX_PEERS", 0)
    assert rules(connection(kind, rule=rule, protocol="http")) == {}


def test_a_protocol_that_is_no_text_is_no_event() -> None:
    tally = Tally()
    tally.add(json.dumps(connection(protocol=["http"])))
    assert (tally.events, tally.malformed) == (0, 1)


@pytest.mark.parametrize("kind", ["request_denied", "would_deny"])
def test_a_deny_is_a_comment(kind: str) -> None:
    """What a deny rule turned away gets no allow."""
    assert rules(event(kind, rule="no reboot")) == {}
    assert "# bus: alice (uid 1000), 1 request: denied by 'no reboot'; a deny beats" in text(
        event(kind, rule="no reboot")
    )


@pytest.mark.parametrize(
    "request_text", ["call :1.5 / x.y.M", "junk", "", "call o.A /" + "a" * 388 + "…", "own o.\u00e9"]
)
def test_requests_that_no_rule_can_mean(request_text: str) -> None:
    """They are shown in a comment, as ASCII, and leave the others alone."""
    found = text(event(request=request_text), event(uid=7, user=None))
    assert [rule["users"] for rule in tomli.loads(found)["proxy"]["bus"]["allow"]] == [[7]]
    assert "# bus: alice (uid 1000), 1 event: no rule can mean '" in found


def test_a_request_that_was_cut() -> None:
    """It is another request than the one that was made: no protocol reads it."""
    for protocol, request in (("http", "GET /a"), ("dbus", "own o.A"), ("dbus", "call o.A /a M")):
        assert can_be_meant(protocol, request)
        assert not can_be_meant(protocol, f"{request}…")


VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a_-1"\\. é\n'), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_toml(value: Any) -> None:
    """A value that is written is read again, from one line of ASCII."""
    written = toml(value)
    assert written.isascii()
    assert written.isprintable()
    assert tomli.loads(f"v = {written}")["v"] == value


def test_toml_of_what_it_has_not() -> None:
    """A lone surrogate becomes a character that stands for none; null is a fault of a protocol's module."""
    assert tomli.loads(f"v = {toml(chr(0xD800))}")["v"] == "\ufffd"
    with pytest.raises(TypeError):
        toml(None)


@pytest.mark.parametrize(
    "bad", [{"protocol": "stream"}, {"protocol": None}, {"protocol": ["dbus"]}, {"request": 5}, {"request": None}]
)
def test_impossible_fields(bad: dict[str, Any]) -> None:
    """An event about a request whose fields cannot be is counted, and is no wish to connect either."""
    tally = Tally()
    for kind in ("request_denied", "request_allowed", "would_deny"):
        tally.add(json.dumps(event(kind, **bad)))
    assert (tally.events, tally.malformed, tally.peers, tally.requests) == (0, 3, {}, {})


def test_overflow_uid() -> None:
    """No rule can admit it."""
    assert rules(event(uid=OVERFLOW_ID)) == {}


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bound a tally keeps no more requests, and says so."""
    monkeypatch.setattr(suggest, "MAX_REQUESTS", 2)
    found = text(*(event(request=f"own o.A{number}") for number in range(5)))
    assert "3 events left out" in found
    assert tomli.loads(found)["proxy"]["bus"]["allow"][0]["dbus"] == [{"own": ["o.A0", "o.A1"]}]


def test_order_does_not_matter() -> None:
    """The same events give the same text in any order."""
    events = [event(), event(uid=3, user="c"), event(request="own o.A"), connection(uid=4), event(request="junk")]
    for by in ("user", "group"):
        assert len({text(*some, by=by) for some in itertools.permutations(events)}) == 1


HOSTILE = st.text() | st.sampled_from(
    ['own o.A"]\n[daemon]', CALL, "GET /a\"'\\\x00", "GET /é\U0001f600", "GET /\ud800"]
)
EVENTS = st.builds(
    lambda kind, protocol, request, uid: event(kind, protocol=protocol, request=request, uid=uid, user=None),
    st.sampled_from(["request_denied", "request_allowed", "would_deny"]),
    st.sampled_from(sorted(PROTOCOLS)),
    HOSTILE,
    st.integers(0, 2),
)


@given(st.lists(EVENTS, max_size=5))
def test_no_request_can_write_the_file(events: list[dict[str, Any]]) -> None:
    """Whatever a request holds, the text is ASCII, parses, and its *what* is one that the protocol reads."""
    written = text(*events)
    assert written.isascii()
    assert all(line.isprintable() for line in written.split("\n"))
    parsed = tomli.loads(written)
    assert set(parsed) <= {"proxy"}
    for rule in parsed.get("proxy", {}).get("bus", {}).get("allow", []):
        (key,) = rule.keys() - {"users"}
        (protocol,) = (name for name, entry in PROTOCOLS.items() if key in entry.what)
        assert rules_of(protocol).read_what(key, rule[key], deny=False)
