"""Clients with as many groups as the kernel allows: each rule holds for them, and they cost the others nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import as_user, connect
from tests.support.daemon import running
from tests.support.identities import Client, Guard, account_if_missing, open_folder, someone, wait_started, wait_until
from tests.support.reloading import Subject, proxy
from tests.support.services import serving

pytestmark = pytest.mark.root

UID, OTHER = 4242, 4243
MANY = range(200_000, 265_536)
ANYONE = f"allow = [{{ users = [{UID}, {OTHER}] }}]"
BY_GROUP = f"allow = [{{ groups = [{MANY[-1]}] }}]"
DENIED = f'allow = [{{ users = ["*"] }}]\ndeny = [{{ groups = [{MANY[0]}] }}]'
COUNT = 100


def tables(folder: Path, user: str = ANYONE) -> tuple[str, ...]:
    return proxy(folder, "user", user), proxy(folder, "group", BY_GROUP), proxy(folder, "deny", DENIED)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        for name in ("sockguard", "sockguard-relay"):
            made.enter_context(account_if_missing(name))
        made.enter_context(serving(folder / "private"))
        config = folder / "sockguard.toml"
        config.write_text("[daemon]\nrelays = 2\n" + "".join(tables(folder)))
        daemon = made.enter_context(running(config, *(folder / name for name in ("user", "group", "deny"))))
        wait_started(daemon)
        yield Subject(daemon, folder)


def test_rules_hold_for_them(subject: Subject) -> None:
    """The first and the last of them count, and one that they do not have does not."""
    guard = Guard(subject.daemon, subject.folder)
    guard.admits("user", someone(UID, UID, MANY), rule="user.allow[0]", uid=UID)
    guard.admits("group", someone(UID, UID, MANY), rule="group.allow[0]", uid=UID)
    guard.denies("group", someone(UID, UID, MANY[:-1]), uid=UID)
    guard.denies("deny", someone(UID, UID, MANY), rule="deny.deny[0]", reason="denied by deny.deny[0]", uid=UID)
    guard.admits("deny", someone(UID, UID, MANY[1:]), rule="deny.allow[0]", uid=UID)


def resident(pid: int) -> int:
    """Memory of a process, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize("name", ["user", "group"])
def test_what_they_cost_control(subject: Subject, name: str) -> None:
    """It was 6 MiB for each of the connections."""
    pid = Guard(subject.daemon, subject.folder).control()
    assert as_user(lambda: _hold(subject.folder / name, 2, pid), UID, UID, MANY).isdecimal()  # what comes once
    before = resident(pid)
    during = int(as_user(lambda: _hold(subject.folder / name, COUNT, pid), UID, UID, MANY))
    assert during - before < COUNT * 200
    wait_until(lambda: not subject.connections(), "they end")


def _hold(path: Path, count: int, control: int) -> str:
    held: list[socket.socket] = []
    for _ in range(count):
        held.append(connect(path, 60))
        held[-1].sendall(b"ping")
        assert held[-1].recv(100) == b"ping"
    return str(resident(control))


def test_a_group_that_is_named_later(subject: Subject) -> None:
    """Whether a client that has many is in it, nobody knows any more: a deny ends it. Of others it is known."""
    with Client(UID, UID, MANY[:2000]) as many, Client(OTHER, OTHER, MANY[:1000]) as few:
        assert many.meet(subject.folder / "user") == few.meet(subject.folder / "user") == "ping"
        assert subject.reload(*tables(subject.folder, f"{ANYONE}\ndeny = [{{ groups = [7] }}]"))["revoked"] == 1
        assert many.do("ask") == "closed"
        assert few.do("ask") == "ping"
        assert subject.reload(*tables(subject.folder, f"{ANYONE}\ndeny = [{{ groups = [{MANY[9]}] }}]"))["revoked"] == 1
        assert few.do("ask") == "closed"
    subject.reload(*tables(subject.folder))
