"""Programs that send by sendfile(2) and splice(2), before the guard and behind it: nothing of it stands still.

nginx serves a file and passes on an upload; HAProxy and systemd-socket-proxyd are another link of the chain.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import connect
from tests.support.daemon import Daemon
from tests.support.front import haproxy, nginx, socket_proxyd
from tests.support.http_services import aiohttp
from tests.support.identities import wait_until
from tests.support.open_to_all import open_to_all
from tests.support.passages import read
from tests.support.servers import private_folder, run
from tests.support.services import serving

pytestmark = pytest.mark.root

MEGABYTE: Final = 1 << 20
FILE: Final = os.urandom(10 * MEGABYTE)
CURL: Final = ("curl", "--silent", "--show-error", "--fail", "--unix-socket")
KEYS: Final = {"stream": "", "refusing": 'fds = "refuse"', "http": 'protocol = "http"'}
"""Proxies, and their keys in the file."""

SECONDS: Final = 60.0


def readable_folder(folder: Path) -> Path:
    """A folder with FILE in it, for programs that give up root."""
    path = folder / "www"
    path.mkdir()
    (path / "file").write_bytes(FILE)
    (path / "file").chmod(0o644)
    return path


@pytest.mark.parametrize("proxy", KEYS)
def test_a_file_from_nginx(folder: Path, proxy: str) -> None:
    """A download of 10 MB from nginx is complete; twice on one connection, and once more by a slow client."""
    private = private_folder(folder, "www-data") / "nginx"
    address = "http://nginx/file"
    with (
        nginx(private, f"root {readable_folder(folder)};"),
        open_to_all(folder, {proxy: (private, KEYS[proxy])}) as daemon,
    ):
        for more, answer in (((address,), FILE * 2), (("--limit-rate", "20M"), FILE)):
            done = run([*CURL, str(folder / proxy), address, *more])
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == answer
        wait_until(lambda: len(daemon.events("connection_closed")) == 2, "both connections have ended")
        assert [event["outcome"] for event in daemon.events("connection_closed")] == ["closed"] * 2


@pytest.mark.parametrize("buffering", ["", "proxy_request_buffering on;", "proxy_request_buffering off;"])
@pytest.mark.parametrize("proxy", KEYS)
def test_an_upload_through_nginx(folder: Path, proxy: str, buffering: str) -> None:
    """nginx passes on 10 MB to the guard, from the file that it has put them in or as they come; all arrive."""
    private = private_folder(folder, 0) / "http"
    front = folder / "front"
    server = f"client_max_body_size 0;\n{buffering}\nlocation / {{ proxy_pass http://unix:{folder / proxy}:; }}"
    www = readable_folder(folder)
    with aiohttp(private):
        private.chmod(0o666)
        with open_to_all(folder, {proxy: (private, KEYS[proxy])}) as daemon, nginx(front, server):
            done = run([*CURL, str(front), "--data-binary", f"@{www}/file", "http://service/digest"])
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == hashlib.sha256(FILE).hexdigest().encode() + b"\n"
            closed = daemon.wait_for("connection_closed", lambda event: event["bytes_from_client"] > len(FILE))
            assert closed["outcome"] == "closed"


# ── chains ──

SPLICING: Final = ("option splice-auto", "option splice-request", "option splice-response")


@dataclass(frozen=True)
class Program:
    """A program that moves bytes. half_closes: it goes on with one direction when the other one has ended."""

    name: str
    half_closes: bool

    def between(self, path: Path, backend: Path) -> AbstractContextManager[object]:
        if self.name == "socket-proxyd":
            return socket_proxyd(path, backend)
        return haproxy(path, backend, *(SPLICING if self.name == "haproxy-splice" else ()))


PROGRAMS: Final = (Program("socket-proxyd", False), Program("haproxy", True), Program("haproxy-splice", True))
LAST: Final = b"heard all"


@dataclass
class Service:
    """Reads FILE, sends it, does both at a time; reads the end if it is to come, and says LAST.

    A client that says nothing is one that looks whether somebody listens.
    """

    reads_end: bool
    got: list[bytes] = field(default_factory=list)

    def __call__(self, sock: socket.socket) -> None:
        sock.settimeout(SECONDS)
        if not sock.recv(1, socket.MSG_PEEK):
            return
        self.got.append(read(sock, len(FILE)))
        sock.sendall(FILE)
        self.got.append(both_ways(sock))
        if not self.reads_end or sock.recv(1) == b"":
            sock.sendall(LAST)


def both_ways(sock: socket.socket) -> bytes:
    """Send FILE, and meanwhile read as much."""
    writer = threading.Thread(target=sock.sendall, args=(FILE,))
    writer.start()
    got = read(sock, len(FILE))
    writer.join()
    return got


@contextmanager
def chain(folder: Path, program: Program, place: str, fds: str, service: Service) -> Iterator[tuple[Path, Daemon]]:
    """The program "before" the guard or "behind" it. Gives where clients connect."""
    private = private_folder(folder, 0)
    guard, other = folder / "guard", (folder if place == "before" else private) / "other"
    backend = private / "service" if place == "before" else other
    with serving(private / "service", service), ExitStack() as made:
        if place == "behind":
            made.enter_context(program.between(other, private / "service"))
        daemon = made.enter_context(open_to_all(folder, {"guard": (backend, f'fds = "{fds}"')}))
        if place == "before":
            made.enter_context(program.between(other, guard))
        yield (other if place == "before" else guard), daemon


@pytest.mark.parametrize("fds", ["forward", "refuse"])
@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_chain(folder: Path, program: Program, place: str, fds: str) -> None:
    """10 MB there, 10 MB back, and as much both ways at a time; then a half-close where the program passes it on, and a
    word behind it."""
    service = Service(program.half_closes)
    with chain(folder, program, place, fds, service) as (path, daemon):
        with connect(path, SECONDS) as sock:
            sock.sendall(FILE)
            got = [read(sock, len(FILE)), both_ways(sock)]
            if program.half_closes:
                sock.shutdown(socket.SHUT_WR)
            assert read(sock, len(LAST) + 1) == LAST
        closed = daemon.wait_for("connection_closed", lambda event: event["bytes_from_client"] > 0)
    assert got == service.got == [FILE, FILE]
    assert (closed["bytes_from_client"], closed["bytes_from_backend"]) == (2 * len(FILE), 2 * len(FILE) + len(LAST))
    assert closed["outcome"] == "closed"
