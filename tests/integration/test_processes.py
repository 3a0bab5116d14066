"""The process picture of a daemon that root has started: who runs as whom, with which rights, out of whose reach."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.clients import as_user, exchange
from tests.support.daemon import REPO, Daemon, running
from tests.support.identities import (
    REFUSED,
    Guard,
    Person,
    account,
    account_if_missing,
    capabilities,
    guarding,
    open_folder,
    reach_into,
    someone,
    status,
    wait_started,
)
from tests.support.services import serving

pytestmark = pytest.mark.root

SETUID_AND_SETGID = {6, 7}  # linux/capability.h
CHOWN, SYS_PTRACE = 0, 19
NOBODY = 65534


class Separated(NamedTuple):
    """A daemon as the package sets it up: accounts of its own, and a backend that only its group may reach."""

    daemon: Daemon
    folder: Path
    control: Person
    relay: Person


@pytest.fixture(scope="module")
def separated() -> Iterator[Separated]:
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        control, relay = (made.enter_context(account_if_missing(name)) for name in ("sockguard", "sockguard-relay"))
        service = made.enter_context(account(f"sgt{os.getpid()}service", "--system"))
        private = folder / "private"
        private.mkdir()
        made.enter_context(serving(private / "socket", mode=0o660))
        for path, mode in ((private / "socket", 0o660), (private, 0o710)):
            os.chown(path, service.uid, control.gid)
            path.chmod(mode)
        config = folder / "sockguard.toml"
        config.write_text(f"""
[daemon]
relays = 2
[proxy.echo]
listen = "{folder}/echo"
backend = "{private}/socket"
allow = [{{ users = ["*"] }}]
""")
        config.chmod(0o600)
        daemon = made.enter_context(running(config, folder / "echo"))
        wait_started(daemon)
        yield Separated(daemon, folder, control, relay)


def processes(daemon: Daemon) -> tuple[int, int, list[int]]:
    """The pids of (monitor, control, relays); there must be no others."""
    pids = daemon.pids()
    assert set(pids) == {"sockguard", "sockguard-ctl", "sockguard-relay"}
    (monitor,), (control,) = pids["sockguard"], pids["sockguard-ctl"]
    return monitor, control, pids["sockguard-relay"]


def ids(pid: int) -> tuple[set[int], set[int], set[int]]:
    """(uids, gids, supplementary groups): each real, effective, saved and for files."""
    found = status(pid)
    uids, gids, groups = (set(map(int, found[key].split())) for key in ("Uid", "Gid", "Groups"))
    return uids, gids, groups


def test_accounts(separated: Separated) -> None:
    """Control and relays each run under an account of their own, in all of its ids; the monitor stays root's."""
    daemon, _, control_account, relay_account = separated
    monitor, control, relays = processes(daemon)
    assert monitor == daemon.process.pid
    assert ids(monitor)[0] == {0}
    assert ids(control) == ({control_account.uid}, {control_account.gid}, {control_account.gid})
    assert len(relays) == 2
    for relay in relays:
        assert ids(relay) == ({relay_account.uid}, {relay_account.gid}, set())
    assert len({0, control_account.uid, relay_account.uid}) == 3
    assert "separation" not in daemon.stderr()
    assert "nobody" not in daemon.stderr()


def test_rights(separated: Separated) -> None:
    """Nobody holds more than is needed, nobody can gain anything, and none of the processes can be dumped."""
    monitor, control, relays = processes(separated.daemon)
    assert capabilities(monitor) == {
        "CapInh": set(),
        "CapPrm": SETUID_AND_SETGID,
        "CapEff": SETUID_AND_SETGID,
        "CapBnd": SETUID_AND_SETGID,
        "CapAmb": set(),
    }
    for pid in (control, *relays):
        assert not any(capabilities(pid).values())
    for pid in (monitor, control, *relays):
        assert status(pid)["NoNewPrivs"] == "1"
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # proc(5): root's where the process is not dumpable
        assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.M)


def test_processes_of_one_uid_cannot_reach_into_each_other(separated: Separated) -> None:
    """What a relay that was taken over would try on another relay, or anything of its uid on control, fails."""
    _, control, relays = processes(separated.daemon)
    for pid, person in ((control, separated.control), *((relay, separated.relay) for relay in relays)):
        assert reach_into(pid, person.uid, person.gid) == REFUSED


def test_relay_holds_nothing_that_it_does_not_need(separated: Separated) -> None:
    """No relay has a package of others in reach or mapped, nor the daemon's environment, nor the sink of audit events
    or the log open."""
    _, control, relays = processes(separated.daemon)
    assert "pydantic_core" in Path(f"/proc/{control}/maps").read_text()  # else the next line would prove nothing
    for relay in relays:
        maps = Path(f"/proc/{relay}/maps").read_text()
        assert not [name for name in ("pydantic", "trio", "structlog", "site-packages", "tomli") if name in maps]
        assert Path(f"/proc/{relay}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-I", b"-S"]
        assert Path(f"/proc/{relay}/environ").read_bytes() == b""
        assert {os.readlink(f"/proc/{relay}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}


# Arguments: a folder with the package, the protocols. A relay that, where it would enter its cage, prints what it has.
_MODULES_OF_A_RELAY = """
import os, socket, sys
sys.path.append(sys.argv[1])
from sockguard.relay import process, sandbox

def enter():
    print(*sys.modules, flush=True)
    raise SystemExit

sandbox.enter = enter
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.dup2(theirs.fileno(), 3)
process.main(["-", sys.argv[2]])
"""


@pytest.mark.parametrize("protocols", ["", "dbus", "http", "dbus,http"])
def test_relay_imports_the_standard_library_and_little_of_sockguard(folder: Path, protocols: str) -> None:
    """A relay's code imports no package but this one and the standard library, none of control's modules, and of the
    protocols only those that it serves."""
    shutil.copytree(REPO / "sockguard", folder / "sockguard", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-S", "-c", _MODULES_OF_A_RELAY, str(folder), protocols]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert tops == {"sockguard", "__main__"}
    parts = {name.split(".")[1] for name in modules if name.startswith("sockguard.")}
    assert parts - {"words"} == {"errors", "privsep", "protocols", "relay"}
    read = {name.split(".")[2] for name in modules if name.startswith("sockguard.protocols.")}
    assert read - {"base", "order", "registry"} == set(filter(None, protocols.split(",")))


def test_private_backend(separated: Separated) -> None:
    """A folder SERVICE:sockguard 0710 with a socket for the group: the daemon gets through, nobody else does."""
    daemon, folder, _, relay = separated
    assert stat.S_IMODE((folder / "private").stat().st_mode) == 0o710
    assert someone(4242)(folder / "echo") == "ping"
    assert daemon.wait_for("connection_closed", lambda event: event["uid"] == 4242)["bytes_from_backend"] == 4
    for uid, gid in ((4242, 4242), (relay.uid, relay.gid)):
        answer = as_user(lambda: exchange(folder / "private" / "socket"), uid, gid)
        assert answer.startswith("PermissionError")


def test_configuration_that_only_root_can_read(separated: Separated) -> None:
    """The monitor reads the file: control need not be able to."""
    config = separated.daemon.config
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    answer = as_user(lambda: config.read_text(), separated.control.uid, separated.control.gid)
    assert answer.startswith("PermissionError")


@pytest.mark.parametrize(
    ("extra", "more"),
    [
        ('[who.tools]\nexecutables = ["/usr/bin/true"]', {SYS_PTRACE}),
        ("[proxy.other]\nmode = 0o660\ngroup = 4243\nallow = [{ users = [0] }]", {CHOWN}),
    ],
    ids=["executables", "group"],
)
def test_capabilities_that_the_rules_ask_for(folder: Path, extra: str, more: set[int]) -> None:
    """Rules on programs take CAP_SYS_PTRACE and a socket's owner or group takes CAP_CHOWN, each only then."""
    with guarding(folder, f"[proxy.echo]\nallow = [{{ users = [0] }}]\n{extra}") as guard:
        monitor, control, relays = processes(guard.daemon)
        held = capabilities(monitor)
        assert held["CapEff"] == held["CapPrm"] == held["CapBnd"] == SETUID_AND_SETGID | more
        for pid in (control, *relays):
            assert not any(capabilities(pid).values())
        if more == {CHOWN}:
            found = (folder / "other").stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 4243, 0o660)


def test_without_accounts_of_its_own(folder: Path) -> None:
    """Control stays uid 0 without a capability, relays become nobody, and standard error says both with the remedy."""
    passwd = Path("/etc/passwd").read_text().splitlines(keepends=True)
    (folder / "passwd").write_text("".join(line for line in passwd if not line.startswith("sockguard")))
    start = folder / "start"
    command = f'mount --bind {folder}/passwd /etc/passwd && exec {sys.executable} "$@"'
    start.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{command}' sh \"$@\"\n")
    start.chmod(0o755)
    config = "[proxy.echo]\nallow = [{ users = [4242] }]"
    with guarding(folder, config, executable=str(start)) as guard:
        guard.admits("echo", someone(4242), rule="echo.allow[0]", uid=4242)
        monitor, control, relays = processes(guard.daemon)
        assert ids(control)[0] == {0}
        assert not any(capabilities(control).values())
        for pid in (monitor, control):  # nor has a root without capabilities a way into them
            assert reach_into(pid, 0, 0) == REFUSED
        for relay in relays:
            assert ids(relay) == ({NOBODY}, {NOBODY}, set())
            assert not any(capabilities(relay).values())
        check_warnings(guard)


def check_warnings(guard: Guard) -> None:
    said = guard.daemon.stderr()
    assert "control runs as root, without capabilities, because there is no user sockguard" in said
    assert "relays run as nobody, because there is no user sockguard-relay" in said
    assert "useradd --system" in said
