"""A client whose program lies, by its path, on a file system that does not answer: only its user waits for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import Event
from tests.support.identities import PYTHON, Client, Guard, guarding, wait_until

pytestmark = pytest.mark.root

ATTACKER: Final = 54241
FRIEND: Final = 54242
LOOKS: Final = 2
"""Of one user at a time (server/looks.py)."""

MNT_DETACH: Final = 2
DEVICE: Final = os.makedev(10, 229)

CONFIG = """
[proxy.named]
allow = [{{ users = ["*"], executables = ["{folder}/hanging/*", "{folder}/honest"] }}]
[proxy.not-named]
allow = [{{ users = [54241], executables = ["{folder}/honest"] }}, {{ users = ["*"] }}]
[proxy.denied]
allow = [{{ users = ["*"] }}]
deny = [{{ executables = ["{folder}/evil"] }}]
[proxy.none]
allow = [{{ users = ["*"] }}]
"""


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """A FUSE file system that everybody may enter, of which nobody answers."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = folder / "fuse-device"
    os.mknod(device, stat.S_IFCHR | 0o600, DEVICE)
    fd = os.open(device, os.O_RDWR)
    place = str(folder / "hanging").encode()
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        if libc.mount(b"hanging", place, b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        yield
    finally:
        os.close(fd)  # whoever waits for it goes on
        libc.umount2(place, MNT_DETACH)


@pytest.fixture
def guard(folder: Path) -> Iterator[Guard]:
    for name in ("real", "hanging"):
        (folder / name).mkdir()
    for name in ("real/program", "honest", "evil"):
        shutil.copy(PYTHON, folder / name)
    with guarding(folder, CONFIG.format(folder=folder)) as guard:
        yield guard


def attackers(guard: Guard, made: ExitStack, count: int) -> list[Client]:
    """Clients of the attacker's that run a program in a mount namespace of their own, where it is another file."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    over = ["unshare", "--mount", "sh", "-c", script, "sh", str(guard.folder / "real"), str(guard.folder / "hanging")]
    become = ["setpriv", f"--reuid={ATTACKER}", f"--regid={ATTACKER}", "--clear-groups"]
    program = guard.folder / "hanging" / "program"
    return [made.enter_context(Client(program=program, before=[*over, *become])) for _ in range(count)]


def goes_on(guard: Guard, *proxies: str) -> None:
    """A friend's connection is let in by each of these."""
    with contextlib.ExitStack() as made:
        for proxy in proxies:
            friend = made.enter_context(Client(FRIEND, FRIEND, program=guard.folder / "honest"))
            assert friend.meet(guard.path(proxy)) == "ping"


def lookers(guard: Guard) -> int:
    return len(guard.daemon.pids().get("sockguard-look", []))


def test_nobody_else_waits(guard: Guard) -> None:
    """By the very proxy that it connects to, others are served. It is denied after its time, and holds two looks
    meanwhile; once its file system answers it is served again.
    """
    with ExitStack() as made:
        clients = attackers(guard, made, 2 * LOOKS)
        with hanging(guard.folder):
            for client in clients:
                assert client.do("connect", guard.path("named")) == "done"
            goes_on(guard, "named", "none", "denied")
            assert [client.do("ask") for client in clients] == ["closed"] * len(clients)

            def denied() -> list[Event]:
                return [event for event in guard.daemon.events("connection_denied") if event["uid"] == ATTACKER]

            wait_until(lambda: len(denied()) == len(clients), "all are denied")
            assert {event["cause"] for event in denied()} == {"rules"}
            assert lookers(guard) <= LOOKS + 1
            goes_on(guard, "named")
        with Client(ATTACKER, ATTACKER, program=guard.folder / "honest") as client:
            guard.admits("named", client.meet, rule="named.allow[0]", executable=str(guard.folder / "honest"))


def test_nobody_looks_where_it_makes_no_difference(guard: Guard) -> None:
    """No pattern matches the path: it is let in by another rule, its path told for what it is. A deny that is about
    programs acts on one that cannot be known.
    """
    with ExitStack() as made:
        first, second = attackers(guard, made, 2)
        program = str(guard.folder / "hanging" / "program")
        with hanging(guard.folder):
            event = guard.admits("not-named", first.meet, rule="not-named.allow[1]", executable=program)
            assert event["executable_checked"] is False
            assert lookers(guard) == 0
            reason = "the file system of its program has not answered for 2 s"
            rule = "denied.deny[0]"
            text = f"denied by {rule}: its condition on executables cannot be known ({reason})"
            guard.denies("denied", second.meet, rule=rule, reason=text)


def test_the_daemon_ends_while_one_hangs(guard: Guard) -> None:
    """Nobody waits for it at the end, either."""
    with ExitStack() as made:
        (client,) = attackers(guard, made, 1)
        with hanging(guard.folder):
            assert client.do("connect", guard.path("named")) == "done"
            wait_until(lambda: lookers(guard) == 1, "somebody looks")
            assert guard.daemon.stop() == 0
        wait_until(lambda: lookers(guard) == 0, "nobody is left")
