"""Bytes on the wire, well formed and not: the service gets what was judged, as it was judged, and nothing else.

The cases are those of tests/support/http_wire.py, before a service that records what reaches it, and before dockerd
and podman, where the request that is hidden in many of them would make a container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.containers import KINDS
from tests.support.daemon import Daemon, Event, running
from tests.support.docker_commands import Guarded, guarded_engine
from tests.support.http_services import Recorder, Wire, recording, statuses, talk
from tests.support.http_services import Seen as Request
from tests.support.http_wire import CASES, DENIED, PING, RULES, SMUGGLED, Case, get, post
from tests.support.identities import open_folder, wait_started, wait_until
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

CONFIG = f"""
protocol = "http"
[proxy.docker.http]
strip_prefix = "docker-version"
[[proxy.docker.allow]]
users = ["*"]
http = {RULES}
[[proxy.docker.deny]]
users = ["*"]
http = {DENIED}
"""


@dataclass(slots=True)
class Bed:
    """opened: connections since ``clear``; told: the events of the one that was opened last."""

    recorder: Recorder
    public: Path
    daemon: Daemon
    opened: int = 0
    told: list[Event] = field(default_factory=list)

    def send(self, *parts: bytes, answers: int = 1, half_close: bool = False) -> bytes:
        """Those bytes on a connection of its own, and what comes back, once its end is told."""
        lines, since = self.daemon.lines, len(self.daemon.lines)
        answer = talk(self.public, *parts, answers=answers, half_close=half_close)
        wait_until(lambda: any(b'"connection_closed"' in line for line in lines[since:]), "its end is told")
        self.opened += 1
        self.told = [json.loads(line) for line in lines[since:]]
        return answer

    def settled(self) -> list[str]:
        """All that has reached the service since ``clear``, once it has dealt with every connection."""
        wires = self.recorder.wires
        wait_until(lambda: len(wires) == self.opened and all(wire.ended for wire in wires), "the service is idle")
        return self.recorder.lines

    def clear(self) -> None:
        self.settled()
        self.recorder.clear()
        self.opened = 0


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
    bed.clear()
    return bed


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded_engine(request.param, CONFIG) as made:
        yield made


def check_told(told: list[Event], seen: list[int]) -> None:
    """Each 403 is an event of its own; any other refusal is the outcome of its connection."""
    denied = [event["request"] for event in told if event["event"] == "request_denied"]
    (outcome,) = [event["outcome"] for event in told if event["event"] == "connection_closed"]
    assert len(denied) == seen.count(403), denied
    refused = [status for status in seen if status not in (200, 403)]
    if refused:
        assert outcome == ("limit" if refused[0] in (413, 431) else "malformed"), (seen, outcome)
    else:
        assert outcome in ("closed", "upgrade_refused"), (seen, outcome)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_service_gets_what_was_judged(clean: Bed, case: Case) -> None:
    """The statuses are as the case says, every denial is told, and only canonical requests that are allowed arrive."""
    seen = statuses(clean.send(case.data, answers=expected(case)))
    assert seen, "no answer"
    assert seen[0] in case.first, seen
    assert tuple(seen[1:]) == case.then or (case.then is None and not seen.count(200) > 1), seen
    check_told(clean.told, seen)
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
    seen = statuses(talk(guarded.public, case.data, answers=expected(case)))
    assert seen
    if not set(case.first) & {200}:
        assert seen[0] in case.first
    if SMUGGLED in case.data:
        assert guarded.engine.containers() == {"web", "old"}


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < 3000], ids=lambda case: case.name)
def test_byte_by_byte(clean: Bed, case: Case) -> None:
    """The verdict does not depend on how the bytes come."""
    whole = statuses(clean.send(case.data, answers=expected(case)))
    lines = list(clean.settled())
    clean.clear()
    answers = statuses(clean.send(*_bytes(case.data), answers=expected(case)))
    if case.name == BEHIND_AN_UPGRADE:  # what comes behind the service's answer is a request again, and denied
        assert answers in (whole, [*whole, 403])
    else:
        assert answers == whole
    if case.body and whole[0] != 200:  # its head had gone on before the fault was there to see
        assert clean.settled() == ["POST /echo"]
        assert not clean.recorder.requests[0].whole
    else:
        assert clean.settled() == lines


BEHIND_AN_UPGRADE = "upgrade: bytes behind one that is not taken"


def _bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_half_a_request_and_the_end(clean: Bed) -> None:
    """A request that is never finished does not reach the service, nor does a pipelined half; a body may, cut short."""
    for data in (PING[:-2], PING[:10], b"GET", PING + PING[:-2]):
        clean.send(data, half_close=True)
        assert clean.told[-1]["outcome"] == "malformed"
    assert clean.settled() == ["GET /_ping"]
    clean.clear()
    clean.send(post(b"Content-Length: 10", body=b"01234"), half_close=True)
    assert clean.settled() == ["POST /echo"]
    assert not clean.recorder.requests[0].whole


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
    """502 and the end: the client sees nothing of such an answer, and that connection is not used again.

    A service that closes without a word has that passed on: a client may try again, as for any kept connection that
    ends under it (RFC 9112, section 9.3.1).
    """

    def answer(wire: Wire, seen: Request) -> None:
        wire.body(seen)
        wire.sock.sendall(DOUBTFUL[name])
        wire.sock.shutdown(2 if name.startswith("closed") else 1)

    normal, clean.recorder.answer = clean.recorder.answer, answer
    try:
        got = clean.send(PING + PING)
    finally:
        clean.recorder.answer = normal
    assert statuses(got) == ([] if name == "closed before it" else [502]), got
    assert b"ok\n" not in got
    assert clean.told[-1]["outcome"] == "backend_malformed"
    assert clean.settled() == ["GET /_ping"]


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
