"""The recording service behind one `http` proxy, and a client that sees when something comes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.clients import connect
from tests.support.daemon import Daemon, running
from tests.support.http_services import Answer, Recorder, plainly, recording
from tests.support.identities import open_folder, wait_started
from tests.support.servers import private_folder

RULES = """[
  "GET,HEAD /small", "GET /late", "GET /stream", "GET /close", "POST /body", "POST /both", "GET /hints",
  { methods = ["POST"], path = "/tunnel", upgrade = ["tcp"] },
]"""
ANYONE = f"""
[[proxy.http.allow]]
users = ["*"]
http = {RULES}
"""
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS = 20.0


@dataclass(slots=True)
class Bed:
    recorder: Recorder
    public: Path
    private: Path
    daemon: Daemon

    @contextlib.contextmanager
    def answering(self, answer: Answer) -> Iterator[socket.socket]:
        """Meanwhile the service answers like that; gives a connected client."""
        self.recorder.clear()
        self.recorder.answer = answer
        try:
            with connect(self.public, SECONDS) as sock:
                yield sock
        finally:
            self.recorder.answer = plainly
        assert not self.recorder.faults

    def configure(self, options: str = "", rules: str = ANYONE, more: str = "") -> None:
        """Write the file: keys of the proxy, its rules, and other tables. Nobody has read it yet."""
        write(self.daemon.config, self.public, self.private, options, rules, more)


def write(file: Path, public: Path, private: Path, options: str, rules: str, more: str) -> None:
    file.write_text(
        f'[daemon]\nrelays = 1\n{more}\n[proxy.http]\nlisten = "{public}"\nbackend = "{private}"\n'
        f'protocol = "http"\n{options}\n{rules}'
    )


@contextlib.contextmanager
def guarding(options: str = "", rules: str = ANYONE, more: str = "") -> Iterator[Bed]:
    """A daemon with one relay; ``options``: keys of the proxy, ``more``: other tables."""
    with open_folder() as folder:
        private, public = private_folder(folder, 0) / "http.sock", folder / "public" / "http.sock"
        public.parent.mkdir()
        file = folder / "sockguard.toml"
        write(file, public, private, options, rules, more)
        with recording(private) as recorder, running(file, public) as daemon:
            wait_started(daemon)
            yield Bed(recorder, public, private, daemon)


def ask(sock: socket.socket, line: str, *fields: str, body: bytes = b"") -> None:
    """Send a request; ``line``: its method and target."""
    sock.sendall("\r\n".join((f"{line} HTTP/1.1", "Host: x", *fields, "", "")).encode() + body)


def until(sock: socket.socket, text: bytes) -> bytes:
    """All that comes up to and with that text."""
    got = b""
    while text not in got:
        data = sock.recv(65536)
        assert data, got
        got += data
    return got


def rest(sock: socket.socket) -> bytes:
    """All that comes to the end of the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            got += data
    return got
