"""The process picture of a daemon that root has started: who runs as whom, with which rights, out of whose reach."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from sockguard.carriers import pool
from sockguard.sandbox import policy
from tests.support.clients import as_user, connect, exchange
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
    state,
    status,
    wait_started,
    wait_until,
)
from tests.support.passing import parent_of
from tests.support.services import serving

pytestmark = pytest.mark.root

SECCOMP = "2" if os.uname().machine in policy.ARCHITECTURES else "0"
"""Seccomp: of proc_pid_status(5), for a process in a cage."""
KEPT = {6, 7, 18}  # CAP_SETUID, CAP_SETGID, CAP_SYS_CHROOT (linux/capability.h)
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


class Processes(NamedTuple):
    """The pids of a daemon. masters: by who has started it; carriers: by the relay whose they are."""

    monitor: int
    control: int
    relays: list[int]
    masters: dict[int, int]
    carriers: dict[int, list[int]]

    def served(self) -> dict[int, list[int]]:
        """The processes for passed descriptors, by the process that they serve."""
        return {pid: [master, *self.carriers.get(pid, [])] for pid, master in self.masters.items()}

    def caged(self) -> list[int]:
        return [*self.relays, *(pid for several in self.served().values() for pid in several)]


def processes(daemon: Daemon) -> Processes:
    """All of them; there must be no others."""
    pids = daemon.pids()
    assert set(pids) == {"sockguard", "sockguard-ctl", "sockguard-relay", "sockguard-fds"}
    (monitor,), (control,) = pids["sockguard"], pids["sockguard-ctl"]
    relays = pids["sockguard-relay"]
    assert {parent_of(pid) for pid in (control, *relays)} == {monitor}
    parents = {pid: parent_of(pid) for pid in pids["sockguard-fds"] if state(pid) not in ("", "Z")}
    masters = {parent: pid for pid, parent in parents.items() if parent not in parents}
    assert sorted(masters) == sorted([control, *relays])
    owners = {master: owner for owner, master in masters.items()}
    carriers: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        if parent in parents:
            carriers.setdefault(owners[parent], []).append(pid)
    assert len(masters) + sum(map(len, carriers.values())) == len(parents)
    return Processes(monitor, control, relays, masters, carriers)


@pytest.fixture(scope="module")
def passing(separated: Separated) -> Iterator[Processes]:
    """Its processes when each relay has had to pass a descriptor, so that there is a carrier of each; and when control
    has had to dispose of some, and what has done so has ended.
    """
    with ExitStack() as held:

        def passed(*, at_once: bool) -> Processes:
            client = held.enter_context(connect(separated.folder / "echo"))
            if not at_once:  # a relay has it then, and it is no more control's to close
                client.send(b"ping")
                assert client.recv(10) == b"ping"
            socket.send_fds(client, [b"ping"], [0])
            assert client.recv(10) == b"ping"
            return processes(separated.daemon)

        def is_used() -> bool:
            found = passed(at_once=False)
            return {*found.relays} <= {*found.carriers}

        def is_quiet() -> bool:
            found = processes(separated.daemon)
            return {*found.relays} == {*found.carriers}

        for _ in range(10):
            passed(at_once=True)
        wait_until(is_used, "each relay has a carrier")
        wait_until(is_quiet, "nothing is left of what has disposed of sockets")
        yield processes(separated.daemon)


def ids(pid: int) -> tuple[set[int], set[int], set[int]]:
    """(uids, gids, supplementary groups): each real, effective, saved and for files."""
    found = status(pid)
    uids, gids, groups = (set(map(int, found[key].split())) for key in ("Uid", "Gid", "Groups"))
    return uids, gids, groups


def test_accounts(separated: Separated, passing: Processes) -> None:
    """Control and relays each run under an account of their own, in all of its ids; the monitor stays root's. What
    serves one of them runs under the same.
    """
    daemon, _, control_account, relay_account = separated
    monitor, control, relays = passing.monitor, passing.control, passing.relays
    assert monitor == daemon.process.pid
    assert ids(monitor)[0] == {0}
    assert len(relays) == 2
    for pid in (control, *passing.served()[control]):
        assert ids(pid) == ({control_account.uid}, {control_account.gid}, {control_account.gid})
    for relay in relays:
        for pid in (relay, *passing.served()[relay]):
            assert ids(pid) == ({relay_account.uid}, {relay_account.gid}, set())
    assert len({0, control_account.uid, relay_account.uid}) == 3
    assert "separation" not in daemon.stderr()
    assert "nobody" not in daemon.stderr()


def test_rights(passing: Processes) -> None:
    """Nobody holds more than is needed, nobody can gain anything, and none of the processes can be dumped. What reads
    what peers send, or receives what they pass, is in a cage.
    """
    monitor, control = passing.monitor, passing.control
    assert capabilities(monitor) == {
        "CapInh": set(),
        "CapPrm": KEPT,
        "CapEff": KEPT,
        "CapBnd": KEPT,
        "CapAmb": set(),
    }
    for pid in (control, *passing.caged()):
        assert not any(capabilities(pid).values())
    for pid in (monitor, control, *passing.caged()):
        assert status(pid)["NoNewPrivs"] == "1"
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # proc(5): root's where the process is not dumpable
        assert re.search(r"^Max core file size +0 +0 ", limits(pid), re.M)
    for pid in passing.caged():
        assert status(pid)["Seccomp"] == SECCOMP
        assert re.fullmatch(r"/proc/\d+/fdinfo", os.readlink(f"/proc/{pid}/root"))  # sandbox/root.py
        assert os.readlink(f"/proc/{pid}/cwd") == os.readlink(f"/proc/{pid}/root")
        assert status(pid)["Threads"] == "1"  # a filter holds for the thread that enters it
        assert re.search(r"^Max file size +0 +0 ", limits(pid), re.M)


def limits(pid: int) -> str:
    return Path(f"/proc/{pid}/limits").read_text()


def test_processes_of_one_uid_cannot_reach_into_each_other(separated: Separated, passing: Processes) -> None:
    """What a relay that was taken over would try on another relay, or on a process that has what clients have passed,
    or anything of its uid on control, fails.
    """
    for owner, several in passing.served().items():
        person = separated.control if owner == passing.control else separated.relay
        for pid in (owner, *several):
            assert reach_into(pid, person.uid, person.gid) == REFUSED


def opened(pid: int) -> dict[int, str]:
    """What its descriptors are: "/dev/null", "socket", "pipe", "[eventpoll]"; a path for any other file."""
    links = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return {fd: re.sub(r"^(?:anon_inode:)?(\w+|\[\w+\])(?::\[\d+\])?$", r"\1", link) for fd, link in links.items()}


def test_relay_holds_nothing_that_it_does_not_need(passing: Processes) -> None:
    """No relay has a package of others in reach or mapped, nor the daemon's environment, nor the sink of audit events
    or the log open; nor has what serves it, or control."""
    assert "pydantic_core" in Path(f"/proc/{passing.control}/maps").read_text()  # else the next line proves nothing
    for pid in passing.caged():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert not [name for name in ("pydantic", "trio", "structlog", "site-packages", "tomli") if name in maps]
        assert {opened(pid)[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    for relay in passing.relays:
        for pid in (relay, *passing.served()[relay]):
            assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-I", b"-S"]
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""


def test_what_serves_others_has_its_channels_open_and_nothing_else(passing: Processes) -> None:
    """A master has two to who has started it, what it waits with, and one for each carrier that it can still start;
    a carrier has its channel. None has another's, a client's or a service's.
    """
    for owner, master in passing.masters.items():
        carriers = passing.carriers.get(owner, [])
        slots = 0 if owner == passing.control else pool.SLOTS - len(carriers)
        assert Counter(opened(master).values()) == {"/dev/null": 3, "[eventpoll]": 1, "socket": 2 + slots}
        for carrier in carriers:
            assert Counter(opened(carrier).values()) == {"/dev/null": 3, "socket": 1}
        shared = [links(pid) & links(other) for pid in (owner, master) for other in carriers]
        assert not any(each - {"/dev/null"} for each in shared)


def links(pid: int) -> set[str]:
    return {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


# Arguments: a folder with the package, the protocols. A relay that, where it would enter its cage, prints what it has.
_MODULES_OF_A_RELAY = """
import fcntl, os, socket, sys
sys.path.append(sys.argv[1])
from sockguard import sandbox
from sockguard.carriers.master import Master
from sockguard.relay import process

def enter(**_):
    print(*sys.modules, file=said, flush=True)
    os._exit(0)

said = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD, 10), "w")
sandbox.enter = enter
Master.wait_ready = lambda _: None
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pipe = os.pipe()
os.dup2(theirs.fileno(), 3)
os.dup2(pipe[1], 4)
Master.passing = lambda _: []
process.main(["-", sys.argv[2]], Master.__new__(Master))
"""

# Arguments: a folder with the package, the role. What boot.py has imported where it forks a master.
_MODULES_OF_A_MASTER = """
import os, sys
sys.path.append(sys.argv[1])

def start(*_):
    print(*sys.modules, flush=True)
    os._exit(0)

from sockguard import boot
from sockguard.carriers import master

master.start = start
sys.argv = ["boot.py", sys.argv[2], "-", ""]
boot.main()
"""


def modules(folder: Path, script: str, argument: str) -> tuple[set[str], set[str], set[str]]:
    """What that script has imported: top names but those of the standard library, sockguard's parts, its protocols."""
    shutil.copytree(REPO / "sockguard", folder / "sockguard", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-S", "-c", script, str(folder), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    parts = {name.split(".")[1] for name in names if name.startswith("sockguard.")}
    read = {name.split(".")[2] for name in names if name.startswith("sockguard.protocols.")}
    return tops, parts, read


@pytest.mark.parametrize("protocols", ["", "dbus", "http", "dbus,http"])
def test_relay_imports_the_standard_library_and_little_of_sockguard(folder: Path, protocols: str) -> None:
    """A relay's code imports no package but this one and the standard library, none of control's modules, and of the
    protocols only those that it serves."""
    tops, parts, read = modules(folder, _MODULES_OF_A_RELAY, protocols)
    assert tops == {"sockguard", "__main__"}
    assert parts - {"words"} == {"carriers", "errors", "privsep", "protocols", "relay", "sandbox"}
    assert read - {"base", "order", "registry"} == set(filter(None, protocols.split(",")))


@pytest.mark.parametrize("role", ["relay", "control"])
def test_what_is_forked_first_has_imported_nearly_nothing(folder: Path, role: str) -> None:
    """Masters and carriers go on with what is imported when they are forked: nothing that reads a protocol, a rule or a
    configuration, and nothing of the role that they serve.
    """
    tops, parts, read = modules(folder, _MODULES_OF_A_MASTER, role)
    assert tops == {"sockguard", "__main__"}
    assert parts == {"boot", "carriers", "errors", "privsep", "sandbox"}
    assert read == set()


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
        found = processes(guard.daemon)
        held = capabilities(found.monitor)
        assert held["CapEff"] == held["CapPrm"] == held["CapBnd"] == KEPT | more
        for pid in (found.control, *found.caged()):
            assert not any(capabilities(pid).values())
        if more == {CHOWN}:
            made = (folder / "other").stat()
            assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (0, 4243, 0o660)


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
        found = processes(guard.daemon)
        served = found.served()
        for pid in (found.control, *served[found.control]):
            assert ids(pid)[0] == {0}
            assert not any(capabilities(pid).values())
            assert reach_into(pid, 0, 0) == REFUSED  # nor has a root without capabilities a way into them
        assert reach_into(found.monitor, 0, 0) == REFUSED
        for relay in found.relays:
            for pid in (relay, *served[relay]):
                assert ids(pid) == ({NOBODY}, {NOBODY}, set())
                assert not any(capabilities(pid).values())
        check_warnings(guard)


def check_warnings(guard: Guard) -> None:
    said = guard.daemon.stderr()
    assert "control runs as root, without capabilities, because there is no user sockguard" in said
    assert "relays run as nobody, because there is no user sockguard-relay" in said
    assert "useradd --system" in said
