"""Whatever a client sends: a service sees requests that were judged and allowed, in their order, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sockguard.protocols.base import BACKEND, CLIENT
from tests.unit.protocols.http import oracle
from tests.unit.protocols.http.exchanges import OK, Rules, get, play

GOOD = get("/ok")
BAD = get("/bad", method="DELETE")

_TRICKS = [
    # two lengths, a length and a coding, and their disguises
    get("/ok", f"Content-Length: {len(BAD)}", "Content-Length: 0", method="POST"),
    get("/ok", f"Content-Length: {len(BAD)}", f"Content-Length: {len(BAD)}", method="POST"),
    get("/ok", f"Content-Length: {len(BAD)}", "Transfer-Encoding: chunked", method="POST"),
    get("/ok", "Transfer-Encoding: chunked", f"Content-Length: {len(BAD)}", method="POST"),
    get("/ok", f"Content-Length: 0, {len(BAD)}", method="POST"),
    get("/ok", f"Content-Length: +{len(BAD)}", method="POST"),
    get("/ok", "Content-Length: 0x10", method="POST"),
    get("/ok", f"Content_Length: {len(BAD)}", method="POST"),
    get("/ok", f"Content-Length : {len(BAD)}", method="POST"),
    get("/ok", " Transfer-Encoding: chunked", method="POST"),
    get("/ok", "X: y", " Content-Length: 9", method="POST"),
    get("/ok", "X: y\nContent-Length: 9", method="POST"),
    get("/ok", "X: y\rTransfer-Encoding: chunked", method="POST"),
    get("/ok", "Transfer-Encoding: xchunked", method="POST"),
    get("/ok", "Transfer-Encoding: chunked, identity", method="POST"),
    get("/ok", "Transfer-Encoding:\x0bchunked", method="POST"),
    get("/ok", "Transfer-Encoding: chunked", version="1.0", method="POST"),
    get("/ok", "Content-Length: 9", "Connection: content-length", method="POST"),
    get("/ok", "Content-Length: 9", version="1.0", method="GET"),
    # honest framing, with a request where a body belongs
    get("/ok", f"Content-Length: {len(BAD)}", method="POST"),
    get("/ok", f"Content-Length: {len(BAD)}"),
    get("/ok", "Transfer-Encoding: chunked", method="POST"),
    get("/ok", "Transfer-Encoding: chunked", "Expect: 100-continue", method="POST"),
    get("/ok", f"Content-Length: {len(BAD)}", "Expect: 100-continue", method="POST"),
    get("/no", f"Content-Length: {len(BAD)}", method="POST"),
    get("/no", "Transfer-Encoding: chunked", method="POST"),
    get("/body", f"Content-Length: {len(BAD)}", method="POST"),
    # chunks, and what is nearly one
    b"%x\r\n" % len(BAD),
    b"%x;a=b\r\n" % len(BAD),
    b"%x \r\n" % len(BAD),
    b"%x\n" % len(BAD),
    b"%x;\n" % len(BAD),
    b"0\r\n\r\n",
    b"0\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\n\n",
    b"\r\n",
    b"\n",
    b"\r",
    # other protocols, methods, paths
    get("/ok", "Upgrade: tcp", "Connection: Upgrade"),
    get("/ok", "Upgrade: h2c", "HTTP2-Settings: AA", "Connection: Upgrade, HTTP2-Settings"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    get("/ok", "X-HTTP-Method-Override: DELETE"),
    get("/ok", "Connection: close"),
    get("/ok", method="HEAD"),
    get("/ok/../bad"),
    get("/ok%2f..%2fbad"),
    get("/bad%2fok"),
    get("http://h/bad"),
    get("bad", method="CONNECT"),
    b"GET /ok HTTP/1.1\r\nHost: x\r\nX:",
    b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\r\n",
    b"GET /ok\r\n",
]
SERVICE_SAYS = st.sampled_from(
    [
        OK,
        OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
        b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    ]
)


@given(
    st.lists(st.sampled_from([GOOD, BAD, *_TRICKS]), min_size=1, max_size=6),
    st.sampled_from([0, 0, 1, 7]),
    st.lists(SERVICE_SAYS, min_size=6, max_size=6),
    st.booleans(),
)
@example([_TRICKS[19], BAD, BAD], 0, [OK] * 6, False)
@example([_TRICKS[21], b"%x\r\n" % len(BAD), BAD, b"\r\n", b"0\r\n\r\n", BAD], 1, [OK] * 6, False)
def test_a_service_sees_what_was_judged(stream: list[bytes], piece: int, answers: list[bytes], early: bool) -> None:
    holds(stream, piece, answers, early=early)


@pytest.mark.parametrize("trick", _TRICKS)
@pytest.mark.parametrize("piece", [0, 1])
def test_a_forbidden_request_behind_any_trick_is_not_seen(trick: bytes, piece: int) -> None:
    for behind in (BAD, BAD + GOOD, b"0\r\n\r\n" + BAD + GOOD):
        holds([trick, behind], piece, [OK] * 6, early=False)
        holds([trick, behind], piece, [OK] * 6, early=True)


def holds(stream: list[bytes], piece: int, answers: list[bytes], *, early: bool) -> None:
    """Play it and look at what the service was sent. early: it answers as soon as something has come."""
    rules = Rules("/ok", "/body", bodies={"/body": b"nothing has this"})
    one = play(rules, piece=piece)
    answers = list(answers)
    for part in stream if early else [b"".join(stream)]:
        if one.end_of_it is None:
            one.client(part)
        while one.end_of_it is None and one.inspector.busy and answers:
            one.backend(answers.pop(0))
    if one.end_of_it is None:
        one.client_ends()
    allowed = [(seen.method.encode(), seen.paths[0].encode()) for seen in rules.seen if rules.allows(seen)]
    sent = oracle.begun(one.to_backend)
    assert sent == allowed[: len(sent)]
    assert len(sent) >= len(allowed) - 1, "all but one whose first chunk was bad"
    assert (b"DELETE", b"/bad") not in sent
    assert not one.tunnel(CLIENT)
    assert not one.tunnel(BACKEND)
