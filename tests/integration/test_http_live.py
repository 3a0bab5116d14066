"""An `http` proxy while things change around it: rules, the service, its clients; and what is told of requests."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clients import connect
from tests.support.daemon import Event
from tests.support.http_services import Answer, LeaveError, Seen, Wire, plainly, recording, statuses, talk
from tests.support.http_stage import CHUNKED, HEAD, SECONDS, Bed, ask, guarding, rest, until
from tests.support.http_wire import get
from tests.support.identities import PYTHON, wait_until
from tests.support.reloading import sockguard

pytestmark = pytest.mark.root

PATIENCE = 120.0
"""Seconds that a service waits for its turn: a reload, and the end of a rule, may come before that."""

SMALL = """
[[proxy.http.allow]]
name = "small"
users = ["*"]
http = ["GET /small"]
"""
KEPT = """
[[proxy.http.allow]]
users = ["*"]
http = ["GET /small", "GET /stream"]
"""
ANYTHING = """
[[proxy.http.allow]]
users = ["*"]
"""
NOT_THIS_ONE = """
[[proxy.http.allow]]
users = [4499]
"""


def reload(bed: Bed) -> None:
    done = sockguard("reload", "--control", bed.daemon.config.with_name("run") / "control.sock")
    assert done.returncode == 0, done.stderr


def revoked(bed: Bed) -> list[Event]:
    return [event for event in bed.daemon.events("connection_closed") if event["outcome"] == "revoked"]


def in_parts(go: threading.Semaphore) -> Answer:
    """/stream: one chunk at once, one when it may go, and the end when it may. /secret: one, and no end. All else:
    plainly."""

    def answer(wire: Wire, seen: Seen) -> None:
        if seen.target not in ("/stream", "/secret"):
            plainly(wire, seen)
            return
        wire.sock.sendall(CHUNKED + b"3\r\none\r\n")
        if seen.target == "/secret":
            return
        for text in (b"3\r\ntwo\r\n", b"0\r\n\r\n"):
            assert go.acquire(timeout=PATIENCE)
            wire.sock.sendall(text)

    return answer


def asked(sock: socket.socket, line: str) -> int:
    """The status of the answer to that request; bodies are short here."""
    ask(sock, line)
    got = until(sock, b"\r\n\r\n")
    length = int(got.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(got.partition(b"\r\n\r\n")[2]) < length:
        got += sock.recv(65536)
    return statuses(got)[0]


def changes_under_a_stream(bed: Bed, change: Callable[[socket.socket], None]) -> None:
    """A stream that the new rules allow as well goes on to its end, one that they do not is cut; after it they are
    asked on that connection, too."""
    go = threading.Semaphore(0)
    with (
        bed.answering(in_parts(go)) as stream,
        connect(bed.public, SECONDS) as kept,
        connect(bed.public, SECONDS) as cut,
    ):
        assert asked(kept, "GET /late") == 200
        ask(stream, "GET /stream")
        until(stream, b"one\r\n")
        ask(cut, "GET /secret")
        until(cut, b"one\r\n")
        change(kept)
        assert rest(cut) == b""
        assert bed.daemon.wait_for("connection_closed")["outcome"] == "revoked"
        assert asked(kept, "GET /late") == 403
        go.release()
        assert until(stream, b"two\r\n").endswith(b"two\r\n")
        go.release()
        until(stream, b"0\r\n\r\n")
        assert asked(stream, "GET /secret") == 403
        assert asked(stream, "GET /small") == asked(kept, "GET /small") == 200
    lines = [line for line in bed.recorder.lines if line != "GET /brief"]
    assert lines == ["GET /late", "GET /stream", "GET /secret", "GET /small", "GET /small"]


def test_a_reload_while_a_stream_goes_on() -> None:
    """And who may no longer connect is cut, whatever goes on."""
    with guarding(rules=ANYTHING) as bed:

        def fewer(_: socket.socket) -> None:
            bed.configure(rules=KEPT)
            reload(bed)

        changes_under_a_stream(bed, fewer)
        bed.configure()
        reload(bed)
        go = threading.Semaphore(0)
        with bed.answering(in_parts(go)) as stream:
            ask(stream, "GET /stream")
            until(stream, b"one\r\n")
            bed.configure(rules=NOT_THIS_ONE)
            reload(bed)
            assert rest(stream) == b""
            wait_until(lambda: len(revoked(bed)) == 2, "its end is told")
            go.release(2)
        assert talk(bed.public, get(b"/small")) == b""
        bed.daemon.wait_for("connection_denied")


def test_the_end_of_a_rule_while_a_stream_goes_on() -> None:
    """As a reload: the rest is left to what other rules allow."""
    with guarding(rules=ANYTHING) as bed:

        def end_soon(kept: socket.socket) -> None:
            end = f"{datetime.now(UTC) + timedelta(seconds=5):%Y-%m-%dT%H:%M:%SZ}"
            rule = f'[[proxy.http.allow]]\nusers = ["*"]\nuntil = {end}\nhttp = ["GET /secret", "GET /brief"]\n'
            bed.configure(rules=KEPT + rule)
            reload(bed)
            assert not bed.daemon.events("reload_failed")
            wait_until(lambda: asked(kept, "GET /brief") == 403, "the rule ends")
            assert datetime.now(UTC) >= datetime.fromisoformat(end)

        changes_under_a_stream(bed, end_soon)


def of_requests(bed: Bed) -> list[tuple[str, str, str | None]]:
    return [
        (event["event"], event["request"], event["rule"])
        for event in bed.daemon.events()
        if event["event"] in ("request_allowed", "request_denied", "would_deny")
    ]


def test_a_permissive_proxy_and_events_for_all() -> None:
    """What rules deny is let through and told as would_deny; what is allowed is told too when that is asked for.
    Framing that leaves a doubt is refused all the same."""
    deny = '[[proxy.http.deny]]\nname = "not late"\nusers = ["*"]\nhttp = ["GET /late"]\n'
    with guarding("enforce = false", SMALL + deny, '[log]\nrequests = "all"') as bed:
        requests = get(b"/small") + get(b"/secret?a=1") + get(b"/late") + get(b"/small", b"Content-Length: +1")
        assert statuses(talk(bed.public, requests, answers=4)) == [200, 200, 200, 400]
        closed = bed.daemon.wait_for("connection_closed")
        assert closed["outcome"] == "malformed"
        assert of_requests(bed) == [
            ("request_allowed", "GET /small", "small"),
            ("would_deny", "GET /secret?a=1", None),
            ("would_deny", "GET /late", "not late"),
        ]
        assert bed.recorder.lines == ["GET /small", "GET /secret?a=1", "GET /late"]


def test_allowed_requests_are_told_of_from_a_reload_on() -> None:
    """[log] requests = "all" holds for connections that were there before."""
    with guarding(rules=SMALL) as bed, connect(bed.public, SECONDS) as sock:
        assert asked(sock, "GET /small") == 200
        bed.configure(rules=SMALL, more='[log]\nrequests = "all"')
        reload(bed)
        assert asked(sock, "GET /small") == 200
        assert asked(sock, "GET /other") == 403
        bed.daemon.wait_for("request_denied")
        assert of_requests(bed) == [("request_allowed", "GET /small", "small"), ("request_denied", "GET /other", None)]


def ended(bed: Bed, number: int) -> Event:
    """The event of the end of the ``number``th connection that ended."""
    wait_until(lambda: len(bed.daemon.events("connection_closed")) >= number, "the connection ends")
    return bed.daemon.events("connection_closed")[number - 1]


def test_a_client_that_goes_in_the_middle() -> None:
    """Of an upload: the service sees its end, too. Of an answer: the service is not read any further. Others go on."""
    written = threading.Event()

    def endless(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        try:
            wire.sock.sendall(HEAD + b"Content-Length: 10000000000\r\n\r\n")
            while True:
                wire.sock.sendall(bytes(1 << 16))
        except OSError:
            written.set()
            raise LeaveError from None

    with guarding() as bed, connect(bed.public, SECONDS) as other:
        with connect(bed.public, SECONDS) as sock:
            ask(sock, "POST /body", "Content-Length: 1000", body=b"0123456789")
            wait_until(lambda: bed.recorder.lines == ["POST /body"], "the head has reached the service")
        assert ended(bed, 1)["outcome"] == "malformed"
        wait_until(lambda: bool(bed.recorder.faults), "the service sees the end")
        assert not bed.recorder.requests[0].whole
        bed.recorder.faults.clear()
        with bed.answering(endless) as sock:
            ask(sock, "GET /stream")
            until(sock, b"\r\n\r\n")
        assert ended(bed, 2)["outcome"] in ("closed", "client_reset")
        assert written.wait(SECONDS)
        assert asked(other, "GET /small") == 200


def test_a_service_that_starts_again() -> None:
    """A kept connection ends with the service's; without a service a new one is told as that; then all goes on."""
    with guarding() as bed:
        with connect(bed.public, SECONDS) as sock:
            assert asked(sock, "GET /small") == 200
            bed.recorder.wires[0].sock.shutdown(socket.SHUT_RDWR)
            assert rest(sock) == b""
        assert ended(bed, 1)["outcome"] == "closed"
        bed.private.rename(bed.private.with_suffix(".away"))
        assert talk(bed.public, get(b"/small")) == b""
        with recording(bed.private) as again:
            assert statuses(talk(bed.public, get(b"/small"))) == [200]
        assert again.lines == ["GET /small"]
        bed.private.with_suffix(".away").rename(bed.private)


# Arguments: a path, a number of requests, the letter that is allowed. Each answer must be that to its own request.
_KEPT = """
import http.client, json, socket, sys
path, count, mine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
connection, seen = Connection("x"), {}
for number in range(count):
    target = f"/{'abc'[number % 3]}/{number}"
    connection.request("GET", target)
    with connection.getresponse() as answer:
        body = answer.read().decode()
    assert (answer.status == 200) == (target[1] in mine), (target, answer.status)
    assert body == target if answer.status == 200 else answer.status == 403 and "sockguard" in body, (target, body)
    seen[answer.status] = seen.get(answer.status, 0) + 1
print(json.dumps(seen))
"""


def test_ten_kept_connections_of_three_users() -> None:
    """Each user gets what is his and 403 for the rest, each answer in its place; every denial is told once."""
    users = {4491: "a", 4492: "b", 4493: "abc"}
    rules = "".join(
        f"[[proxy.http.allow]]\nusers = [{uid}]\nhttp = {[f'GET /{one}/{{n}}' for one in letters]}\n"
        for uid, letters in users.items()
    )

    def echo(wire: Wire, seen: Seen) -> None:
        wire.body(seen)
        body = seen.target.encode()
        wire.sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    with guarding(rules=rules) as bed:
        bed.recorder.answer = echo
        clients = [
            (uid, subprocess.Popen(
                [PYTHON, "-I", "-S", "-c", _KEPT, str(bed.public), "150", users[uid]], cwd="/", text=True,
                stdout=subprocess.PIPE, user=uid, group=uid, extra_groups=[],
            ))
            for uid in (*users, *users, *users, 4491)
        ]  # fmt: skip
        for uid, client in clients:
            allowed = 50 * len(users[uid])
            wanted = {"200": allowed, "403": 150 - allowed} if allowed < 150 else {"200": 150}
            assert json.loads(client.communicate(timeout=60)[0]) == wanted
        ended(bed, 10)
        denied = [event["uid"] for event in bed.daemon.events("request_denied")]
        assert {uid: denied.count(uid) for uid in users} == {4491: 400, 4492: 300, 4493: 0}
        assert not bed.recorder.faults
