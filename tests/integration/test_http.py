"""An HTTP server behind a `stream` proxy, and curl: bodies, kept and closed connections, 100-continue."""

from __future__ import annotations

import hashlib
import os
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.identities import wait_until
from tests.support.servers import Guarded, guarded, private_folder

pytestmark = pytest.mark.root

CURL = ("curl", "--silent", "--show-error", "--unix-socket", "PATH")
BODY = os.urandom(50 * 1000 * 1000)
_COPY = 1 << 16


class Handler(BaseHTTPRequestHandler):
    """GET gives /small, /big or, in the manner of HTTP/1.0, /closed; POST and PUT answer with the body's digest."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[dict[str, bytes]] = {"/small": b"small\n", "/big": BODY, "/closed": BODY[: 1 << 20]}

    def do_GET(self) -> None:
        body = self.bodies[self.path]
        if self.path == "/closed":
            self.protocol_version = "HTTP/1.0"
            self.close_connection = True
        self.send_response(200)
        if self.path != "/closed":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        digest = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left and (data := self.rfile.read(min(left, _COPY))):
            digest.update(data)
            left -= len(data)
        answer = digest.hexdigest().encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Thu, 01 Jan 1970 00:00:00 GMT"  # so that two answers can be compared

    def address_string(self) -> str:
        return ""

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def guard(folder: Path) -> Iterator[Guarded]:
    path = private_folder(folder, 0) / "http.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        path.chmod(0o777)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with guarded(folder, path.name) as guard:
                yield guard
        finally:
            server.shutdown()


def test_responses_small_large_and_ended_by_a_close(guard: Guarded) -> None:
    """Bodies arrive whole, whether their length is told or the connection's end tells it; a denied user has none."""
    small = guard.compare(*CURL, "--include", "http://server/small")
    assert small.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert small.stdout.endswith(b"\r\n\r\nsmall\n")
    assert guard.client(*CURL, "http://server/big").stdout == BODY
    closed = guard.compare(*CURL, "--http1.0", "--include", "http://server/closed").stdout
    assert closed.startswith(b"HTTP/1.0 200 OK\r\n")
    assert closed.endswith(Handler.bodies["/closed"])

    # Could not connect, an empty reply, could not send, could not receive: as the race went.
    guard.refused(*CURL, "http://server/small", says=rb"^curl: \((7|52|55|56)\) ")


def test_requests_on_one_kept_connection(guard: Guarded) -> None:
    """Three requests of one curl are one connection, admitted once, with all the bytes counted."""
    urls = ("http://server/small", "http://server/big", "http://server/small")
    done = guard.client(*CURL, "--write-out", "%{num_connects}", *urls)
    assert done.stdout == b"small\n1" + BODY + b"0" + b"small\n0"
    closed = guard.daemon.wait_for("connection_closed")
    assert closed["bytes_from_backend"] > len(BODY)
    assert closed["outcome"] == "closed"
    assert len(guard.daemon.events("connection_admitted")) == 1


def test_uploads_with_and_without_100_continue(folder: Path, guard: Guarded) -> None:
    """An upload arrives whole, and a client that waits for leave to send it gets that."""
    (folder / "body").write_bytes(BODY)
    (folder / "body").chmod(0o644)
    expected = hashlib.sha256(BODY).hexdigest().encode()
    posted = guard.client(*CURL, "--header", "Expect:", "--data-binary", f"@{folder}/body", "http://server/post")
    assert posted.stdout == expected
    waited = guard.client(
        *CURL, "--verbose", "--expect100-timeout", "60", "--header", "Expect: 100-continue",
        "--upload-file", f"{folder}/body", "http://server/put",
    )  # fmt: skip
    assert b"< HTTP/1.1 100 Continue" in waited.stderr
    assert waited.stdout == expected
    wait_until(lambda: len(guard.daemon.events("connection_closed")) == 2, "both ends are told")
    for event in guard.daemon.events("connection_closed"):
        assert event["bytes_from_client"] > len(BODY)
