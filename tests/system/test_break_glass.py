"""SECURITY.md's commands that put a service back without sockguard, as printed, on a machine whose file is broken.

# sockguard --config /etc/sockguard/sockguard.toml
/etc/sockguard/sockguard.toml:1: ...
# (the three or four lines of SECURITY.md)
$ busctl list                       works for everybody again
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import REPO
from tests.support.nspawn import Container, System, booted
from tests.support.system_bus import TARGET_NAME, UID, install

pytestmark = [pytest.mark.root, pytest.mark.timeout(func_only=True)]  # the first test of a system makes it

BROKEN: Final = "[daemon\n"
SECONDS: Final = 60.0
LIST: Final = ("busctl", "list")


def commands(of: str) -> str:
    """The block of SECURITY.md that has this path in it."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (REPO / "SECURITY.md").read_text(), re.M | re.S)
    (block,) = [block for block in blocks if of in block]
    return str(block)


def as_user(machine: Container, *command: str, group: int = UID) -> int:
    """The exit status of that user's command."""
    run = ("setpriv", f"--reuid={UID}", f"--regid={group}", "--clear-groups")
    return machine.run(*run, *command, check=False).returncode


def wait_until(what: Callable[[], bool], text: str) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, text
        time.sleep(0.1)


def test_the_system_bus(system: System) -> None:
    with booted(install, TARGET_NAME, system) as machine:
        assert as_user(machine, *LIST) == 0
        machine.write("/etc/sockguard/sockguard.toml", BROKEN)
        assert machine.run("systemctl", "--no-block", "restart", "sockguard.service", check=False).returncode == 0
        wait_until(lambda: as_user(machine, "timeout", "5", *LIST) != 0, "the bus is still guarded")
        machine.run("sh", "-e", "-c", commands("dbus-private"))
        assert as_user(machine, *LIST) == 0
        member = ("org.freedesktop.hostname1", "/org/freedesktop/hostname1", "org.freedesktop.hostname1", "Hostname")
        assert as_user(machine, "busctl", "get-property", *member) == 0  # a service that the bus starts


def test_docker() -> None:
    """On this machine's own system, which has a real dockerd; its networks are left out, which a container has not."""

    def prepare(root: Path) -> None:
        (root / "etc/sockguard").mkdir(exist_ok=True)
        (root / "etc/sockguard/sockguard.toml").write_text(BROKEN)

    with booted(prepare) as machine:
        group = int(machine.run("getent", "group", "docker").stdout.split(":")[2])
        machine.run("install", "-d", "-m", "0710", "-g", "sockguard", "/run/docker-private")
        dockerd = ("dockerd", "--host=unix:///run/docker-private/docker.sock", "--data-root=/run/docker-data")
        without = ("--iptables=false", "--bridge=none", "--storage-driver=vfs")
        machine.run("systemd-run", "--unit=docker-test", "--quiet", *dockerd, *without)
        there = ("test", "-S", "/run/docker-private/docker.sock")
        wait_until(lambda: machine.run(*there, check=False).returncode == 0, "dockerd does not listen")
        assert machine.run("systemctl", "start", "sockguard.service", check=False).returncode != 0
        ping = ("curl", "--silent", "--fail", "--max-time", "20", "--unix-socket", "/run/docker.sock", "http://d/_ping")
        assert as_user(machine, *ping, group=group) != 0
        machine.run("sh", "-e", "-c", commands("docker-private"))
        assert as_user(machine, *ping, group=group) == 0
        assert as_user(machine, *ping) != 0  # the engine's own socket is for its group, as it was
