"""How the daemon ends, and what is left when one of its processes is killed: nobody gets in, nothing stays behind."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.clients import connect, exchange
from tests.support.daemon import Daemon
from tests.support.identities import account_if_missing, capabilities, state, status, wait_started, wait_until
from tests.support.services import serving

pytestmark = pytest.mark.root


@contextmanager
def started(folder: Path, daemon_table: str = "") -> Iterator[Daemon]:
    """The daemon on folder/echo, under accounts of its own. It may end as it likes, but nothing of it may stay."""
    config = folder / "sockguard.toml"
    config.write_text(f"""
[daemon]
{daemon_table}
[proxy.echo]
listen = "{folder}/echo"
backend = "{folder}/private"
allow = [{{ users = [0] }}]
""")
    with ExitStack() as around:
        for name in ("sockguard", "sockguard-relay"):
            around.enter_context(account_if_missing(name))
        around.enter_context(serving(folder / "private"))
        daemon = Daemon(config)
        try:
            daemon.wait_ready(folder / "echo")
            wait_started(daemon)
            yield daemon
        finally:
            if daemon.process.poll() is None:
                daemon.process.terminate()
                daemon.process.wait(40)
            left = living(daemon)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            daemon.stop()
        assert not left


def living(daemon: Daemon) -> list[int]:
    """The daemon's processes that have not ended; whoever inherited them may be slow to reap those that have."""
    return [pid for pids in daemon.pids().values() for pid in pids if state(pid) not in ("", "Z")]


def wait_gone(daemon: Daemon) -> None:
    wait_until(lambda: not living(daemon), "all processes of the daemon end")


def echoes(client: socket.socket) -> bool:
    client.sendall(b"ping")
    return client.recv(10) == b"ping"


def is_cut(client: socket.socket) -> bool:
    """Has the connection ended? A reset and an end of file are both an end."""
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


def refuses(path: Path) -> bool:
    """Is nobody there any more?"""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) in (errno.ECONNREFUSED, errno.ENOENT)


@contextmanager
def on_relay(pid: int, path: Path) -> Iterator[socket.socket]:
    """A connection that this relay serves, which had none: of several, the first by which it has more sockets."""
    idle = sockets_of(pid)
    with ExitStack() as held:
        clients: list[socket.socket] = []

        def is_there() -> bool:
            clients.append(held.enter_context(connect(path)))
            assert echoes(clients[-1])
            return sockets_of(pid) > idle

        wait_until(is_there, "the new relay is given a connection")
        assert sockets_of(pid) == idle + 2  # the client and the service
        yield clients[-1]


def sockets_of(pid: int) -> int:
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links)


def test_killed_relay_takes_only_its_own_connections_along(folder: Path) -> None:
    """Its connections end as ``relay_lost``, with bytes that nobody knows; the others live on; a new relay, with no
    more rights than the first, serves new connections."""
    with started(folder, "relays = 2") as daemon, connect(folder / "echo") as one, connect(folder / "echo") as two:
        assert echoes(one)
        assert echoes(two)
        relays = daemon.pids()["sockguard-relay"]
        uids = status(relays[0])["Uid"]
        os.kill(relays[0], signal.SIGKILL)
        lost = daemon.wait_for("connection_closed")
        assert (lost["outcome"], lost["uid"], lost["rule"]) == ("relay_lost", 0, "echo.allow[0]")
        assert (lost["bytes_from_client"], lost["bytes_from_backend"]) == (None, None)
        daemon.wait_for("relay_restarted")
        gone, kept = (one, two) if lost["connection"] == 1 else (two, one)
        assert is_cut(gone)
        assert echoes(kept)
        (new,) = set(daemon.pids()["sockguard-relay"]) - set(relays)
        assert status(new)["Uid"] == uids
        held = capabilities(new)
        assert not held["CapEff"] | held["CapPrm"] | held["CapInh"] | held["CapAmb"]
        # To be able to change its uid and its root after exec; CAP_SETPCAP, which would empty it, is given up by now.
        assert held["CapBnd"] <= {6, 7, 18}
        assert status(new)["NoNewPrivs"] == "1"
        kept.close()
        closed = daemon.wait_for("connection_closed", lambda event: event["connection"] == 3 - lost["connection"])
        assert (closed["outcome"], closed["bytes_from_client"]) == ("closed", 8)
        with on_relay(new, folder / "echo") as three:
            os.kill(relays[1], signal.SIGKILL)
            daemon.wait_for("relay_restarted", lambda event: event["seq"] > closed["seq"])
            assert echoes(three)
        assert "a relay has ended; its connections are lost" in daemon.stderr()


def test_killed_monitor_ends_everything(folder: Path) -> None:
    """Without the monitor nobody is admitted and nothing passes any more: control and relays end too."""
    with started(folder) as daemon, connect(folder / "echo") as client:
        assert echoes(client)
        daemon.process.kill()
        daemon.process.wait()
        assert is_cut(client)
        wait_gone(daemon)
        assert refuses(folder / "echo")
        assert "the monitor has gone" in daemon.stderr()


def test_killed_control_ends_everything(folder: Path) -> None:
    """Without control nothing is decided any more: relays and monitor end too, with status 1; the path is removed."""
    with started(folder) as daemon, connect(folder / "echo") as client:
        assert echoes(client)
        os.kill(daemon.pids()["sockguard-ctl"][0], signal.SIGKILL)
        assert daemon.process.wait(20) == 1
        assert is_cut(client)
        wait_gone(daemon)
        assert not (folder / "echo").exists()
        assert "the control process was ended by SIGKILL" in daemon.stderr()


def test_terminate_drains(folder: Path) -> None:
    """After SIGTERM nobody new is taken, but who is there goes on until its own end; then the daemon ends with 0."""
    with started(folder) as daemon, connect(folder / "echo") as client:
        assert echoes(client)
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(folder / "echo"), "new connections are refused")
        assert echoes(client)
        assert daemon.process.poll() is None
        client.close()
        assert daemon.process.wait(20) == 0
        assert not (folder / "echo").exists()
        closed = daemon.wait_for("connection_closed", lambda event: event["connection"] == 1)
        assert (closed["outcome"], closed["bytes_from_client"], closed["bytes_from_backend"]) == ("closed", 8, 8)


@pytest.mark.parametrize("way", ["timeout", "second signal"])
def test_draining_has_an_end(folder: Path, way: str) -> None:
    """drain_timeout, or a second SIGTERM at once, cuts who is still there, says so, and the daemon ends with 0."""
    limit = "200ms" if way == "timeout" else "1h"
    with started(folder, f'drain_timeout = "{limit}"') as daemon, connect(folder / "echo") as client:
        assert echoes(client)
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in daemon.stderr(), "the daemon drains")
        if way != "timeout":
            assert echoes(client)
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
        assert is_cut(client)
        assert not (folder / "echo").exists()
        closed = daemon.wait_for("connection_closed")
        assert closed["outcome"] == ("drain_timeout" if way == "timeout" else "stopped")
        assert closed["bytes_from_client"] == closed["bytes_from_backend"] == (4 if way == "timeout" else 8)


def test_path_of_another_process_is_not_removed(folder: Path) -> None:
    """At its end the daemon removes the socket that it bound, and not one that has taken that place since."""
    with started(folder) as daemon:
        (folder / "echo").unlink()
        with serving(folder / "echo"):
            assert daemon.stop() == 0
            assert exchange(folder / "echo", b"ping") == "ping"
