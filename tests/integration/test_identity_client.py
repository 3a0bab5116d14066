"""``identity = "client"``: the service asks the kernel who its peer is, and gets the client's ids."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sockguard.identity import peercred
from sockguard.monitor.impersonate import EXIT_IDENTITY_LOST
from tests.integration.test_ordinary_user import run_as
from tests.support.clients import as_user, connect
from tests.support.daemon import Daemon, Event, running
from tests.support.identities import (
    Person,
    account_if_missing,
    capabilities,
    open_folder,
    state,
    status,
    wait_started,
    wait_until,
)
from tests.support.services import serving

pytestmark = pytest.mark.root

SERVICE = 4310
HIGH_UID, HIGH_GID = 4_000_000_001, 4_000_000_002
OVERFLOW = 65534
USERS, CONNECTS = 8, 500

CONFIG = """
[daemon]
relays = 2
[proxy.shown]
listen = "{folder}/shown"
backend = "{folder}/private/socket"
identity = "client"
allow = [{{ users = ["*"] }}]
[proxy.root]
listen = "{folder}/root"
backend = "{folder}/private/socket"
identity = "client"
allow_root_identity = true
enforce = false
allow = [{{ users = [1] }}]
[proxy.records]
listen = "{folder}/records"
backend = "{folder}/private/records"
protocol = "seqpacket"
identity = "client"
allow = [{{ users = ["*"] }}]
[proxy.plain]
listen = "{folder}/plain"
backend = "{folder}/private/socket"
allow = [{{ users = ["*"] }}]
[proxy.clients-own]
listen = "{folder}/clients-own"
backend = "{folder}/clients/socket"
identity = "client"
allow = [{{ users = ["*"] }}]
[proxy.late]
listen = "{folder}/late"
backend = "{folder}/private/late"
identity = "client"
connect_timeout = "1s"
allow = [{{ users = ["*"] }}]
[proxy.patient]
listen = "{folder}/patient"
backend = "{folder}/private/late"
identity = "client"
connect_timeout = "60s"
allow = [{{ users = ["*"] }}]
"""


def tell(sock: socket.socket) -> None:
    """Say who the peer is, by the kernel's word; then echo."""
    pid, uid, gid = peercred.credentials(sock)
    groups = peercred.supplementary_groups(sock)
    assert isinstance(groups, frozenset)
    sock.sendall(json.dumps([pid, uid, gid, sorted(groups)]).encode())
    while data := sock.recv(65536):
        sock.sendall(data)


def ask(path: Path, kind: int = socket.SOCK_STREAM) -> str:
    """What the service says of its peer, once it has echoed too; "closed" when it says nothing."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        try:
            said = sock.recv(65536).decode()
            if said:
                sock.sendall(b"ping")
                assert sock.recv(100) == b"ping"
        except (BrokenPipeError, ConnectionResetError):
            return "closed"
    return said or "closed"


class Case(NamedTuple):
    """``files``: the monitor's descriptors before the first connection."""

    daemon: Daemon
    folder: Path
    control: Person
    monitor: int
    files: list[str]

    def seen(self, proxy: str, uid: int, gid: int, groups: Sequence[int] = (), **how: Any) -> list[Any]:
        """[pid, uid, gid, groups] that the service sees when somebody with these ids connects."""
        kind = socket.SOCK_SEQPACKET if proxy == "records" else socket.SOCK_STREAM
        said = as_user(lambda: ask(self.folder / proxy, kind), uid, gid, groups, **how)
        assert said.startswith("["), said + self.daemon.stderr()
        found: list[Any] = json.loads(said)
        return found


def write_config(folder: Path, text: str) -> Path:
    file = folder / "sockguard.toml"
    file.write_text(text.format(folder=folder))
    file.chmod(0o600)
    return file


def descriptors(pid: int) -> list[str]:
    return sorted(os.listdir(f"/proc/{pid}/fd"))


def give(path: Path, uid: int, gid: int, mode: int) -> None:
    os.chown(path, uid, gid)
    path.chmod(mode)


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    """The daemon under its own accounts; the service's folder is SERVICE:sockguard 0710, its sockets the group's."""
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        control, _ = (made.enter_context(account_if_missing(name)) for name in ("sockguard", "sockguard-relay"))
        private, clients = folder / "private", folder / "clients"
        private.mkdir()
        clients.mkdir()
        made.enter_context(serving(private / "socket", tell))
        made.enter_context(serving(private / "records", tell, kind=socket.SOCK_SEQPACKET))
        made.enter_context(serving(clients / "socket", tell))
        for path, mode in ((private / "socket", 0o660), (private / "records", 0o660), (private, 0o710)):
            give(path, SERVICE, control.gid, mode)
        give(clients, 4242, 4242, 0o700)
        proxies = [folder / name for name in ("shown", "root", "records", "plain", "clients-own", "late", "patient")]
        daemon = made.enter_context(running(write_config(folder, CONFIG), *proxies))
        wait_started(daemon)  # it was asked nothing since its last answer, which had no descriptors
        yield Case(daemon, folder, control, daemon.process.pid, descriptors(daemon.process.pid))


@pytest.mark.parametrize("proxy", ["shown", "records"])
def test_the_service_sees_the_client(case: Case, proxy: str) -> None:
    """uid, gid and groups are the client's, whatever they are; the pid is sockguard's own."""
    many = [*range(20_000, 20_300)]
    for uid, gid, groups in (
        (4242, 4243, [7, 4243, 5000]),
        (4242, 4243, []),
        (4242, 0, [0]),
        (HIGH_UID, HIGH_GID, [HIGH_GID - 1, 3]),
        (2**31, 2**31 - 1, []),
        (4242, 4243, many),
    ):
        assert case.seen(proxy, uid, gid, groups) == [case.monitor, uid, gid, sorted(groups)]


def test_effective_ids_count(case: Case) -> None:
    """A set-uid or set-gid client is shown by its effective ids, as the service would see it without sockguard."""
    assert case.seen("shown", 4242, 4243, real_uid=4244)[1:3] == [4242, 4243]

    def other_egid() -> str:
        os.setresgid(4250, 4251, 4252)
        os.setresuid(4242, 4242, 4242)
        return ask(case.folder / "shown")

    assert json.loads(as_user(other_egid))[1:3] == [4242, 4251]


def test_another_proxy_shows_sockguard(case: Case) -> None:
    """Where it is not asked for, the service sees control, as before."""
    assert case.seen("plain", 4242, 4243)[1] == case.control.uid


def test_root_is_not_shown_unless_allowed(case: Case) -> None:
    """uid 0 is denied at the door, with a cause of its own, and where the file lets it, shown like anybody."""
    assert as_user(lambda: ask(case.folder / "shown"), 0, 0) == "closed"
    event = case.daemon.wait_for("connection_denied", lambda event: event["uid"] == 0)
    assert (event["cause"], event["proxy"], event["rule"]) == ("identity", "shown", "shown.allow[0]")
    assert "allow_root_identity" in event["reason"]
    assert case.seen("root", 0, 0, [5]) == [case.monitor, 0, 0, [5]]


@pytest.mark.parametrize(("uid", "gid", "groups"), [(OVERFLOW, 5, []), (4242, OVERFLOW, []), (4242, 5, [OVERFLOW, 6])])
def test_ids_without_a_mapping_are_not_shown(case: Case, uid: int, gid: int, groups: list[int]) -> None:
    """65534 may be anybody: nobody is shown as that, on no proxy, whatever the rules let through."""

    def told(name: str | None = None) -> list[Event]:
        """No other test has a client with these ids."""
        return [event for event in case.daemon.events(name) if (event.get("uid"), event.get("gid")) == (uid, gid)]

    for proxy in ("shown", "root"):
        assert as_user(lambda: ask(case.folder / proxy), uid, gid, groups) == "closed"  # noqa: B023  # called at once
    end = "connection_denied" if uid == OVERFLOW else "connection_closed"
    wait_until(lambda: len(told(end)) >= 2, "both are told")
    if uid == OVERFLOW:
        assert [event["event"] for event in told()] == ["connection_denied"] * 2
    else:
        ends = told(end)
        assert [event["outcome"] for event in ends] == ["identity_refused"] * 2
        assert all("no mapping" in event["reason"] for event in ends)


def test_a_folder_of_the_clients_own(case: Case) -> None:
    """The path is for control: a folder that only the client could enter is closed to it."""
    assert as_user(lambda: ask(case.folder / "clients-own"), 4242, 4242) == "closed"
    event = case.daemon.wait_for("connection_closed", lambda event: event["proxy"] == "clients-own")
    assert (event["outcome"], event["reason"]) == ("backend_unavailable", "Permission denied")


def test_a_service_that_is_full_or_away(case: Case) -> None:
    """A full backlog and a service that restarts are waited out, as without impersonation, and no longer than told."""
    path = case.folder / "private" / "late"
    before = 0

    def outcome() -> str:
        """Of the connection after the one that it was asked about last."""
        nonlocal before
        end = case.daemon.wait_for(
            "connection_closed", lambda event: event["proxy"] == "late" and event["seq"] > before
        )
        before = end["seq"]
        return str(end["outcome"])

    def client(proxy: str) -> str:
        return as_user(lambda: ask(case.folder / proxy), 4242, 4243)

    assert client("late") == "closed"  # nobody there, for longer than a restart takes
    assert outcome() == "backend_unavailable"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        give(path, SERVICE, case.control.gid, 0o660)
        listener.listen(0)
        first.connect(str(path))  # a listener with backlog N holds N + 1
        assert client("late") == "closed"
        assert outcome() == "backend_timeout"
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(client("patient")))
        waiting.start()
        case.daemon.wait_for("connection_admitted", lambda event: event["proxy"] == "patient")
        listener.accept()[0].close()
        listener.settimeout(20)
        with listener.accept()[0] as sock:
            tell(sock)
        waiting.join(20)
    assert json.loads(answers[0])[1:] == [4242, 4243, []]
    path.unlink()


def identity(pid: int) -> dict[str, Any]:
    found = status(pid)
    ids: dict[str, Any] = {key: found[key] for key in ("Uid", "Gid", "Groups", "NoNewPrivs")}
    return {**ids, **capabilities(pid), "mem": os.stat(f"/proc/{pid}/mem").st_uid}


def test_many_users_at_once(case: Case) -> None:
    """Each of them sees itself on every connection, and afterwards the monitor is what it was before, to the bit."""
    before = identity(case.monitor)

    def often(uid: int) -> str:
        for number in range(CONNECTS):
            with connect(case.folder / "shown", 60) as sock:
                _, *ids = json.loads(sock.recv(65536))
            assert ids == [uid, uid + 100, [uid + 200, uid + 300]], f"{number}: {ids}"
        return "each time itself"

    answers: list[str] = []

    def client(uid: int) -> None:
        answers.append(as_user(lambda: often(uid), uid, uid + 100, [uid + 200, uid + 300]))

    clients = [threading.Thread(target=client, args=(5000 + number,)) for number in range(USERS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert answers == ["each time itself"] * USERS
    assert identity(case.monitor) == before
    wait_until(lambda: descriptors(case.monitor) == case.files, "it closes what it has handed over last")


# ── daemons of their own ──

ONE = """
[proxy.shown]
listen = "{folder}/shown"
backend = "{folder}/private/socket"
identity = "client"
allow = [{{ users = ["*"] }}]
"""


def script(folder: Path, text: str) -> dict[str, Any]:
    """For Daemon: what to run it by; "$@" are its arguments."""
    start = folder / "start"
    start.write_text(f"#!/bin/sh -e\n{text}\n")
    start.chmod(0o755)
    return {"executable": str(start)}


def test_a_folder_of_roots_where_control_is_root(folder: Path) -> None:
    """Without users of sockguard's own, control is root, and a folder root:root 0700 is reached for every client."""
    passwd = Path("/etc/passwd").read_text().splitlines(keepends=True)
    (folder / "passwd").write_text("".join(line for line in passwd if not line.startswith("sockguard")))
    inside = f'mount --bind {folder}/passwd /etc/passwd && exec {sys.executable} "$@"'
    how = script(folder, f"exec unshare --mount sh -c '{inside}' sh \"$@\"")
    private = folder / "private"
    private.mkdir(mode=0o700)
    with (
        serving(private / "socket", tell, mode=0o600),
        running(write_config(folder, ONE), folder / "shown", **how) as daemon,
    ):
        wait_started(daemon)
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        said = as_user(lambda: ask(folder / "shown"), 4242, 4243, [7])
        assert json.loads(said) == [daemon.process.pid, 4242, 4243, [7]]
        give(private, 4242, 4243, 0o700)
        assert as_user(lambda: ask(folder / "shown"), 4242, 4243) == "closed"


LOST = """
import os, sys
from sockguard.cli import main
real = os.setresuid
def fails_to_restore(*ids):
    if os.geteuid() != 0:
        raise PermissionError(1, "Operation not permitted")
    real(*ids)
os.setresuid = fails_to_restore
sys.exit(main())
"""


def test_an_identity_that_cannot_be_put_back_ends_everything(folder: Path) -> None:
    """A monitor that would have to go on as a client ends at once with a status of its own, and all others with it."""
    (folder / "lost.py").write_text(LOST)
    (folder / "private").mkdir(mode=0o755)
    how = script(folder, f'shift 2; exec {sys.executable} {folder}/lost.py "$@"')
    with serving(folder / "private" / "socket", tell):
        daemon = Daemon(write_config(folder, ONE), **how)
        try:
            daemon.wait_ready(folder / "shown")
            wait_started(daemon)
            pids = [pid for found in daemon.pids().values() for pid in found]
            assert len(pids) >= 3
            assert as_user(lambda: ask(folder / "shown"), 4242, 4243) == "closed"
            assert daemon.process.wait(20) == EXIT_IDENTITY_LOST
            wait_until(lambda: all(state(pid) in ("", "Z") for pid in pids), "all of its processes end")
        finally:
            daemon.stop()
    assert "could not put its own identity back" in daemon.stderr()


@pytest.mark.parametrize("who", ["user", "root without CAP_SETUID", "root without CAP_SETGID"])
def test_without_the_rights_it_does_not_start(folder: Path, who: str) -> None:
    """An ordinary user, and a root without one of the two capabilities, are told why; nothing is bound."""
    (folder / "private").mkdir(mode=0o755)
    config = write_config(folder, ONE)
    if who == "user":
        os.chown(folder, 4242, 4242)
        give(config, 4242, 4242, 0o600)
        how = run_as(folder, 4242, 4242)
    else:
        name = who[-6:].lower()
        how = script(folder, f'exec setpriv --bounding-set=-{name} -- {sys.executable} "$@"')
    daemon = Daemon(config, **how)
    try:
        assert daemon.process.wait(20) == 1
    finally:
        if daemon.process.poll() is None:
            os.killpg(daemon.process.pid, signal.SIGKILL)
        daemon.stop()
    assert 'sockguard: proxy.shown.identity: "client" needs CAP_SETUID and CAP_SETGID' in daemon.stderr()
    assert not (folder / "shown").exists()
