"""What the kernel says about real peers."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from sockguard.identity import peercred
from sockguard.identity.peer import Unknown

if TYPE_CHECKING:
    from tests.unit.identity.conftest import Peers


class OldKernelSocket(socket.socket):
    """An accepted socket as on a kernel before 6.5. A fake, as the kernel that runs the tests may be newer."""

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:  # type: ignore[override]
        """Refuse SO_PEERPIDFD as such a kernel does."""
        if option == peercred.SO_PEERPIDFD:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return super().getsockopt(level, option, size) if size else super().getsockopt(level, option)


def pid_in(pidfd: int) -> int:
    """Return the pid that a pidfd's fdinfo names."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def test_credentials_are_those_of_the_process_that_connected(peers: Peers) -> None:
    """Pid, uid and gid are the child's, not ours."""
    with peers.forked() as (accepted, pid):
        assert peercred.credentials(accepted) == (pid, os.geteuid(), os.getegid())


def test_socket_without_peer_has_no_credentials() -> None:
    """The kernel's "nobody there" (uid -1) is an error, never an identity."""
    with socket.socket(socket.AF_UNIX) as alone, pytest.raises(OSError, match="not connected"):
        peercred.credentials(alone)


def test_supplementary_groups_of_an_ordinary_peer(peers: Peers) -> None:
    """The groups are those that the process has."""
    with peers.forked() as (accepted, _):
        assert peercred.supplementary_groups(accepted) == frozenset(os.getgroups())


def test_groups_of_a_socket_without_peer_are_unknown() -> None:
    """What the kernel does not tell is unknown, never "no groups"."""
    with socket.socket(socket.AF_UNIX) as alone:
        assert isinstance(peercred.supplementary_groups(alone), Unknown)


def test_label_is_text_or_unknown_with_its_reason(peers: Peers) -> None:
    """Without a labelling security module the label is unknown and says why; with one, it has no NUL."""
    with peers.forked() as (accepted, _):
        label = peercred.label(accepted)
    if isinstance(label, Unknown):
        assert label.reason
    else:
        assert label
        assert "\0" not in label


@pytest.mark.parametrize("old_kernel", [False, True])
def test_pidfd_pins_the_peer(peers: Peers, old_kernel: bool) -> None:
    """The pidfd is that of the process that connected; it closes on exec."""
    with peers.forked() as (accepted, pid):
        sock = OldKernelSocket(fileno=accepted.detach()) if old_kernel else accepted
        with sock:
            pidfd = peercred.peer_pidfd(sock)
            assert pidfd is not None
            try:
                assert pid_in(pidfd) == pid
                assert not os.get_inheritable(pidfd)
                assert peercred.alive(pidfd)
            finally:
                os.close(pidfd)


@pytest.mark.parametrize("old_kernel", [False, True])
@pytest.mark.parametrize("reaped", [False, True])
def test_peer_that_exits_right_after_connect_is_gone(peers: Peers, old_kernel: bool, reaped: bool) -> None:
    """A zombie and a reaped process have no pidfd to read by."""
    with peers.forked(after=lambda: os._exit(0)) as (accepted, pid):
        os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        sock = OldKernelSocket(fileno=accepted.detach()) if old_kernel else accepted
        with sock:
            assert peercred.peer_pidfd(sock) is None
            assert peercred.credentials(sock)[:2] == (pid, os.geteuid())


def test_no_fd_is_left_behind_by_a_peer_that_has_gone(peers: Peers) -> None:
    """The pidfd of a process that has gone is closed again."""
    with peers.forked(after=lambda: os._exit(0)) as (accepted, pid):
        os.waitid(os.P_PID, pid, os.WEXITED)
        before = os.listdir("/proc/self/fd")
        peercred.peer_pidfd(accepted)
        assert os.listdir("/proc/self/fd") == before


def test_old_kernel_does_not_take_a_later_process_for_the_peer(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that started after the look has taken the pid over: it is not the peer."""
    with peers.forked() as (accepted, _), OldKernelSocket(fileno=accepted.detach()) as sock:
        monkeypatch.setattr(time, "clock_gettime", lambda _clock: 0.0)
        assert peercred.peer_pidfd(sock) is None


def test_start_time_is_read_behind_a_misleading_name() -> None:
    """A program may call itself ") R 1 1"; the start time is still the 22nd field."""
    child = subprocess.Popen(
        [sys.executable, "-c", "open('/proc/self/comm','w').write(') R 1 1 1'); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout
        child.stdout.readline()
        with open(f"/proc/{child.pid}/stat") as file:
            text = file.read()
        assert text.count(")") == 2
        assert peercred._start_time(child.pid) == int(text.split(") ")[-1].split()[19])
        child.communicate(b"\n")


def test_thread_id_names_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """pidfd_open's EINVAL, for a pid that has become a thread's, means "gone"."""

    def refuse(_pid: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert peercred._pidfd_by_pid(os.getpid()) is None


def test_running_out_of_fds_is_an_error_and_not_gone(peers: Peers) -> None:
    """EMFILE is told apart from a peer that has gone."""
    with peers.forked() as (accepted, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        with contextlib.ExitStack() as stack:
            for number in range(highest + 1):  # fill the gaps below the limit
                with contextlib.suppress(OSError):
                    os.fstat(number)
                    continue
                null = os.open("/dev/null", os.O_RDONLY)
                stack.callback(os.close, null)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    peercred.peer_pidfd(accepted)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_alive_follows_the_process() -> None:
    """A pidfd says when its process has exited, also before it is reaped."""
    child = subprocess.Popen(["sleep", "600"])
    pidfd = os.pidfd_open(child.pid)
    try:
        assert peercred.alive(pidfd)
        child.kill()
        select.select([pidfd], [], [], 60)
        assert not peercred.alive(pidfd)
    finally:
        os.close(pidfd)
        child.wait()


@pytest.mark.root
def test_all_of_three_hundred_groups_are_seen(peers: Peers) -> None:
    """Groups that do not fit into Python's 1024 bytes are read all the same."""
    wanted = list(range(200_000, 200_300))
    with peers.forked(before=lambda: os.setgroups(wanted)) as (accepted, _):
        assert peercred.supplementary_groups(accepted) == frozenset(wanted)


@pytest.mark.root
def test_as_many_groups_as_the_kernel_allows(peers: Peers) -> None:
    """The bound is the kernel's own: NGROUPS_MAX groups are not too many."""
    wanted = list(range(200_000, 200_000 + peercred.NGROUPS_MAX))
    with peers.forked(before=lambda: os.setgroups(wanted)) as (accepted, _):
        assert peercred.supplementary_groups(accepted) == frozenset(wanted)


@pytest.mark.root
def test_more_than_the_bound_is_unknown(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound nothing is cut short: the groups are unknown."""
    monkeypatch.setattr(peercred, "NGROUPS_MAX", 299)
    with peers.forked(before=lambda: os.setgroups(range(200_000, 200_300))) as (accepted, _):
        assert isinstance(peercred.supplementary_groups(accepted), Unknown)


@pytest.mark.root
def test_uids_above_two_to_the_31_are_unsigned(peers: Peers) -> None:
    """The highest uid and gid arrive as they are, and groups too."""

    def become() -> None:
        os.setgroups([3_000_000_000])
        os.setresgid(4_294_967_293, 4_294_967_293, 4_294_967_293)
        os.setresuid(4_294_967_294, 4_294_967_294, 4_294_967_294)

    with peers.forked(before=become) as (accepted, pid):
        assert peercred.credentials(accepted) == (pid, 4_294_967_294, 4_294_967_293)
        assert peercred.supplementary_groups(accepted) == frozenset([3_000_000_000])


@pytest.mark.root
def test_effective_ids_count_and_not_real_ones(peers: Peers) -> None:
    """A set-uid client is the user whose rights it uses."""

    def become() -> None:
        os.setresgid(200_001, 200_002, 200_003)
        os.setresuid(200_001, 200_002, 200_003)

    with peers.forked(before=become) as (accepted, pid):
        assert peercred.credentials(accepted) == (pid, 200_002, 200_002)


@pytest.mark.root
def test_ids_are_those_at_connect(peers: Peers) -> None:
    """What the peer becomes after it has connected changes nothing."""

    def become() -> None:
        os.setgroups([200_009])
        os.setresuid(200_001, 200_001, 200_001)

    def come_first() -> None:
        os.setgroups([200_008])

    with peers.forked(before=come_first, after=become) as (accepted, _):
        assert peercred.credentials(accepted)[1] == os.geteuid()
        assert peercred.supplementary_groups(accepted) == frozenset([200_008])
