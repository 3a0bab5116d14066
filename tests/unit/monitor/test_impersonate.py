"""Connecting as somebody else: what the service is shown, who the path lets in, and nothing of it left afterwards."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sockguard.identity import peercred
from sockguard.monitor import impersonate
from sockguard.privsep import foreign, rights
from sockguard.privsep.rights import CAP_CHOWN, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, Account
from tests.support.clients import as_user

root = pytest.mark.root

CLIENT: Final = Account(4242, 4243, (5001, 5002))
CONTROL: Final = Account(4990, 4991, (4991,))
SERVICE: Final = 4300
OTHER: Final = 4301
_PR_SET_KEEPCAPS: Final = 8  # linux/prctl.h


@pytest.fixture
def service(folder: Path) -> Iterator[socket.socket]:
    """A listener at folder/private/socket, which anybody who gets to it may write."""
    (folder / "private").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "private" / "socket"))
        listener.listen(10)
        (folder / "private" / "socket").chmod(0o666)
        yield listener


def as_monitor(do: Callable[[], str], uid: int = 0, keep: frozenset[int] = frozenset({CAP_SETUID, CAP_SETGID})) -> str:
    """What ``do`` gives in a process with these capabilities and no others."""

    def with_rights() -> str:
        if uid:
            ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            rights.set_capabilities(keep, keep)
        else:
            rights.keep_capabilities(keep)
        rights.stay_undumpable()
        return do()

    return as_user(with_rights)


def show(path: Path, client: Account = CLIENT, files_as: Account | None = CONTROL) -> str:
    """Connect; "connected", or the name of the errno."""
    made = impersonate.connect_as(str(path), socket.SOCK_STREAM, client, files_as)
    if isinstance(made, int):
        return errno.errorcode[made]
    with made:
        return "connected" if not made.getblocking() else "blocking"


def shown(listener: socket.socket) -> Account:
    """Whom the service sees on its next connection."""
    sock, _ = listener.accept()
    with sock:
        _, uid, gid = peercred.credentials(sock)
        groups = peercred.supplementary_groups(sock)
        assert isinstance(groups, frozenset)
        return Account(uid, gid, tuple(sorted(groups)))


@root
@pytest.mark.parametrize(
    "client",
    [
        CLIENT,
        Account(4242, 4243, ()),
        Account(0, 4243, (7,)),
        Account(4242, 0, (0,)),
        Account(4_000_000_001, 4_000_000_002, (4_294_967_293, 3)),
        Account(2**31 - 1, 2**31, tuple(range(10_000, 10_300))),
    ],
    ids=["groups", "no groups", "root", "gid 0", "high", "300 groups"],
)
def test_the_service_sees_the_client(service: socket.socket, folder: Path, client: Account) -> None:
    """uid, gid and supplementary groups are the client's, exactly."""
    (folder / "private").chmod(0o755)
    assert as_monitor(lambda: show(folder / "private" / "socket", client)) == "connected"
    assert shown(service) == Account(client.uid, client.gid, tuple(sorted(client.groups)))


@root
@pytest.mark.parametrize("refuse_fds", [True, False])
def test_descriptors_of_the_service(service: socket.socket, folder: Path, refuse_fds: bool) -> None:
    """Where they are to be refused, the service that passes some is told EPERM, before the relay has the connection;
    on a kernel that cannot do that (before Linux 6.16), and elsewhere, they arrive.
    """
    (folder / "private").chmod(0o755)

    def connect_and_pass() -> str:
        path = str(folder / "private" / "socket")
        made = impersonate.connect_as(path, socket.SOCK_STREAM, CLIENT, CONTROL, refuse_fds=refuse_fds)
        assert isinstance(made, socket.socket)
        with made, service.accept()[0] as accepted:
            try:
                socket.send_fds(accepted, [b"x"], [0])
            except PermissionError:
                return "refused"
            return "taken, though all are refused" if foreign.takes_none(made) else "taken"

    with socket.socket(socket.AF_UNIX) as sock:
        foreign.refuse_all(sock)
        possible = foreign.takes_none(sock)
    assert as_monitor(connect_and_pass) == ("refused" if refuse_fds and possible else "taken")


@root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "files_as", "answer"),
    [
        (SERVICE, CONTROL.gid, 0o710, CONTROL, "connected"),
        (CONTROL.uid, OTHER, 0o700, CONTROL, "connected"),
        (SERVICE, OTHER, 0o711, CONTROL, "connected"),
        (0, 0, 0o700, CONTROL, "EACCES"),
        (SERVICE, OTHER, 0o710, CONTROL, "EACCES"),
        (CLIENT.uid, CLIENT.gid, 0o700, CONTROL, "EACCES"),
        (SERVICE, CLIENT.gid, 0o710, CONTROL, "EACCES"),
        (CLIENT.uid, OTHER, 0o700, CONTROL, "EACCES"),
        (0, 0, 0o700, None, "connected"),
        (SERVICE, 0, 0o710, None, "connected"),
        (SERVICE, SERVICE, 0o700, None, "EACCES"),
        (CLIENT.uid, CLIENT.gid, 0o700, None, "EACCES"),
    ],
)
def test_the_path_is_for_control(
    service: socket.socket, folder: Path, owner: int, group: int, mode: int, files_as: Account | None, answer: str
) -> None:
    """Folders let control in, or where that is root, root: not the client, however much it owns."""
    private = folder / "private"
    private.chmod(mode)
    os.chown(private, owner, group)
    assert as_monitor(lambda: show(private / "socket", files_as=files_as)) == answer


@root
def test_the_mode_of_the_socket_is_for_control_too(service: socket.socket, folder: Path) -> None:
    """A socket that only its group may write: control's group can, the client's cannot; no capability overrides it."""
    path = folder / "private" / "socket"
    path.chmod(0o660)
    for group, answer in ((CONTROL.gid, "connected"), (CLIENT.gid, "EACCES")):
        os.chown(path, SERVICE, group)
        for keep in (frozenset({CAP_SETUID, CAP_SETGID}), frozenset(range(41))):
            assert as_monitor(lambda: show(path), keep=keep) == answer


def everything() -> str:
    """What a process is, as /proc has it: ids (real, effective, saved, for files), groups, capabilities, dumpable."""
    with open("/proc/self/status") as file:
        keys = ("Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:")
        lines = [line for line in file if line.startswith(keys)]
    return "".join([*lines, str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))])  # PR_GET_DUMPABLE


@root
@pytest.mark.parametrize("uid", [0, 4990], ids=["root", "another user"])
@pytest.mark.parametrize("more", [set(), {CAP_SYS_PTRACE, CAP_CHOWN}], ids=["two capabilities", "four"])
def test_nothing_is_left_of_it(service: socket.socket, folder: Path, uid: int, more: set[int]) -> None:
    """After thousands of connects, good and bad, the process is what it was, in every id, group and capability."""
    (folder / "private").chmod(0o755)

    def often() -> str:
        os.setgroups([17, 18])
        before = everything()
        descriptors = os.listdir("/proc/self/fd")
        answers = set()
        for number in range(1500):
            client = Account(5000 + number % 7, 5000 + number % 5, tuple(range(number % 3)))
            answers.add(show(folder / "private" / ("socket" if number % 2 else "nothing"), client))
            assert everything() == before
        assert os.listdir("/proc/self/fd") == descriptors
        return ",".join(sorted(answers))

    service.setblocking(False)
    assert as_monitor(often, uid, frozenset({CAP_SETUID, CAP_SETGID}) | more) == "EAGAIN,ENOENT,connected"


@root
def test_errors_of_connect(service: socket.socket, folder: Path) -> None:
    """A full backlog, a missing path and a dead socket are errnos, and never block."""
    path = folder / "private" / "socket"
    assert as_monitor(lambda: ",".join(show(path) for _ in range(12))).endswith("connected,EAGAIN")
    service.close()
    assert as_monitor(lambda: show(path)) == "ECONNREFUSED"
    assert as_monitor(lambda: show(folder / "none" / "socket")) == "ENOENT"


@root
@pytest.mark.parametrize("keep", [frozenset(), frozenset({CAP_SETUID}), frozenset({CAP_SETGID})])
@pytest.mark.parametrize("uid", [0, 4990])
def test_without_the_rights(service: socket.socket, folder: Path, uid: int, keep: frozenset[int]) -> None:
    """Whoever may not take an identity over gets an error, connects as nobody, and goes on as before."""

    def attempt() -> str:
        before = everything()
        with pytest.raises(PermissionError):
            show(folder / "private" / "socket", files_as=None)
        return str(everything() == before)

    service.setblocking(False)
    assert as_monitor(attempt, uid, keep) == "True"
    with pytest.raises(BlockingIOError):
        service.accept()


def test_nobody_else_can_be_shown_by_an_ordinary_process(folder: Path) -> None:
    """Without a capability, the attempt is an error, not a connection of one's own."""
    if rights.effective_capabilities():
        assert as_user(lambda: show(folder / "x", files_as=None), 4242).startswith("PermissionError")
    else:
        with pytest.raises(PermissionError):
            show(folder / "x", files_as=None)


def lose(call: str) -> Callable[[], str]:
    """Have ``call`` fail from its second time on, which is the putting back."""

    def run() -> str:
        module = impersonate if call == "set_capabilities" else os
        real = getattr(module, call)
        times = []

        def fails(*given: object) -> object:
            times.append(given)
            if len(times) > 1:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            return real(*given)

        setattr(module, call, fails)
        return run_and_go_on()

    def run_and_go_on() -> str:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # what it says is looked at in test_identity_client.py
        try:
            impersonate.connect_as("/nonexistent", socket.SOCK_STREAM, CLIENT, CONTROL)
        except BaseException as error:  # must not get here: the process has ended
            return f"went on: {error}"
        return "went on"

    return run


@root
@pytest.mark.parametrize("call", ["setresuid", "setresgid", "setgroups", "set_capabilities"])
def test_an_identity_that_cannot_be_put_back_ends_the_process(call: str) -> None:
    """It ends at once, with a status of its own: no exception that somebody could catch."""
    pid = os.fork()
    if pid == 0:
        rights.keep_capabilities({CAP_SETUID, CAP_SETGID})
        lose(call)()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == impersonate.EXIT_IDENTITY_LOST


@root
def test_an_identity_that_was_not_quite_put_back_ends_the_process() -> None:
    """Calls that claim success do not count: it is looked at what the process is."""
    pid = os.fork()
    if pid == 0:
        rights.keep_capabilities({CAP_SETUID, CAP_SETGID})
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        real, times = os.setresgid, []

        def pretends(*given: int) -> None:
            times.append(given)
            if len(times) == 1:
                real(*given)

        os.setresgid = pretends
        impersonate.connect_as("/nonexistent", socket.SOCK_STREAM, CLIENT, None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == impersonate.EXIT_IDENTITY_LOST
