"""What an operator sees and does while the daemon runs: status, close, metrics; and who may."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sockguard.commands.control_client import ControlClient
from sockguard.errors import SockguardError
from sockguard.sandbox import PARTS
from tests.support.clients import as_user, connect
from tests.support.daemon import running
from tests.support.identities import Client, account_if_missing, open_folder, someone, wait_started, wait_until
from tests.support.reloading import Subject, proxy, sockguard
from tests.support.services import serving

pytestmark = pytest.mark.root

UNKNOWN = 2**62


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that nobody else gets meanwhile: bound here without listening, so that the daemon, which
    sets SO_REUSEADDR too, can have it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def place_for_control(folder: Path) -> Path:
    """A folder where the control process can make sockets, whichever uid it runs under."""
    place = folder / "place"
    place.mkdir()
    place.chmod(0o777)
    return place


class Operated(Subject):
    """The daemon of this file: proxies echo (4242, 4243) and other (permissive), metrics at a port."""

    @property
    def port(self) -> int:
        found = re.search(r"127\.0\.0\.1:(\d+)", self.daemon.config.read_text())
        assert found
        return int(found[1])


@pytest.fixture(scope="module")
def running_one() -> Iterator[Operated]:
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        for name in ("sockguard", "sockguard-relay"):
            made.enter_context(account_if_missing(name))
        made.enter_context(serving(folder / "private"))
        config = folder / "sockguard.toml"
        config.write_text(
            f'[daemon]\nrelays = 2\nmetrics = "127.0.0.1:{made.enter_context(free_port())}"\n'
            + proxy(folder, "echo", "allow = [{ users = [4242, 4243] }]\ndeny = [{ users = [4244] }]")
            + proxy(folder, "other", "allow = [{ users = [1] }]\nenforce = false\nmax_connections = 7")
        )
        daemon = made.enter_context(running(config, folder / "echo", folder / "other"))
        wait_started(daemon)
        yield Operated(daemon, folder)


@pytest.fixture
def operated(running_one: Operated) -> Operated:
    """That daemon; the connections of the test before have ended, and all of its events have come."""
    wait_until(lambda: not running_one.connections(), "the connections of the test before end")
    told = running_one.status()["audit"]["seq"]
    wait_until(lambda: running_one.now() >= told, "its events come")
    return running_one


def totals(operated: Operated, name: str) -> dict[str, int]:
    """A proxy's counts, as status has them."""
    (row,) = [row for row in operated.status()["proxies"] if row["name"] == name]
    return {key: row[key] for key in ("admitted", "denied", "would_deny", "bytes_from_client", "bytes_from_backend")}


def test_status_as_json(operated: Operated) -> None:
    """All that the daemon has and does: its file, proxies, users, relays with what cages them, and denials."""
    path = operated.folder / "echo"
    before, after = totals(operated, "echo"), operated.now()
    with Client(4242, 4242) as one, Client(4242, 4242) as two, Client(4243, 4243) as three:
        assert {client.meet(path) for client in (one, two, three)} == {"ping"}
        assert someone(4244)(path) == "closed"
        assert someone(4245)(path) == "closed"
        status = operated.status()
    assert status["config"] == str(operated.daemon.config)
    assert (status["last_reload"], status["separation_warnings"], status["relay_restarts"]) == (None, [], 0)
    echo, other = status["proxies"]
    assert {key: echo[key] for key in ("name", "listen", "backend", "protocol", "enforce", "connections")} == {
        "name": "echo",
        "listen": str(path),
        "backend": str(operated.folder / "private"),
        "protocol": "stream",
        "enforce": True,
        "connections": 3,
    }
    assert [(user["uid"], user["connections"]) for user in echo["users"]] == [(4242, 2), (4243, 1)]
    assert (other["enforce"], other["max_connections"], other["users"]) == (False, 7, [])
    assert (echo["admitted"] - before["admitted"], echo["denied"] - before["denied"]) == (3, 2)
    relays = status["relays"]
    assert sum(relay["connections"] for relay in relays) == 3
    assert len({relay["number"] for relay in relays}) == 2
    for relay in relays:  # what holds on this machine's kernel is test_cage's matter; nothing else may be named
        assert {part.split()[0] for part in relay["cage"].split(",")} <= set(PARTS)
    last, first = status["latest_denials"][:2]
    assert (first["uid"], first["cause"], first["rule"]) == (4244, "rules", "echo.deny[0]")
    assert (last["uid"], last["rule"], last["reason"]) == (4245, None, "no allow rule matches")
    told = operated.event("connection_denied", after, uid=4245)
    assert (last["connection"], last["reason"]) == (told["connection"], told["reason"])


def test_status_as_text(operated: Operated) -> None:
    """The same for a person, one thing a line, and permissive proxies said in capitals."""
    path = operated.folder / "echo"
    with Client(4242, 4242) as client:
        assert client.meet(path) == "ping"
        assert someone(4245)(path) == "closed"
        done = operated.command("status")
        rows = operated.command("status", "--connections").stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^sockguard \S+, generation 1$", done.stdout, re.M)
    assert re.search(rf"^started [-\d]+ [:\d]+, {re.escape(str(operated.daemon.config))}$", done.stdout, re.M)
    assert "PERMISSIVE: other:" in done.stdout
    assert re.search(r"^echo +1 +1024 +\d+ +\d+ +0 ", done.stdout, re.M)
    assert re.search(r"^other +0 +7 ", done.stdout, re.M)
    assert re.search(r"^- +4242 +echo +1$", done.stdout, re.M)
    cage = re.escape(operated.status()["relays"][0]["cage"])
    assert len(re.findall(rf"^ +\d+ +- +[01]  {cage}$", done.stdout, re.M)) == 2
    assert re.search(r"^[:\d]+ +echo +\d+ +4245 +no allow rule matches$", done.stdout, re.M)
    assert len(rows) == 2
    assert re.fullmatch(rf" *\d+  echo +- +4242 +{client.pid} +[.\d]+s  open +echo\.allow\[0\]", rows[1])


def test_close(operated: Operated) -> None:
    """One connection ends, told as closed by the operator; the same user's other one goes on."""
    path, after = operated.folder / "echo", operated.now()
    with Client(4242, 4242) as one, Client(4242, 4242) as two:
        assert one.meet(path) == "ping"
        number = operated.event("connection_admitted", after)["connection"]
        assert two.meet(path) == "ping"
        assert number in {row["number"] for row in operated.connections()}
        done = operated.command("close", str(number))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        closed = operated.event("connection_closed", after, connection=number)
        assert (closed["outcome"], closed["bytes_from_client"], closed["bytes_from_backend"]) == (
            "closed_by_operator",
            4,
            4,
        )
        assert (one.do("ask"), two.do("ask")) == ("closed", "ping")
        again = operated.command("close", str(number))
        assert (again.returncode, again.stderr) == (1, f"sockguard: no connection {number} is open\n")


@pytest.mark.parametrize(("number", "status"), [(str(UNKNOWN), 1), ("x", 2), ("-1", 2)])
def test_close_of_what_is_no_connection(operated: Operated, number: str, status: int) -> None:
    """A number that no connection has is an error of the world, and what is no number one of the command line."""
    done = operated.command("close", number)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr


def test_who_may_use_the_control_socket(operated: Operated) -> None:
    """Root and the daemon's own user: by the file's mode, and by the kernel's word where the mode is opened."""
    found = operated.control.stat()
    control = as_control(operated)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, control)

    def ask() -> str:
        with contextlib.closing(_over_unix(operated.control)) as http:
            try:
                http.connect()
            except OSError as error:
                return type(error).__name__
            with contextlib.suppress(BrokenPipeError):  # turned away unread; the answer is there all the same
                http.request("GET", "/status")
            return str(http.getresponse().status)

    def command() -> str:
        try:
            return str(ControlClient(str(operated.control)).ask("POST", "/reload"))
        except SockguardError as error:
            return str(error)

    refused = f"{operated.control}: not permitted: only root and the daemon's own user may ask"
    assert (ask(), as_user(ask, control), as_user(ask, 4242)) == ("200", "200", "PermissionError")
    assert as_user(command, 4242) == refused
    operated.control.chmod(0o666)
    try:
        assert as_user(command, 4242) == refused
        assert as_user(ask, 4242) == "403"
        assert as_user(ask, 4242, real_uid=0) == "403"  # whom the kernel names: the effective one
    finally:
        operated.control.chmod(0o600)


def as_control(operated: Operated) -> int:
    """The uid that the control process runs under."""
    (pid,) = operated.daemon.pids()["sockguard-ctl"]
    found = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1])


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=15)
        self.path = path

    def connect(self) -> None:
        self.sock = connect(self.path)


def _over_unix(path: Path) -> http.client.HTTPConnection:
    return _UnixHttp(path)


def numbers(http: http.client.HTTPConnection) -> dict[str, float]:
    """What is measured now, by series."""
    http.request("GET", "/metrics")
    answer = http.getresponse()
    text = answer.read().decode()
    http.close()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in lines}


def test_metrics_at_a_port(operated: Operated) -> None:
    """Right after known traffic it is counted: verdicts by rule and cause, ends by outcome, bytes, what is open."""
    path, after = operated.folder / "echo", operated.now()
    before = totals(operated, "echo")
    with Client(4242, 4242) as client:
        assert client.meet(path) == "ping"
        assert someone(4243)(path) == "ping"
        assert someone(4244)(path) == "closed"
        assert someone(4246)(operated.folder / "other") == "ping"
        operated.event("connection_closed", after, uid=4243)
        operated.event("connection_closed", after, uid=4246)
        operated.event("connection_denied", after, uid=4244)
        found = numbers(http.client.HTTPConnection("127.0.0.1", operated.port, timeout=15))
    assert found['sockguard_connections_admitted_total{proxy="echo",rule="echo.allow[0]"}'] == before["admitted"] + 2
    denied = sum(value for name, value in found.items() if name.startswith("sockguard_connections_denied_total"))
    assert denied == before["denied"] + 1
    assert found['sockguard_connections_denied_total{cause="rules",proxy="echo",rule="echo.deny[0]"}'] >= 1
    assert found['sockguard_connections_would_deny_total{proxy="other",rule=""}'] == 1
    assert found['sockguard_connections_closed_total{outcome="closed",proxy="other"}'] == 1
    assert found['sockguard_bytes_total{proxy="other",sender="client"}'] == 4
    assert found['sockguard_bytes_total{proxy="other",sender="backend"}'] == 4
    assert found["sockguard_relays"] == 2
    assert found["sockguard_config_generation"] == operated.status()["generation"]
    open_now = [
        value for name, value in found.items() if re.match(r'sockguard_connections(_open)?\{proxy="echo"', name)
    ]
    assert open_now == [1]


def test_metrics_at_a_path_and_no_control_socket(folder: Path) -> None:
    """Anyone may read metrics at a path; control = "" makes no control socket; neither file is left at the end."""
    config, place = folder / "sockguard.toml", place_for_control(folder)
    config.write_text(
        f'[daemon]\ncontrol = ""\nmetrics = "{place}/metrics"\n' + proxy(folder, "echo", "allow = [{ users = [4242] }]")
    )
    with serving(folder / "private"), running(config, folder / "echo") as daemon:
        wait_started(daemon)
        assert not (folder / "run" / "control.sock").exists()
        done = sockguard("status", "--config", config)
        assert (done.returncode, done.stdout) == (1, "")
        assert "the daemon has no control socket" in done.stderr
        assert (someone(4242)(folder / "echo"), someone(4243)(folder / "echo")) == ("ping", "closed")
        daemon.wait_for("connection_denied")
        series = 'sockguard_connections_denied_total{cause="rules",proxy="echo",rule=""}'
        assert as_user(lambda: str(numbers(_over_unix(place / "metrics"))[series]), 4243) == "1.0"
    assert not (place / "metrics").exists()


def test_default_place(operated: Operated) -> None:
    """Without --control it is found by the environment's RUNTIME_DIRECTORY, as the daemon has found it."""
    assert operated.control.is_socket()
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(operated.folder / "run")}
    done = sockguard("status", "--config", operated.daemon.config, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "generation" in done.stdout


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["reload"], ["close", "1"]])
def test_no_daemon(folder: Path, command: list[str]) -> None:
    """Exit status 1 and where it was looked for; the same where a daemon has left its socket file behind."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left"))
    for name in ("none", "left"):
        done = sockguard(*command, "--control", folder / name)
        assert (done.returncode, done.stdout, done.stderr) == (
            1,
            "",
            f"sockguard: no daemon listens at {folder / name}\n",
        )


def test_control_socket_that_the_file_names(folder: Path) -> None:
    """It is where the file says, the commands find it there by --config, and it is gone at the end."""
    config, place = folder / "sockguard.toml", place_for_control(folder)
    config.write_text(f'[daemon]\ncontrol = "{place}/operator"\n' + proxy(folder, "echo"))
    with serving(folder / "private"), running(config, folder / "echo") as daemon:
        wait_started(daemon)
        assert sockguard("reload", "--config", config).returncode == 0
        assert daemon.wait_for("reloaded")["generation"] == 2
        assert sockguard("status", "--config", config).returncode == 0
    assert not (place / "operator").exists()
