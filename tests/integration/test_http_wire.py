"""Bytes on the wire, well formed and not: the service gets what was judged, as it was judged, and nothing else.

The cases are those of tests/support/http_wire.py, before a service that records what reaches it, and before dockerd
and podman, where the request that is hidden in many of them would make a container.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import as_user
from tests.support.containers import KINDS
from tests.support.daemon import Daemon, running
from tests.support.docker_commands import Guarded, guarded_engine
from tests.support.http_services import Recorder, Wire, recording, statuses, talk
from tests.support.http_services import Seen as Request
from tests.support.http_wire import CASES, DENIED, PING, RULES, SMUGGLED, Case, get, post
from tests.support.identities import open_folder, wait_started, wait_until
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

CLIENT = 4421
CONFIG = f"""
protocol = "http"
[proxy.docker.http]
strip_prefix = "docker-version"
[[proxy.docker.allow]]
users = [{CLIENT}]
http = {RULES}
[[proxy.docker.deny]]
users = ["*"]
http = {DENIED}
"""
BEHIND = "GET /_ping?behind"
"""A request on a connection of its own, behind each case: what reached the service before it belongs to the case."""


@dataclass(frozen=True, slots=True)
class Bed:
    recorder: Recorder
    public: Path
    daemon: Daemon

    def send(self, *parts: bytes, answers: int = 1, half_close: bool = False) -> bytes:
        return send(self.public, *parts, answers=answers, half_close=half_close)

    def settled(self) -> list[str]:
        """All that has reached the service so far, in order; what was sent before has been dealt with."""
        assert statuses(self.send(get(b"/_ping?behind", b"Connection: close"))) == [200]
        wait_until(lambda: BEHIND in self.recorder.lines, "the request behind")
        return [line for line in self.recorder.lines if line != BEHIND]


def send(path: Path, *parts: bytes, answers: int = 1, half_close: bool = False, pause: float = 0.05) -> bytes:
    """Those bytes, as the client, and what comes back."""

    def do() -> str:
        return talk(path, *parts, answers=answers, half_close=half_close, pause=pause).decode("latin-1")

    return as_user(do, CLIENT).encode("latin-1")


def expected(case: Case) -> int:
    return 1 + len(case.then or ())


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with open_folder() as folder:
        private, public = private_folder(folder, 0) / "http.sock", folder / "public" / "http.sock"
        public.parent.mkdir()
        file = folder / "sockguard.toml"
        file.write_text(f'[proxy.docker]\nlisten = "{public}"\nbackend = "{private}"\n{CONFIG}')
        with recording(private) as recorder, running(file, public) as daemon:
            wait_started(daemon)
            yield Bed(recorder, public, daemon)


@pytest.fixture
def clean(bed: Bed) -> Bed:
    bed.recorder.clear()
    return bed


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded_engine(request.param, CONFIG) as made:
        yield made


def told(daemon: Daemon, since: int) -> tuple[list[str], set[str]]:
    """The denied requests, and the outcomes, of the connections that were admitted behind event number ``since``."""
    events = [event for event in daemon.events() if event["seq"] > since]
    admitted = {event["connection"] for event in events if event["event"] == "connection_admitted"}
    events = [event for event in events if event.get("connection") in admitted]
    return (
        [event["request"] for event in events if event["event"] == "request_denied"],
        {event["outcome"] for event in events if event["event"] == "connection_closed"},
    )


def check_told(daemon: Daemon, since: int, seen: list[int]) -> None:
    """Each 403 is an event of its own; any other refusal is one, or the outcome of its connection says it."""
    wait_until(lambda: bool(told(daemon, since)[1]), "the connection is closed")
    denied, outcomes = told(daemon, since)
    assert len(denied) >= seen.count(403), denied
    if any(status in (400, 408, 413, 414, 431, 505) for status in seen):
        assert len(denied) > seen.count(403) or outcomes - {"closed"}, (denied, outcomes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_service_gets_what_was_judged(clean: Bed, case: Case) -> None:
    """The statuses are as the case says, every denial is told, and only canonical requests that are allowed arrive."""
    since = len(clean.daemon.lines)
    seen = statuses(clean.send(case.data, answers=expected(case)))
    assert seen, "no answer"
    assert seen[0] in case.first, seen
    assert tuple(seen[1:]) == case.then or (case.then is None and not seen.count(200) > 1), seen
    check_told(clean.daemon, since, seen)
    reached = clean.settled()
    if case.reaches is not None:
        assert reached == list(case.reaches)
    assert len(reached) <= max(1, seen.count(200))
    assert all("cut short" in fault and case.body for fault in clean.recorder.faults), clean.recorder.faults
    for request in clean.recorder.requests:
        check_canonical(request)


_HOP_BY_HOP = {"keep-alive", "proxy-connection", "te", "trailer", "http2-settings", "x-mine"}
_OVERRIDES = {"x-http-method-override", "x-http-method", "x-method-override"}


def check_canonical(request: Request) -> None:
    """Beyond the form, which the recording service insists on: one Host, and no field that is not for the service."""
    names = {name for name, _ in request.fields}
    assert len(request.values("host")) == 1
    assert not names & (_HOP_BY_HOP | _OVERRIDES)
    assert ("upgrade" in names) == request.target.endswith("/start")
    assert not re.search(r"%2f|%5c|%00|//|/\.\.?(/|$)|#|\\", request.target.partition("?")[0], re.I)
    assert not request.target.startswith(("/secrets", "/denied", "/containers/secret", "/containers/create"))


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < 1 << 20], ids=lambda case: case.name)
def test_nothing_is_smuggled_to_an_engine(guarded: Guarded, case: Case) -> None:
    """What is refused is refused by the guard alike, and the hidden request makes no container."""
    seen = statuses(send(guarded.public, case.data, answers=expected(case)))
    assert seen
    if not set(case.first) & {200}:
        assert seen[0] in case.first
    if SMUGGLED in case.data:
        assert guarded.engine.containers() == {"web", "old"}


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < 3000], ids=lambda case: case.name)
def test_byte_by_byte(clean: Bed, case: Case) -> None:
    """The verdict does not depend on how the bytes come."""
    whole = statuses(clean.send(case.data, answers=expected(case)))
    lines = clean.settled()
    clean.recorder.clear()
    answer = send(clean.public, *_bytes(case.data), answers=expected(case), pause=0)
    assert statuses(answer) == whole
    assert clean.settled() == lines


def _bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_half_a_request_and_the_end(clean: Bed) -> None:
    """A request that is never finished does not reach the service, nor does a pipelined half; a body may, cut short."""
    for data in (PING[:-2], PING[:10], b"GET", PING + PING[:-2]):
        clean.send(data, half_close=True)
    assert clean.settled() == ["GET /_ping"]
    clean.send(post(b"Content-Length: 10", body=b"01234"), half_close=True)
    assert [line for line in clean.settled() if line != "GET /_ping"] in ([], ["POST /echo"])
    assert all("cut short" in fault for fault in clean.recorder.faults)


# Answers of a service that leave a doubt: RFC 9112, sections 6.3 and 9.2.
DOUBTFUL = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nok\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nok\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok\n",
    "a coding on 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nok\n",
    "folding": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nok\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 3\n\nok\n",
    "no HTTP": b"hello, this is no HTTP\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
    "an upgrade that nobody asked for": b"HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    "no end of the head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * (100 << 10),
    "closed in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "closed before it": b"",
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_answers(clean: Bed, name: str) -> None:
    """502 and the end: the client sees nothing of such an answer, and that connection is not used again."""

    def answer(wire: Wire, seen: Request) -> None:
        wire.body(seen)
        wire.sock.sendall(DOUBTFUL[name])
        wire.sock.shutdown(2 if name.startswith("closed") else 1)

    normal, clean.recorder.answer = clean.recorder.answer, answer
    try:
        got = clean.send(PING + PING)
    finally:
        clean.recorder.answer = normal
    assert statuses(got) == [502], got
    assert b"ok\n" not in got
    assert len(clean.recorder.wires[0].raw) == len(clean.recorder.requests[0].raw) or len(clean.recorder.requests) <= 2


def test_a_second_answer_is_nobodys(clean: Bed) -> None:
    """Two answers to one request: the second never becomes the answer to another request."""

    def twice(wire: Wire, seen: Request) -> None:
        wire.body(seen)
        wire.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n" * (2 if seen.target == "/_ping" else 1))

    normal, clean.recorder.answer = clean.recorder.answer, twice
    try:
        got = clean.send(PING, get(b"/containers/json"))
    finally:
        clean.recorder.answer = normal
    assert statuses(got)[0] in (200, 502)
    assert statuses(got)[1:] in ([], [502]), got
