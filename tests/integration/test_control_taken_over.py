"""Control is taken over: what it gets of the monitor, with the help of a local user who is nobody in particular.

The daemon is a copy in which control does what the attacker wants (tests/support/tampered.py).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from sockguard.privsep.messages import ConnectAs
from tests.integration.test_identity_client import give, tell
from tests.support.clients import as_user
from tests.support.daemon import Daemon, running
from tests.support.identities import account_if_missing, open_folder, wait_started
from tests.support.services import serving
from tests.support.tampered import tampered

pytestmark = pytest.mark.root

HELPER: Final = 54243
SERVICE: Final = 4310
FIELDS: Final = len(dataclasses.fields(ConnectAs))
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x20000, 0x40000000
PR_SET_DUMPABLE = 4

CONFIG = """
[daemon]
relays = 1
[proxy.p]
listen = "{folder}/door/p"
backend = "{folder}/private/socket"
identity = "client"
allow_root_identity = true
allow = [{{ users = ["*"] }}]
"""

ATTACK = """

import sys
from sockguard.privsep.messages import ConnectAs

class TakenOver(Daemon):
    async def _serve(self, listeners, outlets, nursery):
        nursery.start_soon(self._attack)
        await super()._serve(listeners, outlets, nursery)

    async def _attack(self):
        with socket.socket(socket.AF_UNIX) as door:
            door.bind("\\0{folder}")
            door.listen()
            await trio.lowlevel.wait_readable(door)
            helper, _ = door.accept()
        await trio.lowlevel.wait_readable(helper)
        _, fds, _, _ = socket.recv_fds(helper, 10, 1)
        try:
            _, (fd,) = await self._privileges._ask(ConnectAs(*("p", "")[:{fields}]), fds[0])
        except SockguardError as error:
            helper.sendall(str(error).encode())
            return
        with socket.socket(fileno=fd) as backend:
            backend.setblocking(True)
            backend.settimeout(10)
            helper.sendall(b"connected: " + backend.recv(1000))

Daemon = TakenOver
"""


def help_control(folder: Path, target: Path) -> str:
    """What control says that it got with a socket that is bound to the text of the proxy's address, where nobody else
    sees it, and connected to ``target``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own files in /proc are root's
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {HELPER} 1"), ("gid_map", f"0 {HELPER} 1")):
        Path("/proc/self", file).write_text(text)
    if libc.mount(b"none", str(folder / "door").encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    with socket.socket(socket.AF_UNIX) as same, socket.socket(socket.AF_UNIX) as control:
        same.bind(str(folder / "door" / "p"))
        same.connect(str(target))
        control.settimeout(20)
        control.connect(f"\0{folder}")
        socket.send_fds(control, [b"x"], [same.fileno()])
        return control.recv(1000).decode()


@contextmanager
def guarded(attack: str = "") -> Iterator[tuple[Path, Daemon]]:
    """The daemon's folder, where it listens on door/p, and the daemon. attack: what its control does besides."""
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        control, _ = (made.enter_context(account_if_missing(name)) for name in ("sockguard", "sockguard-relay"))
        copy = made.enter_context(tampered("server/daemon.py", attack.format(folder=folder, fields=FIELDS)))
        for name in ("private", "door"):
            (folder / name).mkdir(mode=0o755)
        made.enter_context(serving(folder / "private" / "socket", tell))
        give(folder / "private" / "socket", SERVICE, control.gid, 0o660)
        give(folder / "private", SERVICE, control.gid, 0o710)
        config = folder / "sockguard.toml"
        config.write_text(CONFIG.format(folder=folder))
        config.chmod(0o600)
        daemon = made.enter_context(running(config, folder / "door" / "p", cwd=copy))
        wait_started(daemon)
        yield folder, daemon


def seen(folder: Path) -> list[int]:
    """uid and gid that the service says it sees."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(folder / "door" / "p"))
        _, uid, gid, _ = json.loads(sock.recv(1000))
    return [uid, gid]


def test_it_gets_no_connection_as_somebody_who_has_not_connected() -> None:
    """Root listens somewhere, and connects to nothing. Clients are served meanwhile."""
    with guarded(ATTACK) as (folder, daemon), serving(folder / "roots-own"):
        said = as_user(lambda: help_control(folder, folder / "roots-own"), HELPER)
        assert said == "proxy.p: not a connection that the monitor accepted for it"
        assert daemon.events("connection_admitted") == []
        assert as_user(lambda: str(seen(folder)), HELPER) == str([HELPER, HELPER])


def test_clients_of_another_network_namespace_are_served() -> None:
    """A client in a container comes by the path of the socket, as any other one."""

    def elsewhere(folder: Path) -> str:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        os.setresgid(HELPER, HELPER, HELPER)
        os.setresuid(HELPER, HELPER, HELPER)
        return str(seen(folder))

    with guarded() as (folder, _):
        assert as_user(lambda: elsewhere(folder)) == str([HELPER, HELPER])
