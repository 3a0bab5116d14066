"""Tunnels: opened by the service's own answer, where a rule names the upgrade, and never before."""

from __future__ import annotations

from typing import cast

import pytest

from sockguard.protocols.base import BACKEND, CLIENT
from sockguard.protocols.http.request import Request
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, Rules, get, in_all_ways, play, status
from tests.unit.protocols.http.ruling import DOCKER, allow, compiled
from tests.unit.protocols.playbook import Play

SWITCH = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
RAW = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"


def ask(*fields: str, to: str = "tcp", path: str = "/a", method: str = "POST") -> bytes:
    """A request for an upgrade."""
    return get(path, f"Upgrade: {to}", "Connection: Upgrade", *fields, method=method)


def ruled(*http: object) -> Play:
    """Begin a connection with real rules, as an engine's guard has them."""
    return play(cast("Rules", compiled(allow(*http), options=DOCKER)), options=DOCKER)


def test_an_allowed_upgrade_becomes_a_tunnel_at_101() -> None:
    def script(one: Play) -> None:
        one.client(ask("Content-Type: application/json", "Content-Length: 2"))
        one.client(b"{}")
        assert not one.tunnel(CLIENT)
        one.client(b"early")
        assert not one.to_backend.endswith(b"early"), "no tunnel before the service's own 101"
        one.backend(SWITCH + b"out")
        one.client(b"in")
        one.backend(b"HTTP/1.1 and whatever\n")
        assert one.inspector.busy
        one.client_ends()

    one = in_all_ways(lambda: Rules("/a", upgrades=["tcp"]), script)
    head, _, tunnel = one.to_backend.partition(b"\r\n\r\n")
    assert b"\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 2" in head
    assert tunnel == b"{}earlyin"
    head, _, tunnel = one.to_client.partition(b"\r\n\r\n")
    assert head == SWITCH[:-4]
    assert tunnel == b"outHTTP/1.1 and whatever\n"
    assert one.half_closed(BACKEND), "a tunnel's half-close is passed on"
    assert not one.half_closed(CLIENT)
    assert one.end_of_it is None


def test_a_body_may_come_behind_the_switch() -> None:
    def script(one: Play) -> None:
        one.client(ask("Content-Length: 4"))
        one.backend(SWITCH)
        assert not one.tunnel(CLIENT)
        one.client(b"bodyin")
        assert one.tunnel(CLIENT)

    one = in_all_ways(lambda: Rules("/a", upgrades=["tcp"]), script)
    assert one.to_backend.endswith(b"\r\n\r\nbodyin")


def test_a_half_close_before_the_switch_is_passed_on_with_it() -> None:
    for early in (b"", b"early"):

        def script(one: Play, early: bytes = early) -> None:
            one.client(ask() + early)
            one.client_ends()
            assert not one.half_closed(BACKEND)
            one.backend(SWITCH + b"out")

        one = in_all_ways(lambda: Rules("/a", upgrades=["tcp"]), script)
        assert one.to_backend == ask() + early
        assert one.half_closed(BACKEND)
        assert one.to_client.endswith(b"out")
        assert one.end_of_it is None


@pytest.mark.parametrize("to", ["tcp", "websocket", "tcp, websocket"])
def test_an_upgrade_is_a_permission_of_its_own(to: str) -> None:
    rules = Rules("/a", upgrades=["tcp"] if "web" in to else [])
    one = in_all_ways(lambda: rules, lambda one: one.client(ask(to=to)))
    assert status(one.to_client) == 403
    assert b"Connection: close" in one.to_client
    assert not one.to_backend
    assert one.audits[0].request == f"POST /a upgrade={to.replace(' ', '')}"


def test_what_comes_behind_a_denied_upgrade_is_no_request() -> None:
    one = play(Rules("/a"))
    one.client(ask() + get("/a"))
    assert status(one.to_client) == 403
    assert not one.to_backend


def test_a_wish_that_connection_does_not_name_is_none() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Upgrade: tcp"))
    assert one.to_backend == get("/a")
    one.backend(SWITCH)
    assert status(one.to_client) == 502


def test_an_old_client_cannot_upgrade() -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(ask().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"Upgrade" not in one.to_backend


@pytest.mark.parametrize("upgrade", ["", "Upgrade: websocket\r\n", "Upgrade: tcp, h2c\r\n"])
def test_a_switch_to_what_was_not_asked_for_is_no_good(upgrade: str) -> None:
    one = play(Rules("/a", upgrades=["tcp", "websocket", "h2c"]))
    one.client(ask())
    one.backend(f"HTTP/1.1 101 X\r\nConnection: Upgrade\r\n{upgrade}\r\n".encode())
    assert status(one.to_client) == 502
    assert not one.tunnel(CLIENT)
    assert not one.tunnel(BACKEND)


def test_a_switch_without_a_wish_is_no_good() -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(get("/a"))
    one.backend(SWITCH)
    assert status(one.to_client) == 502
    assert not one.tunnel(CLIENT)


def test_early_bytes_behind_a_refused_upgrade_close_the_connection() -> None:
    def script(one: Play) -> None:
        one.client(ask() + get("/b"))
        one.backend(OK)
        one.client(get("/b"))
        one.client_ends()

    one = in_all_ways(lambda: Rules("/a", "/b", upgrades=["tcp"]), script)
    assert b"/b" not in one.to_backend
    assert b"Connection: close" in one.to_client
    assert one.outcome == "upgrade_refused"


def test_early_bytes_that_come_with_a_late_body_close_the_connection_too() -> None:
    one = play(Rules("/a", "/b", upgrades=["tcp"]))
    one.client(ask("Content-Length: 2"))
    one.backend(OK)
    one.client(b"{}" + get("/b"))
    assert b"/b" not in one.to_backend


def test_early_bytes_amid_a_refusal_close_the_connection() -> None:
    one = play(Rules("/a", "/b", upgrades=["tcp"]))
    one.client(ask())
    one.backend(OK[:-1])
    one.client(get("/b"))
    one.backend(OK[-1:])
    assert b"/b" not in one.to_backend


def test_a_refused_upgrade_without_early_bytes_leaves_the_connection() -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(ask())
    one.backend(OK)
    one.client(get("/a"))
    one.backend(OK)
    assert one.to_client == OK * 2


def test_permissive_lets_an_upgrade_through_and_says_so() -> None:
    one = play(Rules("/a"), enforce=False)
    one.client(ask())
    one.backend(SWITCH)
    one.client(b"in")
    assert one.to_backend.endswith(b"in")
    assert one.audits[0].kind == "would_deny"


# HTTP/2 without TLS


def h2c(*fields: str) -> bytes:
    return get(
        "/a", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", "Connection: Upgrade, HTTP2-Settings", *fields
    )


def test_the_wish_for_http_2_is_taken_out() -> None:
    def script(one: Play) -> None:
        one.client(h2c("X: y") + get("/a"))
        one.backend(OK)
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == get("/a", "X: y") + get("/a")
    assert one.to_client == OK * 2


def test_the_wish_for_http_2_is_passed_on_where_a_rule_names_it() -> None:
    one = play(Rules("/a", upgrades=["h2c"]))
    one.client(h2c())
    assert b"\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n" in one.to_backend
    assert b"\r\nConnection: Upgrade, HTTP2-Settings\r\n" in one.to_backend
    one.backend(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    one.client(b"PRI * HTTP/2.0\r\n\r\n")
    assert one.to_backend.endswith(b"PRI * HTTP/2.0\r\n\r\n")


def test_another_wish_beside_http_2_stays() -> None:
    one = play(Rules("/a", upgrades=["websocket"]))
    one.client(ask("HTTP2-Settings: AA", to="H2C, WebSocket"))
    assert b"\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n" in one.to_backend
    assert b"2-Settings" not in one.to_backend


def test_settings_without_the_wish_go_no_further() -> None:
    one = play(Rules("/a", upgrades=["h2c"]))
    one.client(get("/a", "HTTP2-Settings: AA", "Connection: HTTP2-Settings"))
    assert one.to_backend == get("/a")


# Docker's attach: a tunnel that nobody asked for by its name


@pytest.mark.parametrize("kind", ["raw-stream", "multiplexed-stream"])
def test_a_raw_stream_is_a_tunnel_where_the_upgrade_is_allowed(kind: str) -> None:
    response = RAW.replace(b"raw-stream", kind.encode())

    def script(one: Play) -> None:
        one.client(get("/a", method="POST") + b"early")
        one.backend(response + b"out")
        one.client(b"in")
        one.client_ends()
        one.backend(b"more")

    one = in_all_ways(lambda: Rules("/a", upgrades=["tcp"]), script)
    assert one.to_backend == get("/a", method="POST") + b"earlyin"
    assert one.half_closed(BACKEND)
    assert one.to_client == response + b"outmore"


def no_tunnel(one: Play, response: bytes) -> None:
    one.backend(response)
    one.client(get("/a"))
    assert not one.tunnel(CLIENT)
    assert one.to_backend.count(b"/a") == 1


def test_a_raw_stream_is_no_tunnel_where_the_upgrade_is_not_allowed() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", method="POST"))
        no_tunnel(one, RAW + b"out")
        one.backend_ends()
        one.client_ends()

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_client.endswith(b"out")
    assert one.outcome == "upgrade_refused"


@pytest.mark.parametrize(
    ("response", "method"),
    [
        (RAW, "GET"),
        (RAW.replace(b"200", b"201"), "POST"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "POST"),
        (RAW.replace(b"vnd.docker.raw-stream", b"json"), "POST"),
    ],
)
def test_no_other_response_without_length_is_a_tunnel(response: bytes, method: str) -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(get("/a", method=method))
    no_tunnel(one, response)


@pytest.mark.parametrize("length", [b"Content-Length: 0", b"Transfer-Encoding: chunked"])
def test_a_raw_stream_with_an_end_is_no_tunnel(length: bytes) -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(get("/a", method="POST"))
    one.backend(RAW[:-2] + length + b"\r\n\r\n")
    assert not one.tunnel(CLIENT)


def test_a_raw_stream_waits_for_the_rest_of_the_request() -> None:
    one = play(Rules("/a", upgrades=["tcp"]))
    one.client(get("/a", "Content-Length: 2", method="POST"))
    one.backend(RAW)
    assert not one.tunnel(CLIENT)
    one.client(b"{}in")
    assert one.to_backend.endswith(b"{}in")


def test_permissive_says_of_a_raw_stream_what_it_would_deny() -> None:
    one = play(Rules("/a"), enforce=False)
    one.client(get("/a", method="POST"))
    assert not one.audits
    one.backend(RAW)
    assert one.tunnel(CLIENT)
    assert [audit[:2] for audit in one.audits] == [("would_deny", "POST /a upgrade=tcp")]


@pytest.mark.parametrize("good", [True, False])
def test_a_raw_stream_is_judged_with_the_body(good: bool) -> None:
    rules = Rules("/a", upgrades=["tcp"] if good else [], bodies={"/a": b"ok"})
    one = play(rules)
    one.client(get("/a", "Content-Length: 2", method="POST") + b"ok")
    one.backend(RAW)
    assert one.tunnel(CLIENT) == good


class BodyForTunnels(Rules):
    """A body is looked into only for an upgrade."""

    def wants_body(self, request: Request) -> bool:
        return bool(request.upgrade)


def test_a_raw_stream_is_no_tunnel_if_that_would_rest_on_a_body_that_was_not_judged() -> None:
    one = play(BodyForTunnels("/a", upgrades=["tcp"], bodies={"/a": b""}))
    one.client(get("/a", "Content-Length: 2", method="POST") + b"{}")
    no_tunnel(one, RAW)


@pytest.mark.parametrize(
    "path", ["/v1.43/containers/x/attach", "/containers/x/attach", "/v4.6.1/libpod/containers/x/attach"]
)
@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_the_body_of_an_attach_is_input_and_asks_for_the_upgrade(path: str, length: str) -> None:
    """An engine makes it the container's, whether or not it was asked for an upgrade."""
    entry = {"methods": ["POST"], "path": "/containers/{id}/attach"}
    entries = [entry, {**entry, "path": "/libpod/containers/{id}/attach"}]
    request = get(f"{path}?stdin=1", length, method="POST")
    for more in ({}, {"upgrade": ["tcp"]}):
        one = ruled(*({**each, **more} for each in entries))
        one.client(request)
        assert bool(one.to_backend) is bool(more)
        assert (status(one.to_client) == 403) is not bool(more)
    one = ruled(*entries)
    one.client(get(f"{path}?stdout=1", method="POST"))
    assert one.to_backend, "without a body it only listens"


def test_a_raw_stream_amid_a_body_ends_where_the_upgrade_is_not_allowed() -> None:
    """The rest of the body would be its input."""
    one = ruled("POST /exec/{id}/start")
    one.client(get("/exec/x/start", "Content-Length: 1000", method="POST") + b"{}")
    one.backend(RAW + b"out")
    assert one.outcome == "upgrade_refused"
    before = one.to_backend
    one.client(b"id\n")
    assert one.to_backend == before
    assert b"out" not in one.to_client


def test_a_bad_upgrade_is_refused() -> None:
    for to in ("a b", "a/b/c", "/", "a//b", '"a"'):
        one = play(Rules("/a", upgrades=["tcp"]))
        one.client(ask(to=to))
        assert status(one.to_client) == 400, to


def test_settings_that_are_no_settings_are_refused() -> None:
    one = play(Rules("/a", upgrades=["h2c"]))
    one.client(h2c("HTTP2-Settings: AA"))
    assert oracle.responses(one.to_client, "GET")[0].start == 400
