"""Heads that are known again: nothing comes of a request or a response that would not come of it the first time."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import RequestRules
from sockguard.protocols.http import limits
from sockguard.protocols.http.inspector import HttpInspector
from sockguard.protocols.http.judge import HttpRules
from sockguard.protocols.http.known import Known
from tests.unit.protocols.http.exchanges import OK, get, result, status
from tests.unit.protocols.http.ruling import allow, compiled, deny
from tests.unit.protocols.playbook import Play

UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
BODY = b'{"a":1}'


def rules() -> HttpRules:
    return compiled(
        allow("GET,HEAD,POST /a", {"methods": ["POST"], "path": "/t", "upgrade": ["tcp"]}),
        allow({"methods": ["POST"], "path": "/b", "body": {"forbid": ["/x"]}}),
        deny("GET /no"),
    )


def begin(judge: HttpRules, **options: Any) -> Play:
    return Play(HttpInspector, cast("RequestRules", judge), **options)


def test_it_is_bounded_and_emptied_when_full() -> None:
    known: Known[int] = Known()
    for number in range(limits.MAX_KNOWN):
        known.keep(b"%d" % number, number, private=False)
    assert len(known) == limits.MAX_KNOWN
    known.keep(b"one more", 0, private=False)
    assert [*known] == [b"one more"]
    known.keep(bytes(limits.MAX_KNOWN_HEAD + 1), 0, private=False)
    known.keep((bytes(limits.MAX_KNOWN_HEAD), b"x"), 0, private=False)
    assert len(known) == 1


@pytest.mark.parametrize(
    "line",
    ["Authorization: Basic eA==", "Proxy-Authorization: x", "X-Registry-Auth: e30=", "cookie: a=b", "Set-Cookie: a=b",
     "X-Auth-Token: x", "Cookie2: x"],
)  # fmt: skip
def test_what_carries_credentials_is_not_kept(line: str) -> None:
    judge = rules()
    play = begin(judge)
    for _ in range(2):
        play.client(get("/a", line))
        play.backend(OK)
    assert play.to_client == OK * 2
    assert not judge.known
    play.client(get("/a", "X: Authorization: no"))
    assert len(judge.known) == 1


def test_new_rules_are_asked_anew() -> None:
    """What the rules before said of a head is theirs alone."""
    play = begin(rules())

    def new_rules(judge: HttpRules) -> None:
        play.inspector.new_rules(cast("RequestRules", judge), enforce=True, tell_allowed=False)

    play.client(get("/a"))
    play.backend(OK)
    new_rules(compiled(deny("GET /a"), allow()))
    play.client(get("/a"))
    assert status(play.to_client.removeprefix(OK)) == 403
    new_rules(rules())
    play.client(get("/a"))
    assert play.to_backend == get("/a") * 2


def test_a_denial_is_told_each_time() -> None:
    play = begin(rules(), tell_allowed=True)
    for path in ("/no", "/a", "/no"):
        play.client(get(path))
        if path == "/a":
            play.backend(OK)
    assert [(audit.kind, audit.request) for audit in play.audits] == [
        ("denied", "GET /no"),
        ("allowed", "GET /a"),
        ("denied", "GET /no"),
    ]


def test_a_head_is_read_for_its_own_method() -> None:
    """The same bytes are the whole answer to a HEAD, and begin the answer to a GET."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    play = begin(rules())
    for _ in range(2):
        for method, body in (("HEAD", b""), ("GET", b"ok")):
            play.client(get("/a", method=method))
            play.backend(head + body)
    assert play.to_client == (head + head + b"ok") * 2
    assert play.end_of_it is None


def test_a_body_that_is_judged_is_judged_each_time() -> None:
    play = begin(rules())
    post = get("/b", "Content-Type: application/json", "Content-Length: 7", method="POST")
    for body in (BODY, b'{"x":1}'):
        play.client(post + body)
        if body == BODY:
            play.backend(OK)
    assert play.to_backend == post + BODY
    assert status(play.to_client.removeprefix(OK)) == 403


REQUESTS = [
    get("/a"),
    get("/a", method="HEAD"),
    get("/a", version="1.0"),
    get("/a", "Connection: close"),
    get("/no"),
    get("/no", method="HEAD"),
    get("/other"),
    get("/a", *H2C),
    get("/t", *UPGRADE, method="POST"),
    get("/a", *UPGRADE),
    get("/a", "Content-Length: 3", method="POST") + b"abc",
    get("/a", "Content-Length: 3", "Expect: 100-continue", method="POST") + b"abc",
    get("/a", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
    get("/b", "Content-Type: application/json", "Content-Length: 7", method="POST") + BODY,
    get("/b", "Content-Type: application/json", "Content-Length: 7", method="POST") + b'{"x":1}',
    get("/a", "Content-Length: +3", method="POST") + b"abc",
]
RESPONSES = [
    OK,
    OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nok",
    b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    OK + b"more",
]


@given(
    exchanges=st.lists(st.tuples(st.sampled_from(REQUESTS), st.sampled_from(RESPONSES)), max_size=8),
    piece=st.sampled_from([0, 0, 0, 1, 9]),
    enforce=st.booleans(),
)
def test_what_is_known_again_changes_nothing(exchanges: list[tuple[bytes, bytes]], piece: int, enforce: bool) -> None:
    """Connections among others that have said the same before, and connections that are alone, are dealt with alike."""
    judge, shared = rules(), dict[str, Any]()

    def play(judge: HttpRules, shared: dict[str, object]) -> object:
        one = begin(judge, piece=piece, enforce=enforce, tell_allowed=True, shared=shared)
        for request, response in exchanges:
            if one.end_of_it is not None or one.half_closed(0):
                break
            before = len(one.to_backend)
            one.client(request)
            if len(one.to_backend) > before:
                one.backend(response)
        return result(one)

    first = play(judge, shared)
    assert play(judge, shared) == play(judge, shared) == first == play(rules(), {})


def test_a_known_head_in_pieces_leaves_nothing_behind() -> None:
    """Its time ends with it, and the next head is searched from its beginning."""
    play = begin(rules())
    for head in (get("/a", "X: long"), get("/a")):
        play.client(head)
        play.backend(OK)
    play.client(get("/a", "X: long")[:-2])
    assert play.clock == limits.HEAD_SECONDS
    play.client(get("/a", "X: long")[-2:])
    assert play.clock == 0
    play.backend(OK)
    play.client(get("/a", "X: y"))
    play.backend(OK)
    assert play.to_client == OK * 4


def test_what_is_kept_cannot_be_changed() -> None:
    """What connections share is the request as it was judged: frozen."""
    judge = rules()
    begin(judge).client(get("/a"))
    ((head, _, _),) = judge.known.values()
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.request.method = "DELETE"
