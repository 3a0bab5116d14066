"""A backend that is down, full, silent or dying: each has its outcome, and the daemon goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.clients import connect, exchange
from tests.support.daemon import REPO, Daemon, Event, running
from tests.support.reloading import sockguard
from tests.support.services import serving

NAMES = ("echo", "full", "silent")
EVERYBODY = 'users = ["*"]'
PATIENT = "import sockguard.server.backend as backend\nbackend.RESTART_SECONDS = 60.0\n"


def configure(folder: Path, rule: str = EVERYBODY, daemon: str = "", patience: str = "1s") -> Path:
    """patience: how long a client of "full" waits for its backend."""
    options = {"echo": "", "full": f'connect_timeout = "{patience}"', "silent": 'idle_timeout = "1s"'}
    text = f"[daemon]\nrelays = 1\n{daemon}\n"
    for name in NAMES:
        text += f'[proxy.{name}]\nlisten = "{folder}/{name}"\nbackend = "{folder}/{name}.private"\n{options[name]}\n'
        text += f"[[proxy.{name}.allow]]\n{rule}\n"
    file = folder / "sockguard.toml"
    file.write_text(text)
    return file


@contextlib.contextmanager
def full_backlog(path: Path) -> Iterator[socket.socket]:
    """A service that listens and never accepts, its backlog full."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(0)
        first.connect(str(path))
        yield listener


def swallow(sock: socket.socket) -> None:
    """Read everything, answer nothing."""
    while sock.recv(65536):
        pass


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with running(configure(folder), *(folder / name for name in NAMES)) as made:
        yield made


def closed(daemon: Daemon, proxy: str) -> tuple[object, object]:
    """Outcome and reason of the first connection of that proxy that has ended."""
    event = daemon.wait_for("connection_closed", lambda event: event["proxy"] == proxy)
    return event["outcome"], event.get("reason")


def end_of(daemon: Daemon, number: int) -> Event:
    return daemon.wait_for("connection_closed", lambda event: event["connection"] == number)


def test_down_full_silent(folder: Path, daemon: Daemon) -> None:
    """Nobody there, never accepted, never answered: the client is closed, the event says why, the others go on."""
    with (
        full_backlog(folder / "full.private"),
        serving(folder / "silent.private", swallow),
        connect(folder / "full") as full,
        connect(folder / "silent") as silent,
    ):
        with contextlib.suppress(BrokenPipeError):  # on a machine that has stood still, its second may be over
            silent.sendall(b"anybody there?")
        assert exchange(folder / "echo") == "closed"
        assert closed(daemon, "echo") == ("backend_unavailable", "No such file or directory")
        assert full.recv(1) == b""
        assert closed(daemon, "full") == ("backend_timeout", "its backlog was full for 1 s")
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        assert closed(daemon, "silent") == ("idle_timeout", None)
        with serving(folder / "echo.private"):
            assert exchange(folder / "echo", b"back\n") == "back"


def test_a_restart_is_not_seen(folder: Path) -> None:
    """A client that comes while the service restarts is served as soon as it is back. (How long that may take is
    test_backend's matter, by a clock that does not run on by itself.)"""
    (folder / "sitecustomize.py").write_text(PATIENT)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{REPO}",
        "RUNTIME_DIRECTORY": str(folder / "run"),
    }
    file = configure(folder)
    file.write_text(file.read_text().replace("[proxy.echo]\n", '[proxy.echo]\nconnect_timeout = "60s"\n'))
    with running(file, folder / "echo", env=environment) as daemon:
        with serving(folder / "echo.private"):
            assert exchange(folder / "echo", b"before\n") == "before"
        with connect(folder / "echo") as sock:
            sock.sendall(b"meanwhile\n")
            daemon.wait_for("connection_admitted", lambda event: event["connection"] == 2)
            with serving(folder / "echo.private"):
                assert sock.recv(100) == b"meanwhile\n"


def test_room_in_a_full_backlog_is_found(folder: Path) -> None:
    """The client that waits is connected as soon as the service accepts: none is lost, none is taken for connected."""
    with (
        full_backlog(folder / "full.private") as listener,
        running(configure(folder, patience="60s"), folder / "full") as daemon,
        connect(folder / "full") as sock,
    ):
        sock.sendall(b"patient")
        daemon.wait_for("connection_admitted")
        listener.settimeout(10)
        listener.accept()[0].close()
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"patient"


def test_a_backend_that_dies_in_mid_transfer(folder: Path, daemon: Daemon) -> None:
    """A death with bytes unread is told as backend_reset, an ordinary end as "closed". The client, of whose bytes none
    is unread on this side, sees the end behind all that came before it.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "echo.private"))
        (folder / "echo.private").chmod(0o666)
        listener.listen()
        listener.settimeout(10)
        for last, outcome in ((False, "backend_reset"), (True, "closed")):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)  # whatever becomes of the test
                accepted, _ = listener.accept()
                accepted.recv(9, socket.MSG_WAITALL | (0 if last else socket.MSG_PEEK))
                accepted.sendall(b"half an answer")
                signal.pause()
            with connect(folder / "echo") as sock:
                sock.sendall(b"all of it")
                assert sock.recv(14, socket.MSG_WAITALL | socket.MSG_PEEK) == b"half an answer"
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                assert sock.recv(14, socket.MSG_WAITALL) == b"half an answer"
                assert sock.recv(1) == b""
            event = end_of(daemon, 1 + last)
            assert event["outcome"] == outcome
            assert (event["bytes_from_client"], event["bytes_from_backend"]) == (9, 14)


def test_told_to_end_while_a_client_waits_for_its_backend(folder: Path) -> None:
    """A drain takes along who still waits for a full backlog: told once, exit status 0."""
    file = configure(folder, daemon='drain_timeout = "1s"', patience="60s")
    with full_backlog(folder / "full.private"), socket.socket(socket.AF_UNIX) as sock:
        with running(file, folder / "full") as daemon:
            sock.connect(str(folder / "full"))
            daemon.wait_for("connection_admitted")
        assert sock.recv(1) == b""
    assert [event["outcome"] for event in daemon.events("connection_closed")] == ["drain_timeout"]


def test_a_rule_that_ends_while_a_client_waits_for_its_backend(folder: Path) -> None:
    """Who is no longer admitted by the time the backend has room gets no connection: revoked, not handed over."""

    file = configure(folder, patience="60s")
    with full_backlog(folder / "full.private") as listener, running(file, folder / "full") as daemon:
        with connect(folder / "full") as sock:
            sock.sendall(b"too late")
            daemon.wait_for("connection_admitted")
            until = datetime.now(UTC) + timedelta(seconds=2)
            configure(folder, f"{EVERYBODY}\nuntil = {until:%Y-%m-%dT%H:%M:%S.%fZ}", patience="60s")
            done = sockguard("reload", "--control", folder / "run/control.sock")
            assert done.returncode == 0, done.stderr
            with pytest.raises(ConnectionResetError):  # it was never read
                sock.recv(1)
        assert closed(daemon, "full") == ("revoked", None)
        listener.accept()[0].close()
        listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listener.accept()
