"""Limits and load: what is over a limit is told, waits or is refused, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import as_user, connect, exchange
from tests.support.daemon import Daemon, running
from tests.support.passing import open_files

SECONDS: Final = 60.0
PATIENT: Final = 'connect_timeout = "60s"'
"""For a backend that has no room while its thread does not run: that is not what is tested."""


def configure(folder: Path, options: str = "", daemon: str = "") -> Path:
    file = folder / "sockguard.toml"
    file.write_text(
        f'[daemon]\n{daemon}\n[proxy.echo]\nlisten = "{folder}/public"\nbackend = "{folder}/private"\n{options}\n'
        '[[proxy.echo.allow]]\nusers = ["*"]\n'
    )
    return file


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@contextlib.contextmanager
def echo(path: Path) -> Iterator[threading.Event]:
    """An echo service for thousands at once, in one thread. It accepts while the event is set."""
    accepting = threading.Event()
    accepting.set()
    stop_reader, stop_writer = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, stop_reader, stop_writer:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(64)
        listener.setblocking(False)
        thread = threading.Thread(target=_echo_all, args=(listener, accepting, stop_reader), daemon=True)
        thread.start()
        try:
            yield accepting
        finally:
            accepting.set()
            stop_writer.close()
            thread.join(10)


def _echo_all(listener: socket.socket, accepting: threading.Event, stop: socket.socket) -> None:
    epoll = select.epoll()
    epoll.register(stop, select.EPOLLIN)
    epoll.register(listener, select.EPOLLIN)
    connected: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == stop.fileno():
                for sock in connected.values():
                    sock.close()
                epoll.close()
                return
            if fd == listener.fileno():
                accepting.wait(SECONDS)
                with contextlib.suppress(BlockingIOError):
                    sock, _ = listener.accept()
                    connected[sock.fileno()] = sock
                    epoll.register(sock, select.EPOLLIN)
                continue
            try:
                data = connected[fd].recv(65536)
                if data:
                    connected[fd].send(data)
                    continue
            except OSError:
                pass
            connected.pop(fd).close()


def fds_of(daemon: Daemon) -> dict[int, int]:
    """As open_files; nothing for an ordinary user, who may not look: none of its processes is dumpable."""
    return open_files(daemon) if os.geteuid() == 0 else {}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def control_of(daemon: Daemon) -> int:
    """The pid of the process that accepts: control, or the only one where there is no monitor."""
    pids = daemon.pids()
    return pids.get("sockguard-ctl", pids["sockguard"])[0]


@pytest.mark.root
def test_limits_by_proxy_and_by_user(folder: Path) -> None:
    """Over a limit: closed at once, told with cause "limit"; free again as soon as one closes; others are not hit."""
    file = configure(folder, "max_connections = 5\nmax_connections_per_user = 3")
    with echo(folder / "private"), running(file, folder / "public") as daemon, contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(folder / "public")) for _ in range(3)]
        for sock in mine:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert exchange(folder / "public") == "closed"
        denied = daemon.wait_for("connection_denied")
        assert (denied["cause"], denied["rule"]) == ("limit", "echo.allow[0]")
        assert denied["reason"] == f"max_connections_per_user: uid {os.geteuid()} has 3 open"

        def two_and_a_third() -> str:
            with connect(folder / "public") as one, connect(folder / "public") as two:
                for sock in (one, two):
                    sock.sendall(b"y")
                    assert sock.recv(1) == b"y"
                return exchange(folder / "public")

        assert as_user(two_and_a_third, 4242) == "closed"
        denied = daemon.wait_for("connection_denied", lambda event: event["uid"] == 4242)
        assert (denied["cause"], denied["reason"]) == ("limit", "max_connections: 5 are open")
        mine[0].close()
        daemon.wait_for("connection_closed", lambda event: event["connection"] == 1)
        assert exchange(folder / "public", b"again\n") == "again"


def test_two_thousand_at_once(folder: Path) -> None:
    """All of them work at the same time, and when they have gone nothing of them is left: no count, no descriptor."""
    count = 2000
    file = configure(folder, f"max_connections = {count}\nmax_connections_per_user = {count}\n{PATIENT}")
    with echo(folder / "private"), running(file, folder / "public") as daemon:
        assert exchange(folder / "public", b"warm\n") == "warm"
        daemon.wait_for("connection_closed")
        before = fds_of(daemon)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(folder / "public", SECONDS)) for _ in range(count)]
            for number, sock in enumerate(socks):
                sock.sendall(b"%d" % number)
            for number, sock in enumerate(socks):
                assert sock.recv(100) == b"%d" % number
            for sock in reversed(socks):  # and once more, now that all are there
                sock.sendall(b"again")
                assert sock.recv(100) == b"again"
            assert exchange(folder / "public") == "closed"
            daemon.wait_for("connection_denied")
        wait_until(lambda: len(daemon.events("connection_closed")) == count + 1, "all ends told")
        wait_until(lambda: fds_of(daemon) == before, "no descriptor left")
        # live counts are back at none: as many again fit in, to the last
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(folder / "public", SECONDS)) for _ in range(count)]
            for sock in socks:
                sock.sendall(b"x")
            for sock in socks:
                assert sock.recv(100) == b"x"
    seqs = [event["seq"] for event in daemon.events()]
    assert seqs == list(range(1, len(seqs) + 1))


BURST = """
import socket, sys
answered = 0
for number in range(int(sys.argv[2])):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(sys.argv[1])
        sock.sendall(b"%d" % number)
        answered += sock.recv(100) == b"%d" % number
print(answered)
"""


def test_a_burst_from_eight_processes(folder: Path) -> None:
    """A thousand connects from eight processes at the same time: every one is answered."""
    file = configure(folder, PATIENT)
    with echo(folder / "private"), running(file, folder / "public"):
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", BURST, str(folder / "public"), "125"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(8)
        ]
        assert [client.communicate(timeout=SECONDS)[0] for client in clients] == ["125\n"] * 8


@pytest.mark.root
def test_clients_that_come_and_go(folder: Path) -> None:
    """5000 clients that close at once, half of them with bytes sent: each told once, nothing left, and none spins."""
    count = 5000
    file = configure(folder, f"max_connections = {count}\nmax_connections_per_user = {count}\n{PATIENT}")
    with echo(folder / "private"), running(file, folder / "public") as daemon:
        assert exchange(folder / "public", b"warm\n") == "warm"
        daemon.wait_for("connection_closed")
        before = fds_of(daemon)
        for number in range(count):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(folder / "public"))  # blocking: waits while the backlog is full
                if number % 2:
                    sock.send(b"x")
        wait_until(lambda: len(daemon.events("connection_closed")) == count + 1, "all ends told")
        wait_until(lambda: fds_of(daemon) == before, "no descriptor left")
        connections = [event["connection"] for event in daemon.events("connection_closed")]
        assert sorted(connections) == list(range(1, count + 2))
        assert {event["outcome"] for event in daemon.events("connection_closed")} <= {
            "closed",
            "client_reset",
            "backend_reset",
        }
        assert exchange(folder / "public", b"still\n") == "still"


def test_out_of_descriptors(folder: Path) -> None:
    """With no descriptor to spare clients wait in the backlog; nothing spins or dies; later all are served."""
    limit, count = 1300, 1390
    file = configure(
        folder,
        'max_connections = 5000\nmax_connections_per_user = 5000\nconnect_timeout = "300s"',
        'relays = 4\ndrain_timeout = "5s"',
    )
    with (
        echo(folder / "private") as accepting,
        running(
            file,
            folder / "public",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        ) as daemon,
        contextlib.ExitStack() as stack,
    ):
        accepting.clear()  # its backlog fills: the clients behind it wait in control, a descriptor each
        socks = []
        for _ in range(count):
            socks.append(stack.enter_context(connect(folder / "public", SECONDS)))
            socks[-1].sendall(b"waiting")
        wait_until(lambda: "clients wait: no more open files can be had" in daemon.stderr(), "EMFILE is said")
        control = control_of(daemon)

        def stands_still() -> bool:
            used, started = cpu_seconds(control), time.monotonic()
            admitted = len(daemon.events("connection_admitted"))
            time.sleep(2)  # what is measured is that nothing happens
            idle = cpu_seconds(control) - used < 0.4 * (time.monotonic() - started)
            return idle and len(daemon.events("connection_admitted")) == admitted

        wait_until(stands_still, "nobody spins, and those are told that it had accepted by then")
        assert len(daemon.events("connection_admitted")) < count
        accepting.set()
        for sock in socks:
            assert sock.recv(100) == b"waiting"
        for sock in socks:
            sock.close()
        wait_until(lambda: len(daemon.events("connection_closed")) == count, "all ends told")
        assert exchange(folder / "public", b"still\n") == "still"
        assert daemon.stderr().count("clients wait: no more open files") < 20
    assert not daemon.events("connection_denied")
