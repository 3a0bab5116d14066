"""Audit events and their sink: nothing passes unrecorded, and no client can write an event of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from sockguard.audit import MAX_QUEUED
from tests.support.clients import connect, exchange
from tests.support.daemon import Daemon, running
from tests.support.reloading import sockguard
from tests.support.services import serving

PIPE_BYTES: Final = 4096
SECONDS: Final = 30.0


def configure(folder: Path, log: str = "") -> Path:
    """Two doors to one service: everybody may use "open", nobody "closed"."""
    rules = {"open": 'users = ["*"]', "closed": 'users = ["*"]\nexecutables = ["/nowhere"]'}
    text = f"{log}\n[daemon]\nrelays = 1\n"
    for name, rule in rules.items():
        text += f'[proxy.{name}]\nlisten = "{folder}/{name}"\nbackend = "{folder}/private"\n'
        text += f"[[proxy.{name}.allow]]\n{rule}\n"
    file = folder / "sockguard.toml"
    file.write_text(text)
    return file


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


def is_full(folder: Path) -> bool:
    """Does the daemon say that as many events wait as may?"""
    done = sockguard("status", "--json", "--control", folder / "run/control.sock")
    audit = json.loads(done.stdout)["audit"]
    return bool(audit["queued"] >= audit["max"])


def is_served(sock: socket.socket, full: Callable[[], bool]) -> bool:
    """Has this new connection been looked at: closed, or answered? Not, once ``full`` holds: from then on nobody is."""
    over = False
    while True:
        sock.settimeout(0.0 if over else 1.0)
        try:
            sock.recv(100)
        except (BlockingIOError, TimeoutError):
            if over:
                return False
            over = full()
        else:
            return True


def test_a_sink_that_blocks_stops_admission(folder: Path, pipe: tuple[int, int]) -> None:
    """Standard output that nobody reads: a bounded queue fills, then nobody gets in; read again, nothing is missing."""
    reader, writer = pipe
    with serving(folder / "private"):
        daemon = Daemon(configure(folder), stdout=writer)
        os.close(writer)
        try:
            daemon.wait_ready(folder / "open", folder / "closed")
            with connect(folder / "open") as live:
                live.sendall(b"before")
                assert live.recv(100) == b"before"
                denied = 0
                full = partial(is_full, folder)
                while True:
                    sock = connect(folder / "closed")
                    if not is_served(sock, full):
                        break
                    sock.close()
                    denied += 1
                    assert denied < MAX_QUEUED + 2000, "the queue has no bound"
                assert denied + 1 >= MAX_QUEUED  # and the admission of ``live``; some of them may be in the pipe
                with sock, connect(folder / "open") as newcomer:
                    newcomer.sendall(b"may I?")
                    assert not is_served(newcomer, full)
                    live.sendall(b"still")  # what is there goes on
                    live.settimeout(SECONDS)
                    assert live.recv(100) == b"still"
                    lines = Lines(reader)
                    lines.read(lambda events: any(event["event"] == "connection_admitted" for event in events[1:]))
                    for each in (newcomer, sock):
                        each.settimeout(SECONDS)
                    assert newcomer.recv(100) == b"may I?"
                    assert sock.recv(100) == b""
            lines.read(lambda events: sum(event["event"] == "connection_closed" for event in events) == 2)
        finally:
            status = daemon.stop()
    assert status == 0, daemon.stderr()
    events = lines.read(None)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert sum(event["event"] == "connection_denied" for event in events) == denied + 1


class Lines:
    """Events read from a pipe."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._rest = b""
        self._events: list[dict[str, Any]] = []

    def read(self, until: Any) -> list[dict[str, Any]]:
        """All events so far, once ``until`` holds for them; None: to the end of the pipe."""
        end = time.monotonic() + SECONDS
        while until is None or not until(self._events):
            assert time.monotonic() < end, self._events[-3:]
            data = os.read(self._reader, 1 << 16)
            if not data:
                assert until is None
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._events += map(json.loads, lines)
        return self._events


def test_a_sink_that_has_gone_ends_the_daemon(folder: Path, pipe: tuple[int, int]) -> None:
    """When standard output is closed by its reader, nothing may pass any more: it ends, with status 1, and says why."""
    reader, writer = pipe
    with serving(folder / "private"):
        daemon = Daemon(configure(folder), stdout=writer)
        os.close(writer)
        daemon.wait_ready(folder / "open", folder / "closed")
        with connect(folder / "open") as live:
            live.sendall(b"x")
            assert live.recv(1) == b"x"
            Lines(reader).read(bool)  # its admission: none is on its way that would end the daemon before the exchange
            os.close(reader)
            exchange(folder / "closed")
            live.settimeout(SECONDS)
            with contextlib.suppress(ConnectionResetError):
                assert live.recv(1) == b""
            assert daemon.process.wait(SECONDS) == 1
        assert daemon.stop() == 1
    assert "audit events cannot be written to standard output: Broken pipe" in daemon.stderr()
    assert not {"open", "closed"} & set(os.listdir(folder))


CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sys.exit(sock.recv(1) != b"")
"""
HOSTILE: Final = b'x\n{"event": "connection_admitted", "seq": 1}\r\x1b[2J\'"\\ \xff=\xe2\x80\xa8y'


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_programs_name_cannot_break_a_line(folder: Path, form: str) -> None:
    """Line breaks, quotes, escapes and bytes that are not UTF-8 in a path: one event stays one line of plain ASCII."""
    program = os.fsencode(folder) + b"/" + HOSTILE
    shutil.copy(os.fsencode(os.path.realpath(sys.executable)), program)
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    file = configure(folder, f'[log]\nformat = "{form}"')
    with running(file, folder / "open", folder / "closed") as daemon:
        command = [program, b"-S", b"-c", CLIENT.encode(), os.fsencode(folder / "closed")]
        subprocess.run(command, env=environment, check=True, timeout=SECONDS)
        end = time.monotonic() + SECONDS
        while not daemon.lines:
            assert time.monotonic() < end
            time.sleep(0.01)
        exchange(folder / "closed")
    first, second = daemon.lines
    for line in (first, second):
        assert line.endswith(b"\n")
        assert line[:-1].decode("ascii").isprintable()
    if form == "json":
        event = json.loads(first)
        assert os.fsencode(event["executable"]) == program
        assert (event["event"], event["seq"], json.loads(second)["seq"]) == ("connection_denied", 1, 2)
    else:
        assert b" connection_denied " in first
        assert b" connection_denied " in second
