"""Other rules while a request is under way: what could go on for ever ends where they would not allow it."""

from __future__ import annotations

from typing import cast

import pytest

from sockguard.protocols.base import CLIENT, RequestRules
from sockguard.protocols.http.inspector import HttpInspector
from tests.unit.protocols.http.exchanges import OK, get, status
from tests.unit.protocols.http.ruling import DOCKER, allow, compiled, deny
from tests.unit.protocols.playbook import Play

START = {"methods": ["POST"], "path": "/exec/{id}/start", "upgrade": ["tcp"]}
UPGRADE = get("/exec/x/start", "Content-Length: 2", "Connection: Upgrade", "Upgrade: tcp", method="POST") + b"{}"
PLAIN = get("/exec/x/start", "Content-Length: 2", method="POST") + b"{}"
SWITCH = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
RAW = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
TUNNELS = pytest.mark.parametrize(
    ("request_", "answer"), [(UPGRADE, SWITCH), (UPGRADE, RAW), (PLAIN, RAW)], ids=["101", "raw", "plain"]
)


def played(*http: object) -> Play:
    rules = cast("RequestRules", compiled(allow(*http), options=DOCKER))
    return Play(HttpInspector, rules, options=DOCKER)


def renew(play: Play, *http: object, enforce: bool = True, denied: str = "") -> None:
    given = [allow(*http), *([deny(denied)] if denied else [])]
    rules = cast("RequestRules", compiled(*given, options=DOCKER))
    play.inspector.new_rules(rules, enforce=enforce, tell_allowed=False)


@TUNNELS
@pytest.mark.parametrize("early", [True, False], ids=["before the answer", "behind it"])
def test_a_tunnel_ends_with_what_allowed_it(request_: bytes, answer: bytes, early: bool) -> None:
    play = played(START)
    play.client(request_)
    if not early:
        play.backend(answer)
        assert play.tunnel(CLIENT)
    renew(play, "GET /_ping")
    if early:
        assert play.end_of_it is None
        play.backend(answer)
    assert play.end_of_it == ("revoked", "no rule allows it")
    assert [(audit.kind, audit.request) for audit in play.audits] == [("denied", "POST /exec/x/start upgrade=tcp")]
    before = play.to_backend
    play.client(b"rm -r /")
    assert play.to_backend == before


@TUNNELS
def test_a_tunnel_ends_where_its_upgrade_alone_is_taken_away(request_: bytes, answer: bytes) -> None:
    play = played(START)
    play.client(request_)
    play.backend(answer)
    renew(play, "POST /exec/{id}/start")
    assert play.end_of_it is not None


@TUNNELS
def test_a_tunnel_goes_on_where_it_is_allowed_still(request_: bytes, answer: bytes) -> None:
    play = played(START)
    play.client(request_)
    play.backend(answer)
    renew(play, START, "GET /_ping")
    renew(play, "GET /_ping", enforce=False)
    play.client(b"in")
    play.backend(b"out")
    assert play.end_of_it is None
    assert play.to_backend.endswith(b"in")
    assert play.to_client.endswith(b"out")


def test_a_response_that_has_begun_ends_with_what_allowed_it() -> None:
    play = played("GET /events")
    play.client(get("/v1.43/events?since=0"))
    play.backend(BEGUN)
    renew(play, "GET /events")
    play.backend(b"1\r\ny\r\n")
    assert play.to_client.endswith(b"1\r\ny\r\n")
    renew(play, "GET /events", denied="GET /events")
    assert play.end_of_it == ("revoked", "denied by deny")
    assert [(audit.kind, audit.request) for audit in play.audits] == [("denied", "GET /v1.43/events?since=0")]


def test_an_answer_that_is_still_to_come_is_given() -> None:
    """What was asked is done by now; the next request is judged by the new rules."""
    play = played("GET /a")
    play.client(get("/a"))
    renew(play, "GET /b")
    play.backend(OK)
    assert status(play.to_client) == 200
    play.client(get("/a"))
    assert play.to_client.count(b"HTTP/1.1 403") == 1
    assert play.end_of_it is None
