"""The shipped units, under a systemd that was really booted: start, hardening, socket activation, stop, a bad file.

One container for all tests of this file; each leaves sockguard as it found it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import connect
from tests.support.nspawn import Container, booted

pytestmark = pytest.mark.root

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
SECONDS = 15.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    with booted() as container:
        container.write("/etc/systemd/system/echo.socket", ECHO_SOCKET)
        container.write("/etc/systemd/system/echo@.service", ECHO_SERVICE)
        container.write("/etc/tmpfiles.d/echo.conf", "d /run/echo 0710 daemon sockguard\n")
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
    return machine.run(*unit, *become, "socat", "-t10", "-", target, text="ping", check=False).stdout


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
    assert '"level": "info"' in journal(machine)
    assert '"level": "warning"' not in journal(machine)


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
    wait_until(lambda: shown(machine, "ActiveState") == "inactive", "the end of the drain")
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("success", "0")
    assert wait_for_event(machine, "connection_closed", user="root")["outcome"] == "closed"
    assert not machine.path("/run/unit.sock").exists()
    assert machine.path("/run/example.sock").is_socket()

    assert ping(machine, "daemon", "UNIX-CONNECT:/run/example.sock") == "ping"
    assert shown(machine, "ActiveState") == "active"


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
