"""Requests and a sink for audit events that blocks: none is answered that is not told, and in the end all are told."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
from pathlib import Path
from typing import Final

from sockguard.audit import MAX_QUEUED
from sockguard.privsep.messages import CREDITS, MAX_OVERDRAFT
from tests.integration.test_audit_sink import Lines
from tests.support.clients import connect
from tests.support.daemon import Daemon
from tests.support.http_stage import until
from tests.support.reloading import sockguard
from tests.support.services import serving

SECONDS: Final = 60.0
REFUSAL: Final = b"HTTP/1.1 403 "
MOST: Final = MAX_QUEUED + CREDITS + MAX_OVERDRAFT + 1000
"""Requests that can be answered before the sink goes on: what the queue holds, and some that the pipe does."""

CONFIG: Final = """
[daemon]
relays = 1
[proxy.http]
listen = "{folder}/http"
backend = "{folder}/private"
protocol = "http"
[[proxy.http.allow]]
users = ["*"]
http = ["GET /allowed"]
[proxy.echo]
listen = "{folder}/echo"
backend = "{folder}/private"
[[proxy.echo.allow]]
users = ["*"]
"""


def request(number: int) -> bytes:
    return b"GET /denied/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number


class Asker:
    """A client that sends requests ahead, and counts its refusals. ``left``: requests that are not written yet."""

    def __init__(self, sock: socket.socket, count: int) -> None:
        self._sock = sock
        self._left = b"".join(map(request, range(count)))
        self._rest = b""
        self.refused = 0

    def go_on(self, until: int, wait: float) -> None:
        """Until so many are refused, or nothing moves for ``wait`` seconds."""
        self._sock.setblocking(False)
        while self.refused < until:
            readable, writable, _ = select.select([self._sock], [self._sock] if self._left else [], [], wait)
            if readable:
                data = self._sock.recv(1 << 16)
                assert data, "the connection has ended"
                *refusals, self._rest = (self._rest + data).split(REFUSAL)
                self._rest = self._rest[-len(REFUSAL) :]
                self.refused += len(refusals)
            elif writable:
                self._left = self._left[self._sock.send(self._left[:4096]) :]
            else:
                return


def take_turns(folder: Path, live: socket.socket) -> None:
    """Until the one relay, control, and the relay again have gone round: what they could do, they have done.

    live: a connection through the proxy "echo".
    """

    def relay() -> None:
        for _ in range(2):  # what it tells control of goes out behind an answer
            live.sendall(b"x")
            assert live.recv(1) == b"x"

    relay()
    done = sockguard("status", "--control", folder / "run/control.sock")
    assert done.returncode == 0, done.stderr
    relay()


def test_a_sink_that_blocks_stops_requests(folder: Path) -> None:
    """A client stalls, and others too; when the sink is read again, all go on, and each request has its event."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    (folder / "sockguard.toml").write_text(CONFIG.format(folder=folder))
    with serving(folder / "private"):
        daemon = Daemon(folder / "sockguard.toml", stdout=writer)
        os.close(writer)
        try:
            daemon.wait_ready(folder / "http", folder / "echo")
            with (
                connect(folder / "http") as client,
                connect(folder / "http", SECONDS) as other,
                connect(folder / "echo", SECONDS) as live,
            ):
                other.sendall(request(0))
                assert until(other, b"}").startswith(REFUSAL)
                take_turns(folder, live)
                asker = Asker(client, MOST)
                answered = -1
                while answered != asker.refused:
                    answered = asker.refused
                    asker.go_on(MOST, 0.2)
                    take_turns(folder, live)
                # The others in the queue: three admissions, and other's refusal.
                assert MAX_QUEUED - 4 <= answered < MOST, "there is no bound, or none was answered"
                other.sendall(request(1))
                take_turns(folder, live)
                assert not select.select([other], [], [], 0)[0]
                lines = Lines(reader)
                lines.read(lambda events: len(denied(events)) > answered)  # each that was answered, and other's
                reading = threading.Thread(target=lines.read, args=(lambda events: len(denied(events)) == MOST + 2,))
                reading.start()
                asker.go_on(MOST, SECONDS)
                assert asker.refused == MOST
                assert until(other, b"}").startswith(REFUSAL)
                reading.join()
            lines.read(lambda events: sum(event["event"] == "connection_closed" for event in events) == 3)
        finally:
            status = daemon.stop()
    assert status == 0, daemon.stderr()
    events = lines.read(None)
    os.close(reader)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    numbers = [int(request.rpartition("/")[2]) for request in denied(events)]
    assert sorted(numbers) == sorted([0, 1, *range(MOST)])


def denied(events: list[dict[str, object]]) -> list[str]:
    return [str(event["request"]) for event in events if event["event"] == "request_denied"]
