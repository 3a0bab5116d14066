"""The shipped units, under a systemd that was really booted: start, hardening, activation, reload, restart, stop.

One container for all tests of this file; each leaves sockguard as it found it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sockguard.sandbox import PARTS, landlock
from tests.support.clients import connect
from tests.support.lingering import lingering
from tests.support.nspawn import Container, System, booted
from tests.support.services import serving

pytestmark = [pytest.mark.root, pytest.mark.timeout(func_only=True)]  # the first test of a system makes it

CONFIG = "/etc/sockguard/sockguard.toml"
GOOD = """
[proxy.example]
listen  = "fd:example"
backend = "/run/echo/echo.sock"
[[proxy.example.allow]]
users = ["root", "daemon"]

[proxy.unit]
listen  = "/run/unit.sock"
backend = "/run/echo/echo.sock"
[[proxy.unit.allow]]
users = ["games"]
units = ["sgclient.service"]

[proxy.program]
listen  = "@sockguard-test"
backend = "/run/echo/echo.sock"
[[proxy.program.allow]]
users       = ["games"]
executables = ["/usr/bin/socat*"]

[proxy.given]
listen  = "/run/given.sock"
backend = "/run/echo/echo.sock"
mode    = 0o600
owner   = "games"
group   = "daemon"
[[proxy.given.allow]]
users = ["*"]
"""

# A service that speaks to nobody but the group sockguard: systemd itself listens, and starts a cat for each connection.
ECHO_SOCKET = """
[Socket]
ListenStream=/run/echo/echo.sock
SocketUser=daemon
SocketGroup=sockguard
SocketMode=0660
Accept=yes
"""
ECHO_SERVICE = """
[Service]
ExecStart=/bin/cat
StandardInput=socket
"""
SECONDS = 60.0
QUEUED = 1000
"""Connections that are not all accepted before a stop is acted on."""


@pytest.fixture(scope="module")
def machine(system: System) -> Iterator[Container]:
    with booted(system=system) as container:
        container.write("/etc/systemd/system/echo.socket", ECHO_SOCKET)
        container.write("/etc/systemd/system/echo@.service", ECHO_SERVICE)
        container.write("/etc/tmpfiles.d/echo.conf", "d /run/echo 0710 daemon sockguard\n")
        container.write("/etc/systemd/system/sockguard.service.d/test.conf", "[Unit]\nStartLimitIntervalSec=0\n")
        container.write(CONFIG, GOOD)
        container.run("systemd-tmpfiles", "--create", "echo.conf")
        container.run("systemctl", "daemon-reload")
        container.run("systemctl", "enable", "--quiet", "sockguard-example.socket")
        started = container.run("systemctl", "start", "echo.socket", "sockguard.service", check=False)
        assert started.returncode == 0, journal(container)
        yield container


def shown(machine: Container, key: str) -> str:
    return machine.run("systemctl", "show", "--value", f"--property={key}", "sockguard.service").stdout.strip()


def wait_until(fact: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not fact():
        assert time.monotonic() < end, f"not within {SECONDS:g} s: {what}"
        time.sleep(0.02)


def journal(machine: Container) -> str:
    machine.run("journalctl", "--sync")
    return machine.run("journalctl", "--quiet", "--output=cat", "--unit=sockguard.service").stdout


def wait_for_event(machine: Container, name: str, **fields: Any) -> dict[str, Any]:
    """The last such audit event in the journal; each is a line that is JSON and has a number."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        events = [json.loads(line) for line in journal(machine).splitlines() if line.startswith('{"event":')]
        found[:] = [event for event in events if {"event": name, **fields}.items() <= event.items()]
        return bool(found)

    wait_until(look, f"{name} {fields} in the journal")
    return found[-1]


def ping(machine: Container, user: str, target: str, *unit: str) -> str:
    """What that user's socat gets back for a ping: itself, or nothing. ``unit``: the words of a systemd-run before."""
    become = ("--uid", user) if unit else ("setpriv", "--reuid", user, "--regid", user, "--clear-groups")
    return machine.run(*unit, *become, "socat", "-t15", "-", target, text="ping", check=False).stdout


def test_units_are_good_and_hardened(machine: Container) -> None:
    """systemd has nothing to say against the units, and its score for the service stays where it was."""
    verified = machine.run("systemd-analyze", "verify", "sockguard.service", "sockguard-example.socket")
    assert verified.stdout + verified.stderr == ""
    # In tenths. What is left is being root, four capabilities, and the settings that the unit says it cannot have.
    machine.run("systemd-analyze", "security", "--offline=yes", "--threshold=30", "sockguard.service")


def test_starts_by_notification_with_the_socket_pulled_in(machine: Container) -> None:
    """READY was said, the status line tells what is guarded, and each process has a uid of its own."""
    assert shown(machine, "ActiveState") == "active"
    assert shown(machine, "StatusText") == "Guarding 4 sockets"
    assert 'Status: "Guarding 4 sockets"' in machine.run("systemctl", "status", "sockguard.service").stdout
    users = machine.run("ps", "-o", "user:20=", "-u", "sockguard,sockguard-relay").stdout.split()
    assert set(users) == {"sockguard", "sockguard-relay"}
    # Every separation holds, and nothing that the unit forbids was missed: either would be a warning.
    said = [json.loads(line) for line in journal(machine).splitlines() if line.startswith("{")]
    assert "info" in {line.get("level") for line in said}
    expected = set() if landlock.abi() else {"relays run without landlock: this kernel has none of it"}
    assert {line["event"] for line in said if line.get("level") not in (None, "info")} == expected


def test_adopted_socket_admits_by_rule(machine: Container) -> None:
    """Through the socket that systemd bound, an allowed user reaches the service and another one does not."""
    assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"
    assert ping(machine, "games", "UNIX-CONNECT:/run/example.sock") == ""
    assert wait_for_event(machine, "connection_denied", proxy="example", user="games")["cause"] == "rules"
    closed = wait_for_event(machine, "connection_closed", proxy="example", user="daemon")
    assert (closed["bytes_from_client"], closed["bytes_from_backend"], closed["outcome"]) == (4, 4, "closed")


def test_client_of_a_unit(machine: Container) -> None:
    """A rule by unit admits the system's unit of that name, not the same user outside, nor a unit that he named so."""
    target = "UNIX-CONNECT:/run/unit.sock"
    run = ("--quiet", "--wait", "--collect", "--pipe", "--unit=sgclient.service")
    assert ping(machine, "games", target, "systemd-run", *run) == "ping"
    admitted = wait_for_event(machine, "connection_admitted", proxy="unit")
    assert (admitted["user"], admitted["unit"]) == ("games", "sgclient.service")
    assert ping(machine, "daemon", target, "systemd-run", *run) == ""
    assert ping(machine, "games", target) == ""

    uid = machine.run("id", "-u", "games").stdout.strip()
    machine.run("systemctl", "start", f"user@{uid}.service")
    own = ("runuser", "-u", "games", "--", "env", f"XDG_RUNTIME_DIR=/run/user/{uid}", "systemd-run", "--user", *run)
    assert machine.run(*own, "cat", "/proc/self/cgroup").stdout.count("/sgclient.service\n") >= 1
    assert machine.run(*own, "socat", "-t10", "-", target, text="ping", check=False).stdout == ""
    path = f"/user.slice/user-{uid}.slice/user@{uid}.service/app.slice/sgclient.service"
    wait_for_event(machine, "connection_denied", proxy="unit", user="games", unit=path)


def test_hardening_leaves_every_kind_of_rule_and_socket(machine: Container) -> None:
    """Abstract names, programs by /proc/PID/exe and owners of sockets work within the unit's restrictions."""
    assert ping(machine, "games", "ABSTRACT-CONNECT:sockguard-test") == "ping"
    admitted = wait_for_event(machine, "connection_admitted", proxy="program")
    assert admitted["executable"].startswith("/usr/bin/socat")
    assert machine.run("stat", "-c", "%a %U %G", "/run/given.sock").stdout == "600 games daemon\n"
    assert ping(machine, "games", "UNIX-CONNECT:/run/given.sock") == "ping"


def filters(machine: Container, pid: str) -> int:
    """How many seccomp filters a process of the container is under."""
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    assert re.search(r"^Seccomp:\t2$", status, re.M), status
    found = re.search(r"^Seccomp_filters:\t(\d+)$", status, re.M)
    assert found, status
    return int(found[1])


def pids(machine: Container, name: str, users: str = "") -> list[str]:
    """The processes of that name, of these users alone if any are named."""
    of = ("-u", users) if users else ()
    return machine.run("pgrep", "--exact", *of, name, check=False).stdout.split()


def test_relays_are_in_their_cage_within_the_units(machine: Container) -> None:
    """A relay adds its own filter to the unit's, and says what holds it: the unit forbids no part of the cage. So do
    the processes that receive what clients pass, for each relay and for control.
    """
    units = filters(machine, shown(machine, "MainPID"))
    relays = pids(machine, "sockguard-relay", "sockguard-relay")
    assert relays
    assert len(pids(machine, "sockguard-fds", "sockguard-relay")) >= len(relays)
    assert pids(machine, "sockguard-fds", "sockguard")
    served = pids(machine, "sockguard-fds", "sockguard,sockguard-relay")
    assert pids(machine, "sockguard-fds") == served
    assert all(filters(machine, pid) > units for pid in (*relays, *served))
    cages = [set(relay["cage"].split(",")) for relay in status(machine)["relays"]]
    assert len(cages) == len(relays)
    for cage in cages:
        parts = {part.split()[0] for part in cage}
        assert parts == {*PARTS} - (set() if landlock.abi() else {"landlock"})


def status(machine: Container) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(machine.run("sockguard", "status", "--json").stdout)
    return answer


def test_reload_waits_and_fails_with_the_mistakes(machine: Container) -> None:
    """A good file is in force when systemctl comes back; a bad one fails the reload, and says so wherever one looks."""
    target = "UNIX-CONNECT:/run/example.sock"
    generation = status(machine)["generation"]
    try:
        machine.write(CONFIG, GOOD.replace('"root", "daemon"', '"root", "games"'))
        machine.run("systemctl", "reload", "sockguard.service")
        assert status(machine)["generation"] == generation + 1
        assert (ping(machine, "games", target), ping(machine, "daemon", target)) == ("ping", "")

        machine.write(CONFIG, GOOD.replace("users =", "usres =", 1))
        assert machine.run("systemctl", "reload", "sockguard.service", check=False).returncode != 0
        mistake = f"{CONFIG}:6: proxy.example.allow[0].usres: unknown key; did you mean 'users'?"
        assert mistake in journal(machine).splitlines()  # a line of the command's own, besides the daemon's events
        assert "the last reload was refused" in shown(machine, "StatusText")
        assert mistake in shown(machine, "StatusText")
        assert (shown(machine, "ActiveState"), status(machine)["generation"]) == ("active", generation + 1)
        assert (ping(machine, "games", target), ping(machine, "daemon", target)) == ("ping", "")
    finally:
        machine.write(CONFIG, GOOD)
        machine.run("systemctl", "reload", "sockguard.service")
    assert shown(machine, "StatusText") == "Guarding 4 sockets"


class Visitor(threading.Thread):
    """Connects again and again, and waits for an answer each time; what fails is in ``failures``."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._enough = threading.Event()
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._enough.wait(0.005):  # not more than the journal takes
            try:
                with connect(self._path, SECONDS) as sock:
                    sock.sendall(b"x")
                    answer = sock.recv(1)
            except OSError as error:
                answer = repr(error).encode()
            if answer == b"x":
                self.answers += 1
            else:
                self.failures.append(answer.decode() or "closed")

    def stop(self) -> None:
        self._enough.set()
        self.join(2 * SECONDS)


def test_restart_refuses_nobody(machine: Container) -> None:
    """Whoever connects while sockguard restarts waits and is served."""
    visitors = [Visitor(machine.path("/run/given.sock")), Visitor(machine.path("/run/example.sock"))]

    def wait_for_service() -> None:
        before = [visitor.answers for visitor in visitors]
        wait_until(lambda: all(v.answers > n for v, n in zip(visitors, before, strict=True)), "clients are served")

    # systemd would not start a service of its own for so many connections.
    with serving(machine.path("/run/echo/quick.sock")):
        shown_client = 'group   = "daemon"\nidentity = "client"\nallow_root_identity = true'
        machine.write(CONFIG, GOOD.replace("echo.sock", "quick.sock").replace('group   = "daemon"', shown_client))
        machine.run("systemctl", "reload", "sockguard.service")
        try:
            for visitor in visitors:
                visitor.start()
            wait_for_service()
            for _ in range(2):
                machine.run("systemctl", "restart", "sockguard.service")
                wait_for_service()
        finally:
            for visitor in visitors:
                visitor.stop()
            machine.write(CONFIG, GOOD)
            machine.run("systemctl", "reload", "sockguard.service")
    assert [visitor.failures for visitor in visitors] == [[], []]
    assert machine.run("stat", "-c", "%a %U %G", "/run/given.sock").stdout == "600 games daemon\n"
    assert shown(machine, "NFileDescriptorStore") == "3"  # /run/unit.sock, /run/given.sock and the abstract one


def test_restart_goes_by_the_new_file(machine: Container) -> None:
    """A new place or mode takes a new socket; the clients of a proxy that has gone are refused, not left waiting."""
    changed = GOOD.replace("0o600", "0o640").replace("/run/unit.sock", "/run/moved.sock")
    head, _, rest = changed.partition("[proxy.program]")
    machine.write(CONFIG, head + "[proxy.given]" + rest.partition("[proxy.given]")[2])
    try:
        machine.run("systemctl", "restart", "sockguard.service")
        assert machine.run("stat", "-c", "%a %U %G", "/run/given.sock").stdout == "640 games daemon\n"
        assert ping(machine, "games", "UNIX-CONNECT:/run/given.sock") == "ping"
        assert machine.path("/run/moved.sock").is_socket()
        assert not machine.path("/run/unit.sock").exists()
        refused = machine.run("socat", "-", "ABSTRACT-CONNECT:sockguard-test", check=False)
        assert "Connection refused" in refused.stderr
        wait_until(lambda: shown(machine, "NFileDescriptorStore") == "2", "systemd lets go of what was ended")
    finally:
        machine.write(CONFIG, GOOD)
        machine.run("systemctl", "restart", "sockguard.service")
    assert ping(machine, "games", "ABSTRACT-CONNECT:sockguard-test") == "ping"
    assert not machine.path("/run/moved.sock").exists()


FORGED = (
    "STATUS=all is well",
    "WATCHDOG=trigger",
    "STOPPING=1",
    "RELOADING=1",
    "FDSTOREREMOVE=1\nFDNAME=sockguard/given",
    "MAINPID=1",
)


def test_systemd_hears_nobody_but_the_monitor(machine: Container) -> None:
    """Whatever another process of the service sends, as a relay may that was taken over: nothing comes of it."""
    group = shown(machine, "ControlGroup")
    found = [f"/sys/fs/cgroup{part}{group}/cgroup.procs" for part in ("", "/unified", "/systemd")]
    procs = [path for path in found if machine.path(path).exists()]
    assert procs
    join = "; ".join(f"echo $$ > {path}" for path in procs)
    keys = ("MainPID", "ActiveState", "SubState", "StatusText", "NRestarts", "NFileDescriptorStore")
    before = [shown(machine, key) for key in keys]
    for text in FORGED:
        words = " ".join(f"'{line}'" for line in text.split("\n"))
        machine.run(
            "sh", "-c", f"{join}; NOTIFY_SOCKET=/run/systemd/notify exec systemd-notify {words}"
        )  # waits for it
        assert [shown(machine, key) for key in keys] == before, text


def test_the_watchdog_ends_a_control_process_that_hangs(machine: Container) -> None:
    """The service is alive as long as control answers. One that hangs is ended, and all starts again at once."""
    drop_in = "/etc/systemd/system/sockguard.service.d/watchdog.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=2\n")
    machine.run("systemctl", "daemon-reload")
    try:
        machine.run("systemctl", "restart", "sockguard.service")
        first, (control,) = shown(machine, "MainPID"), pids(machine, "sockguard-ctl")
        fed = shown(machine, "WatchdogTimestampMonotonic")
        wait_until(lambda: shown(machine, "WatchdogTimestampMonotonic") != fed, "the watchdog is fed")
        assert shown(machine, "MainPID") == first
        machine.run("kill", "-STOP", control)
        wait_until(lambda: shown(machine, "NRestarts") == "1", "the service is started again")
        wait_until(lambda: shown(machine, "ActiveState") == "active", "the service is up again")
        assert shown(machine, "MainPID") != first
        assert "sockguard: the control process does not answer" in journal(machine).splitlines()
        assert control not in pids(machine, "sockguard-ctl")
        assert ping(machine, "games", "UNIX-CONNECT:/run/given.sock") == "ping"
    finally:
        machine.path(drop_in).unlink()
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "sockguard.service")


def test_stop_drains_and_the_socket_starts_it_again(machine: Container) -> None:
    """A stop lets a live connection finish and ends with 0; the next client waits in the socket while all restarts."""
    with connect(machine.path("/run/example.sock")) as held:
        held.sendall(b"one")
        assert held.recv(100) == b"one"
        machine.run("systemctl", "stop", "--no-block", "sockguard.service")
        wait_until(lambda: shown(machine, "StatusText").startswith("Waiting"), "the status of a drain")
        held.sendall(b"two")
        assert held.recv(100) == b"two"
        assert shown(machine, "ActiveState") == "deactivating"
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(str(machine.path("/run/unit.sock")))  # what it sent would be systemd's to close
    wait_until(lambda: shown(machine, "ActiveState") == "inactive", "the end of the drain")
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("success", "0")
    assert wait_for_event(machine, "connection_closed", user="root")["outcome"] == "closed"
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(str(machine.path("/run/unit.sock")))  # a file to be replaced: systemd has closed its socket
    assert machine.path("/run/example.sock").is_socket()

    assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"
    assert shown(machine, "ActiveState") == "active"


def test_stop_leaves_systemd_no_connection_to_close(machine: Container) -> None:
    """A stop with connections that nobody has accepted yet; in one waits a descriptor whose close blocks. sockguard
    ends them itself. In systemd's copy of the listener they would be systemd's to close, and the PID 1 of systemd 252
    does nothing else meanwhile; that of 257 has a process of its own close what it kept.
    """
    control = pids(machine, "sockguard-ctl")
    with lingering() as bombs, ExitStack() as socks:
        machine.run("kill", "--signal", "STOP", *control)
        for _ in range(QUEUED):
            sock = socks.enter_context(connect(machine.path("/run/unit.sock")))
        bombs.send(sock)
        machine.run("systemctl", "stop", "--no-block", "sockguard.service")
        machine.run("kill", "--signal", "CONT", *control)
        wait_until(lambda: shown(machine, "ActiveState") == "inactive", "the end of the stop")
        assert (shown(machine, "Result"), shown(machine, "NFileDescriptorStore")) == ("success", "0")
        machine.run("systemctl", "start", "sockguard.service")
        assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"


def test_bad_file_fails_the_start_once(machine: Container) -> None:
    """A mistake in the file: status 2, the mistake in the journal with its line, and no attempt to start again."""
    machine.write(CONFIG, GOOD.replace("users =", "usres =", 1))
    try:
        assert machine.run("systemctl", "restart", "sockguard.service", check=False).returncode == 1
        assert (shown(machine, "ActiveState"), shown(machine, "Result")) == ("failed", "exit-code")
        assert (shown(machine, "ExecMainStatus"), shown(machine, "NRestarts")) == ("2", "0")
        assert f"{CONFIG}:6: proxy.example.allow[0].usres: unknown key; did you mean 'users'?" in journal(machine)
    finally:
        machine.write(CONFIG, GOOD)
        machine.run("systemctl", "restart", "sockguard.service")
    assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"


def test_bad_file_leaves_systemd_no_connection_to_close(machine: Container) -> None:
    """A restart with a mistake in the file, while connections wait in a socket that systemd keeps over it; in one waits
    a descriptor whose close blocks. There is no other start, so systemd lets go of that socket.
    """
    drop_in = "/etc/systemd/system/sockguard.service.d/late.conf"
    gate = "/run/late"
    machine.write(drop_in, f"[Service]\nExecStartPre=/bin/sh -c 'until test -e {gate}; do sleep 0.1; done'\n")
    machine.write(CONFIG, GOOD.replace("users =", "usres =", 1))
    machine.run("systemctl", "daemon-reload")
    try:
        with lingering() as bombs, ExitStack() as socks:
            machine.run("systemctl", "restart", "--no-block", "sockguard.service")
            wait_until(lambda: shown(machine, "SubState") == "start-pre", "the restart has come half way")
            for _ in range(QUEUED):
                sock = socks.enter_context(connect(machine.path("/run/unit.sock")))
            bombs.send(sock)
            machine.write(gate, "")
            wait_until(lambda: shown(machine, "ActiveState") == "failed", "the end of the start")
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                sock.connect(str(machine.path("/run/unit.sock")))
            assert shown(machine, "NFileDescriptorStore") == "0"
    finally:
        machine.path(drop_in).unlink()
        machine.path(gate).unlink()
        machine.write(CONFIG, GOOD)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "sockguard.service")
    assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"
