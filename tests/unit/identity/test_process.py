"""What is read of real processes under /proc, and what must come out as unknown."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sockguard.identity import process
from sockguard.identity.peer import Unknown

if TYPE_CHECKING:
    from tests.unit.identity.conftest import Peers

NO_NAMESPACES = "this machine lets nobody make namespaces"


@contextlib.contextmanager
def pinned(pid: int) -> Iterator[int]:
    """Open a pidfd for a test."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def facts(accepted: socket.socket) -> tuple[str | Unknown, str | Unknown]:
    """Ask for everything, as the daemon does: the program's file is looked at only after it is known by its path."""
    found = process.program(accepted)
    cgroup = process.cgroup_of_peer(accepted)
    if isinstance(found, Unknown):
        return found, cgroup
    try:
        return process.compare(found.pidfd, found.pid, found.path) or found.path, cgroup
    finally:
        os.close(found.pidfd)


def own_cgroup() -> str | Unknown:
    """Our children are in our own cgroup."""
    return process.cgroup_path(Path("/proc/self/cgroup").read_text())


def reason(fact: object) -> str:
    """The reason of a fact that must be unknown."""
    assert isinstance(fact, Unknown), fact
    return fact.reason


def test_program_and_cgroup_of_a_peer(peers: Peers) -> None:
    """The path is that of the program that the peer runs, the cgroup the one that it is in."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, _):
        assert facts(accepted) == (str(program), own_cgroup())


def test_a_programs_file_is_not_looked_at_unasked(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is /proc's word; where it leads nobody has looked."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, child):
        monkeypatch.setattr(os, "stat", None)
        found = process.program(accepted)
        assert isinstance(found, process.Program)
        assert (found.pid, found.path) == (child.pid, str(program))
        os.close(found.pidfd)


def test_a_peer_that_goes_while_its_program_is_looked_at(peers: Peers) -> None:
    """What was found out is not its own any more."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, child):
        found = process.program(accepted)
        assert isinstance(found, process.Program)
        child.kill()
        child.wait()
        assert process.compare(found.pidfd, found.pid, found.path) == process.GONE
        os.close(found.pidfd)


def test_peer_that_has_gone(peers: Peers) -> None:
    """Nothing is said of a peer that exited right after it connected, though its pid is known."""
    with peers.forked(after=lambda: os._exit(0)) as (accepted, pid):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert facts(accepted) == (process.GONE, process.GONE)
        os.waitid(os.P_PID, pid, os.WEXITED)
        assert facts(accepted) == (process.GONE, process.GONE)


def test_process_that_ends_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before the process ended is not used: the pid may have been another's by then."""
    child = subprocess.Popen(["sleep", "600"])
    read = process._executable

    def end_then_read(pid: int) -> str | Unknown:
        path = read(pid)
        child.kill()
        child.wait()
        return path

    monkeypatch.setattr(process, "_executable", end_then_read)
    with pinned(child.pid) as pidfd:
        assert process.executable(pidfd) == process.GONE


def test_reused_pid_is_not_read_as_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid that now is another process's tells nothing: the pidfd of the first process knows that it has gone."""
    first = subprocess.Popen(["sleep", "600"])
    with pinned(first.pid) as pidfd:
        first.kill()
        first.wait()
        monkeypatch.setattr(process, "_pid_of", lambda _pidfd: os.getpid())  # as if we had been given its pid
        assert process.executable(pidfd) == process.GONE
        assert process.cgroup(pidfd) == process.GONE


def test_pidfd_of_a_reaped_process() -> None:
    """fdinfo's "Pid: -1" is "gone"."""
    child = subprocess.Popen(["true"])
    with pinned(child.pid) as pidfd:
        child.wait()
        assert process._pid_of(pidfd) == -1
        assert process.executable(pidfd) == process.GONE


def test_other_fd_is_no_pidfd() -> None:
    """An fd that is no pidfd tells nothing, rather than something of somebody."""
    with open(os.devnull) as file:
        assert isinstance(process.executable(file.fileno()), Unknown)


def test_deleted_program(peers: Peers) -> None:
    """A program whose file is gone has no path."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, _):
        program.unlink()
        assert "cannot be found at that path" in reason(facts(accepted)[0])


def test_deleted_program_with_a_file_at_the_misleading_name(peers: Peers) -> None:
    """The kernel's suffix " (deleted)" must not lead to a file that is really called so."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, _):
        program.unlink()
        peers.program("program (deleted)")
        assert "another file is at the path" in reason(facts(accepted)[0])


def test_renamed_program_goes_by_its_new_path(peers: Peers) -> None:
    """Only the file counts: the path is where it is now."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, _):
        program.rename(program.with_name("other"))
        assert facts(accepted)[0] == str(program.with_name("other"))


def test_replaced_program(peers: Peers) -> None:
    """A new file at the old path is not what runs: an upgrade under a running program makes it unknown."""
    program = peers.program()
    with peers.executed(program, "600") as (accepted, _):
        peers.program("new").rename(program)
        assert isinstance(facts(accepted)[0], Unknown)


def test_file_over_the_path_while_it_is_read(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that names another file than the one that runs is not believed."""
    program, decoy = peers.program(), peers.program("decoy")
    with peers.executed(program, "600") as (accepted, _):
        monkeypatch.setattr(os, "readlink", lambda _link: str(decoy))
        assert "another file is at the path" in reason(facts(accepted)[0])


def test_path_with_odd_bytes(peers: Peers) -> None:
    """Bytes that are no UTF-8, and newlines, are kept in the path and escaped in reasons."""
    program = peers.program("odd\udcff\nname")
    with peers.executed(program, "600") as (accepted, _):
        assert facts(accepted)[0] == str(program)
        program.unlink()
        assert reason(facts(accepted)[0]).isprintable()


def test_process_that_proc_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """hidepid hides a living process: unknown, and not taken for one that has gone."""
    child = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(process, "_pid_of", lambda _pidfd: 2**22 + 1)  # above every pid: /proc has no such folder
    with pinned(child.pid) as pidfd:
        try:
            assert process.executable(pidfd) == process.HIDDEN
            assert process.cgroup(pidfd) == process.HIDDEN
        finally:
            child.kill()
            child.wait()


def test_no_fd_left_for_a_pidfd(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free fd the facts are unknown; the accept path sees no exception."""

    def refuse(_sock: socket.socket) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(process, "peer_pidfd", refuse)
    with peers.forked() as (accepted, _):
        assert all("Too many open files" in reason(fact) for fact in facts(accepted))


def test_foreign_pid_namespace_without_a_pidfd(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.5, a peer with pid 0 cannot be pinned: said so, and not taken for one that has gone."""
    monkeypatch.setattr(process, "peer_pidfd", lambda _sock: None)
    with peers.forked() as (accepted, pid):
        for shown, expected in ((0, process.FOREIGN), (pid, process.GONE)):
            monkeypatch.setattr(process, "credentials", lambda _, shown=shown: (shown, 1, 1))
            assert facts(accepted) == (expected, expected)


def test_facts_leave_no_fd_behind(peers: Peers) -> None:
    """Each look closes what it opened."""
    with peers.forked() as (accepted, _):
        facts(accepted)
        before = os.listdir("/proc/self/fd")
        facts(accepted)
        assert os.listdir("/proc/self/fd") == before


def test_running_peer_has_the_ids_and_facts_of_the_process(peers: Peers) -> None:
    """A live process is described as it would connect now."""
    program = peers.program()
    with peers.executed(program, "600") as (_, child):
        peer = process.running_peer(child.pid)
    assert (peer.pid, peer.uid, peer.gid) == (child.pid, os.geteuid(), os.getegid())
    assert peer.groups == frozenset([os.getegid(), *os.getgroups()])
    assert peer.executable == str(program)
    assert peer.cgroup == own_cgroup()


def test_running_peer_that_does_not_run() -> None:
    """A pid of nobody is an error of its own."""
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        process.running_peer(child.pid)


CGROUPS = {
    "unified": ("0::/system.slice/cron.service\n", "/system.slice/cron.service"),
    "unified root": ("0::/\n", "/"),
    "hybrid": ("9:name=systemd:/system.slice/a.service\n4:memory:/else\n0::/\n", "/system.slice/a.service"),
    "hybrid with both": ("1:name=systemd:/old.service\n0::/system.slice/a.service\n", "/system.slice/a.service"),
    "version 1": ("4:memory:/else\n1:name=systemd:/user.slice/x\n", "/user.slice/x"),
    "hybrid, both in the root": ("1:name=systemd:/\n0::/\n", "/"),
    "colons in a name": ("0::/system.slice/a:b.service\n", "/system.slice/a:b.service"),
    "line separator in a name": ("0::/user.slice/\x85 0::/b\n", "/user.slice/\x85 0::/b"),
    "dots at the start of a name": ("5:memory:/x\n0::/..a.slice/b.service\n", "/..a.slice/b.service"),
}


@pytest.mark.parametrize(("text", "path"), CGROUPS.values(), ids=CGROUPS)
def test_cgroup_path(text: str, path: str) -> None:
    """The unified hierarchy counts, or systemd's own where the unified one is not in use."""
    assert process.cgroup_path(text) == path


@pytest.mark.parametrize("text", ["", "\n", "4:memory:/x\n", "0::\n", "0::/..\n", "0::/../../a.service\n", "0::x\n"])
def test_cgroup_that_tells_nothing(text: str) -> None:
    """No hierarchy of systemd's, and a path outside of our cgroup namespace, are unknown."""
    assert isinstance(process.cgroup_path(text), Unknown)


def test_cgroup_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is cut short is not read as if it were whole."""
    monkeypatch.setattr(process, "CGROUP_LIMIT", len(Path("/proc/self/cgroup").read_bytes()))  # there may be more
    with pinned(os.getpid()) as pidfd:
        assert "too long" in reason(process.cgroup(pidfd))


def _unshare(*command: str) -> None:
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, *command, "true"], capture_output=True, check=False).returncode:
        pytest.skip(NO_NAMESPACES)


@pytest.mark.root
def test_program_mounted_over_a_trusted_path(peers: Peers) -> None:
    """A peer mounts its own file over a trusted path, in a mount namespace of its own: not the trusted program."""
    _unshare("--mount")
    trusted, evil = peers.program("trusted"), peers.program("evil")
    script = f"mount --bind '{evil}' '{trusted}' && exec '{trusted}' 600"
    with peers.executed("unshare", "--mount", "sh", "-c", script) as (accepted, child):
        assert _path_becomes(child.pid, trusted)
        assert "another file is at the path" in reason(facts(accepted)[0])


@pytest.mark.root
def test_program_in_a_mount_namespace_at_an_honest_path(peers: Peers) -> None:
    """A mount namespace alone is no fault: the same file at the same path is known (ordinary hardened services)."""
    _unshare("--mount")
    program = peers.program()
    with peers.executed("unshare", "--mount", program, "600") as (accepted, child):
        assert _path_becomes(child.pid, program)
        assert facts(accepted)[0] == str(program)


@pytest.mark.root
def test_peer_of_another_user_without_ptrace(peers: Peers) -> None:
    """Without CAP_SYS_PTRACE another user's program is unknown, and its cgroup is known all the same."""
    with peers.forked(before=lambda: os.setresuid(200_001, 200_001, 200_001)) as (_, pid):
        told, tell = os.pipe()
        watcher = os.fork()
        if watcher == 0:
            try:
                os.setresuid(200_002, 200_002, 200_002)
                pidfd = os.pidfd_open(pid)
                answer = f"{process.executable(pidfd)!r}\n{process.cgroup(pidfd)!r}"
                os.write(tell, answer.encode())
            finally:
                os._exit(0)
        os.close(tell)
        with open(told) as file:
            program, path = file.read().split("\n")
        os.waitpid(watcher, 0)
    assert program == repr(process.NEEDS_PTRACE)
    assert path == repr(own_cgroup())


@pytest.mark.root
def test_watcher_in_another_pid_namespace(peers: Peers) -> None:
    """A peer outside of our pid namespace has pid 0 in our /proc: unknown, and nothing is read under a wrong pid."""
    _unshare("--mount", "--pid", "--fork", "--mount-proc")
    code = (
        "import socket;from sockguard.identity.process import cgroup_of_peer, program;"
        "from sockguard.identity.peercred import credentials as c;"
        "s=socket.socket(fileno=0);print(c(s)[0], program(s), cgroup_of_peer(s), sep='\\n')"
    )
    with peers.forked() as (accepted, _):
        python = shutil.which("python3", path=os.path.dirname(sys.executable)) or "python3"
        answer = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--mount-proc", python, "-c", code],
            cwd=Path(process.__file__).parents[2],  # where "sockguard" is importable from
            stdin=accepted.fileno(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert answer.split("\n")[:3] == ["0", str(process.FOREIGN), str(process.FOREIGN)]


@pytest.mark.root
def test_running_peer_goes_by_effective_ids(peers: Peers) -> None:
    """As a connection would: the effective ids, and all groups."""

    def become() -> None:
        os.setgroups(range(200_100, 200_400))
        os.setresgid(200_011, 200_012, 200_013)
        os.setresuid(200_001, 200_002, 200_003)

    with peers.forked(before=become) as (_, pid):
        peer = process.running_peer(pid)
    assert (peer.uid, peer.gid) == (200_002, 200_012)
    assert peer.groups == frozenset([200_012, *range(200_100, 200_400)])


def _path_becomes(pid: int, program: Path) -> bool:
    """Wait until a process has executed the program."""
    for _ in range(3000):
        if os.readlink(f"/proc/{pid}/exe") == str(program):
            return True
        time.sleep(0.01)
    return False
