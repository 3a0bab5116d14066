"""What a service is sent of a client's requests, and what the client is told of those that it is not."""

from __future__ import annotations

import json
from typing import cast

import pytest

from sockguard.protocols.base import CLIENT, RequestRules
from sockguard.protocols.http import limits
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, Rules, get, in_all_ways, play, status
from tests.unit.protocols.playbook import Play


def test_an_allowed_request_is_written_anew_and_its_answer_comes_back() -> None:
    def script(one: Play) -> None:
        one.client(b"GET /a?x=%7e HTTP/1.1\r\nhost:x\r\nAccept:  */* \t\r\nX-Empty:\r\n\r\n")
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == b"GET /a?x=%7e HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nX-Empty: \r\n\r\n"
    assert one.to_client == OK
    assert one.end_of_it is None
    assert not one.inspector.busy


def test_a_denied_request_is_answered_and_the_next_one_judged() -> None:
    def script(one: Play) -> None:
        one.client(get("/no"))
        one.client(get("/a"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    denied, answered = oracle.responses(one.to_client, "GET", "GET", closed=False)
    assert denied.start == 403
    assert json.loads(denied.body) == {"message": "sockguard: no rule allows it"}
    assert (b"content-type", b"application/json") in denied.fields
    assert answered.body == b"ok"
    assert [audit[:2] for audit in one.audits] == [("denied", "GET /no")]
    assert b"/no" not in one.to_backend


def test_a_denial_stands_in_its_place_among_pipelined_responses() -> None:
    def script(one: Play) -> None:
        one.client(get("/a") + get("/no") + get("/a"))
        assert one.to_client == b"", "nothing before the service has answered the first"
        one.backend(OK)
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert [m.start for m in oracle.responses(one.to_client, *["GET"] * 3, closed=False)] == [200, 403, 200]


def test_one_request_is_under_way_at_a_time() -> None:
    one = play(Rules("/a"))
    one.client(get("/a") * 2)
    assert one.to_backend.count(b"GET /a") == 1
    one.backend(OK[:-1])
    assert one.to_backend.count(b"GET /a") == 1
    one.backend(OK[-1:])
    assert one.to_backend.count(b"GET /a") == 2


def test_a_request_waits_behind_a_body_that_comes_later() -> None:
    one = play(Rules("/a"))
    one.client(get("/a", "Content-Length: 2", method="POST"))
    one.client(b"{}" + get("/a"))
    assert one.to_backend.count(b"/a") == 1
    one.backend(OK)
    assert one.to_backend.count(b"/a") == 2


def test_a_denied_head_is_answered_without_a_body() -> None:
    one = play(Rules())
    one.client(get("/", method="HEAD"))
    head, _, body = one.to_client.partition(b"\r\n\r\n")
    assert status(head) == 403
    assert b"Content-Length: " in head
    assert not body


def test_the_message_is_the_verdict_s_reason_as_json() -> None:
    one = play(Rules("/a", bodies={"/a": b"good"}))
    one.client(get("/a", "Content-Length: 3", method="POST") + b"bad")
    denied = oracle.responses(one.to_client, "POST", closed=False)[0]
    assert json.loads(denied.body) == {"message": "sockguard: not with this body"}


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_small_denied_body_is_read_away(field: str) -> None:
    body = b"GET /" if "Length" in field else b"5;x=y\r\nGET /\r\n0\r\nTrailer: 1\r\n\r\n"

    def script(one: Play) -> None:
        one.client(get("/no", field, method="POST") + body + get("/a"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert [m.start for m in oracle.responses(one.to_client, "POST", "GET", closed=False)] == [403, 200]
    assert one.to_backend == get("/a")


def test_no_request_follows_one_whose_body_the_service_may_leave_unread() -> None:
    """The service is told so, and the client; what it has sent ahead goes nowhere."""

    def script(one: Play) -> None:
        one.client(get("/a", "Content-Length: 3") + b"abc" + get("/a"))
        one.backend(OK)

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == get("/a", "Connection: close", "Content-Length: 3") + b"abc"
    assert one.to_client.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in one.to_client
    assert one.half_closed(CLIENT)


@pytest.mark.parametrize("length", [limits.MAX_DRAINED + 1, 10**17])
def test_a_large_denied_body_closes(length: int) -> None:
    one = play(Rules("/a"))
    one.client(get("/no", f"Content-Length: {length}", method="POST"))
    assert b"\r\nConnection: close\r\n" in one.to_client
    assert one.half_closed(CLIENT)
    one.client(get("/a"))
    assert not one.to_backend
    one.client_ends()
    assert one.end_of_it == ("closed", "")


def test_denied_chunks_close_when_they_are_more_than_a_little() -> None:
    one = play(Rules("/a"))
    one.client(get("/no", "Transfer-Encoding: chunked", method="POST"))
    assert b"Connection: close" not in one.to_client
    one.client((b"1000\r\n" + bytes(0x1000) + b"\r\n") * 17)
    assert one.half_closed(CLIENT)
    one.client(b"0\r\n\r\n" + get("/a"))
    assert not one.to_backend


def test_a_client_that_reads_nothing_of_a_last_reply_is_waited_for_no_longer_than_said() -> None:
    one = play(Rules())
    one.client(b"bad\r\n\r\n")
    assert one.clock == limits.LINGER_SECONDS
    one.time_passes()
    assert one.outcome == "malformed"


def test_a_client_that_talks_on_behind_a_last_reply_is_cut() -> None:
    one = play(Rules())
    one.client(b"bad\r\n\r\n")
    for _ in range(limits.MAX_LINGER // 0x10000 + 1):
        one.client(bytes(0x10000))
        if one.end_of_it:
            break
    assert one.outcome == "malformed"


@pytest.mark.parametrize(
    "head",
    [
        get("x.example:443", method="CONNECT"),
        get("/", method="CONNECT"),
        get("*", method="OPTIONS"),
    ],
)
def test_connect_and_options_of_all_are_never_allowed(head: bytes) -> None:
    one = in_all_ways(lambda: Rules("/", "*"), lambda one: one.client(head), enforce=False)
    assert status(one.to_client) == 403
    assert one.audits[0].kind == "denied"
    assert not one.to_backend


def test_permissive_lets_through_what_rules_deny_and_says_so() -> None:
    one = play(Rules(), enforce=False)
    one.client(get("/no"))
    assert one.to_backend == get("/no")
    assert [audit[:2] for audit in one.audits] == [("would_deny", "GET /no")]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\n\n",
        get("/a", "Content-Length: 1", "Content-Length: 1"),
        get("/../a"),
        get("/a", host=""),
    ],
)
def test_permissive_lets_no_framing_fault_through(data: bytes) -> None:
    one = play(Rules("/a"), enforce=False)
    one.client(data)
    assert status(one.to_client) == 400
    assert not one.to_backend


def test_allowed_requests_are_told_where_that_is_asked() -> None:
    one = play(Rules("/a"), tell_allowed=True)
    one.client(get("/a?b"))
    assert one.audits == [("allowed", "GET /a?b", "a")]


def test_new_rules_hold_from_the_next_request_on() -> None:
    one = play(Rules("/a"))
    one.client(get("/a"))
    one.inspector.new_rules(cast("RequestRules", Rules("/b")), enforce=True, tell_allowed=True)
    one.backend(OK)
    one.client(get("/a") + get("/b"))
    one.backend(OK)
    assert [m.start for m in oracle.responses(one.to_client, *["GET"] * 3, closed=False)] == [200, 403, 200]
    assert [audit.kind for audit in one.audits] == ["denied", "allowed"]


def test_new_rules_judge_a_body_that_is_on_its_way() -> None:
    one = play(Rules("/a", bodies={"/a": b"x"}))
    one.client(get("/a", "Content-Length: 1", method="POST"))
    one.inspector.new_rules(cast("RequestRules", Rules("/b")), enforce=True, tell_allowed=False)
    one.client(b"x")
    assert status(one.to_client) == 403
    assert not one.to_backend


def test_an_old_client_gets_a_plain_body_and_the_end() -> None:
    def script(one: Play) -> None:
        one.client(get("/a", version="1.0", host="") + get("/a"))
        one.backend(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        one.backend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    one = in_all_ways(lambda: Rules("/a"), script)
    assert one.to_backend == get("/a", "Connection: close", host="Host: localhost")
    assert one.to_client == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef"
    assert one.half_closed(CLIENT)


@pytest.mark.parametrize("line", ["GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/0.9", "PRI * HTTP/2.0"])
def test_other_versions_are_refused(line: str) -> None:
    one = in_all_ways(lambda: Rules("/"), lambda one: one.client(f"{line}\r\nHost: x\r\n\r\nSM\r\n\r\n".encode()))
    assert status(one.to_client) == 505
    assert (b"HTTP/2 is refused" in one.to_client) == line.startswith("PRI")


def test_the_preface_of_http_2_is_refused_by_name() -> None:
    one = play(Rules("/"))
    one.client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"HTTP/2 is refused" in one.to_client


def test_nothing_is_kept_of_what_was_shown() -> None:
    """The playbook overwrites what was shown; a long body and many requests must come out whole all the same."""
    body = bytes(range(256)) * 1024
    one = play(Rules("/a"), piece=100)
    one.client((get("/a", f"Content-Length: {len(body)}", method="POST") + body) * 2)
    one.backend(OK)
    assert [m.body for m in oracle.requests(one.to_backend)] == [body, body]
