"""The system bus with sockguard before it, as systemd/dbus/README.md has it installed, on a booted systemd.

The files go where the README's table says, before the boot. PERSON is an ordinary user.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support.nspawn import Container, System, booted
from tests.support.system_bus import PERSON, TARGET_NAME, UID, install

pytestmark = [pytest.mark.root, pytest.mark.timeout(func_only=True)]  # the first test of a system makes it

AS_PERSON: Final = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
SECONDS: Final = 60.0
PRIVATE: Final = "unix:path=/run/dbus-private/system_bus_socket"


@pytest.fixture(scope="module")
def machine(system: System) -> Iterator[Container]:
    """Booted with the move in place: that it comes up at all is the first thing tested here."""
    with booted(install, TARGET_NAME, system) as container:
        yield container


def person(machine: Container, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of that user's, outside of any session."""
    return machine.run(*AS_PERSON, *command, check=False)


def main_pid(machine: Container, service: str) -> str:
    return machine.run("systemctl", "show", "--value", "--property=MainPID", f"{service}.service").stdout.strip()


def version(machine: Container) -> int:
    """systemd's."""
    return int(machine.run("systemctl", "--version").stdout.split()[1])


def in_session(machine: Container, script: str) -> list[str]:
    """The lines that a script says in a session of that user's."""
    run = ("systemd-run", "--quiet", "--wait", "--collect", "--pipe", f"--uid={PERSON}", "--property=PAMName=login")
    kind = "--setenv=XDG_SESSION_CLASS=user"  # without a terminal pam_systemd makes another, which cannot be locked
    return machine.run(*run, kind, "sh", "-c", script, check=False).stdout.splitlines()


def owner(machine: Container, name: str) -> str:
    """Whose the name is, as the bus says it: another connection has another one."""
    call = ("busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetNameOwner", "s", name)
    return machine.run(*call).stdout


def denied(machine: Container, request: str, member: str) -> dict[str, Any]:
    """The last event of a denied request that begins so, and is of that member; waits for it."""
    end = time.monotonic() + SECONDS
    while True:
        machine.run("journalctl", "--sync")
        lines = machine.run("journalctl", "--quiet", "--output=cat", "--unit=sockguard.service").stdout.splitlines()
        for line in reversed(lines):
            if line.startswith('{"event":"request_denied"'):
                event: dict[str, Any] = json.loads(line)
                if event["request"].startswith(request) and event["request"].endswith(f".{member}"):
                    return event
        assert time.monotonic() < end, f"no event of {request} {member}"
        time.sleep(0.05)


def test_it_boots(machine: Container) -> None:
    """All is up, nothing failed; the bus is where only root and sockguard go, and all clients come by sockguard but
    those that direct.conf and manager.conf are for.
    """
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"
    assert machine.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
    assert machine.run("stat", "-c", "%a %U %G", "/run/dbus-private").stdout == "710 root sockguard\n"
    assert machine.run("stat", "-c", "%a %G", "/run/dbus-private/system_bus_socket").stdout == "660 sockguard\n"
    asked = ("busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetConnectionUnixProcessID", "s")
    machine.run("systemctl", "start", "polkit.service")
    assert machine.run(*asked, "org.freedesktop.PolicyKit1").stdout == f"u {main_pid(machine, 'sockguard')}\n"
    assert machine.run(*asked, "org.freedesktop.login1").stdout == f"u {main_pid(machine, 'systemd-logind')}\n"
    assert machine.run(*asked, "org.freedesktop.systemd1").stdout == "u 1\n"
    assert person(machine, "busctl", f"--address={PRIVATE}", "list").returncode != 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("hostnamectl", "Operating System: Debian"),
        ("systemctl status --no-pager dbus.service", "Active: active (running)"),
        ("systemctl list-units --no-pager", "sockguard-dbus.socket"),
        ("systemctl list-timers --no-pager", "NEXT"),
        ("systemctl cat dbus.socket", "ListenStream=/run/dbus-private/system_bus_socket"),
        ("systemctl show --property=Id dbus.service", "Id=dbus.service"),
        ("loginctl list-seats", "seat0"),
        ("loginctl list-users", "No users."),
        ("timedatectl", "Time zone:"),
        ("localectl", "System Locale:"),
        ("busctl list --no-pager", "org.freedesktop.login1"),
        ("busctl tree org.freedesktop.login1", "/org/freedesktop/login1/seat/seat0"),
        ("busctl introspect org.freedesktop.hostname1 /org/freedesktop/hostname1", ".StaticHostname"),
    ],
)
def test_what_a_person_may(machine: Container, command: str, said: str) -> None:
    done = person(machine, *command.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_what_a_person_may_not(machine: Container) -> None:
    """To listen to others, to start and stop services: sockguard's word. What polkit decides about, polkit says."""
    assert "Access denied" in person(machine, "busctl", "monitor").stderr
    assert "Access denied" in person(machine, "systemctl", "stop", "dbus.service").stderr
    assert denied(machine, "call org.freedesktop.systemd1 /org/freedesktop/systemd1", "StopUnit")["uid"] == UID
    assert "Access denied" in person(machine, "systemd-run", "true").stderr
    for command in (("hostnamectl", "set-hostname", "x"), ("systemctl", "reboot")):
        assert "Interactive authentication required" in person(machine, *command).stderr


def test_services_that_no_rule_names_are_not_there(machine: Container) -> None:
    """Neither in a list nor to be called, and not started by the call."""
    name = "org.freedesktop.import1"
    assert name in machine.run("busctl", "list", "--no-pager").stdout
    assert name not in person(machine, "busctl", "list", "--no-pager").stdout
    call = ("busctl", "call", name, "/org/freedesktop/import1", f"{name}.Manager", "ListTransfers")
    assert "Access denied" in person(machine, *call).stderr
    active = machine.run("systemctl", "is-active", "systemd-importd.service", check=False)
    assert active.stdout == "inactive\n"


def test_root_may_do_everything(machine: Container) -> None:
    machine.run("hostnamectl", "set-hostname", "guarded")
    assert person(machine, "hostnamectl", "--static").stdout == "guarded\n"
    bus = ("dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus")
    machine.run(*bus, "org.freedesktop.DBus.ReloadConfig")
    machine.run("systemctl", "reload", "dbus.service")


def test_sessions_are_their_own(machine: Container) -> None:
    """A session is opened for the process that it is for. `su -l` asks through sockguard: it opens none where the bus
    would have to say which process that is, and its own where pam_systemd says so.
    """
    look = "cat /proc/self/cgroup; loginctl --no-legend list-sessions; echo number $XDG_SESSION_ID"
    said = [in_session(machine, look)]
    by_su = machine.run("su", "-l", PERSON, "-c", look, check=False).stdout.splitlines()
    if version(machine) < 255:
        event = denied(machine, "call org.freedesktop.login1 /org/freedesktop/login1", "CreateSession")
        assert event["request"].endswith(" org.freedesktop.login1.Manager.CreateSession")
        assert (event["user"], event["rule"]) == ("root", "sessions-of-the-caller")
        assert by_su[-1] == "number"
    else:
        said.append(by_su)
    for lines in said:
        number = lines[-1].removeprefix("number ")
        assert any(line.endswith(f"/user.slice/user-{UID}.slice/session-{number}.scope") for line in lines), lines
        assert any(line.split()[:3] == [number, str(UID), PERSON] for line in lines[:-1])
    others = machine.run("pgrep", "-u", "sockguard,sockguard-relay").stdout.split()
    for pid in (main_pid(machine, "sockguard"), *others):
        assert "/system.slice/sockguard.service" in machine.run("cat", f"/proc/{pid}/cgroup").stdout


def test_what_goes_by_the_process_does_not_work(machine: Container) -> None:
    """As README.md says; on the bus itself it works, and so it does with the session's number."""
    private = machine.path("/run/dbus-private")
    private.chmod(0o711)
    (private / "system_bus_socket").chmod(0o666)
    try:
        lines = in_session(
            machine,
            'say() { "$@" >/dev/null 2>&1; echo $?; }; '
            "say loginctl session-status; say loginctl lock-session; say loginctl session-status $XDG_SESSION_ID; "
            f"export DBUS_SYSTEM_BUS_ADDRESS={PRIVATE}; say loginctl session-status; say loginctl lock-session",
        )
    finally:
        (private / "system_bus_socket").chmod(0o660)
        private.chmod(0o710)
    assert lines == ["1", "1", "0", "0", "0"]


def test_reload_is_not_noticed_and_a_restart_is_got_over(machine: Container) -> None:
    """Services keep their connections over a reload; after a restart, and a kill, all is there again within seconds.
    logind, which would not come back on Debian 13, notices neither.
    """
    polkit = ("busctl", "introspect", "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority")
    names = ("org.freedesktop.PolicyKit1", "org.freedesktop.login1")
    machine.run("systemctl", "start", "polkit.service")
    before = [owner(machine, name) for name in names]
    machine.run("systemctl", "reload", "sockguard.service")
    assert [owner(machine, name) for name in names] == before
    for command in (("restart",), ("kill", "--signal=KILL")):
        machine.run("systemctl", *command, "sockguard.service")
        end = time.monotonic() + SECONDS
        while not all(
            person(machine, *command).returncode == 0
            for command in (polkit, ("loginctl", "list-seats"), ("systemctl", "is-active", "dbus.socket"))
        ):
            assert time.monotonic() < end, command
            time.sleep(0.1)
        assert owner(machine, "org.freedesktop.login1") == before[1]
    assert machine.run("systemctl", "is-active", "sockguard.service").stdout == "active\n"
