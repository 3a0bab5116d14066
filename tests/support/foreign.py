"""A daemon for users who pass descriptors that block whoever closes them, and for others who want to be served.

What such a descriptor is stands in lingering.py and fuse.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sockguard.privsep.sockopt import SO_PASSRIGHTS
from tests.support.clients import as_user
from tests.support.daemon import Daemon, Event, running
from tests.support.dbus_wire import becoming
from tests.support.http_services import recording
from tests.support.http_stage import HEAD, ask, until
from tests.support.identities import open_folder, state, wait_started, wait_until
from tests.support.reloading import sockguard
from tests.support.servers import control_ids
from tests.support.services import serving

STRANGER, ATTACKER, FRIEND = 54240, 54241, 54242
"""Users: whom no rule admits, who is admitted and attacks, and who is admitted and is to be served."""

SECONDS: Final = 20.0
"""No test waits longer for an answer: what takes so long stands still."""

KINDS: Final = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "http": socket.SOCK_STREAM}
"""A proxy of each protocol, by its name, and the type of its socket."""

PROTOCOLS: Final = {name: f'protocol = "{name}"' for name in KINDS}


@dataclass(frozen=True, slots=True)
class Place:
    """A running daemon, which listens on folder/NAME for each proxy."""

    daemon: Daemon
    folder: Path

    def connect(self, uid: int, proxy: str = "stream") -> socket.socket:
        """A connection of that user's."""
        return connect_as(uid, self.folder / proxy, KINDS.get(proxy, socket.SOCK_STREAM))

    def control(self) -> int:
        """The pid of the control process."""
        (pid,) = self.daemon.pids()["sockguard-ctl"]
        return pid

    def relay(self) -> int:
        """The pid of the only relay."""
        (pid,) = self.daemon.pids()["sockguard-relay"]
        return pid

    def write(self, proxies: Mapping[str, str]) -> None:
        """The file has these proxies from now on; the daemon has not read it."""
        write(self.daemon.config, self.folder, proxies)

    def command(self, *words: object) -> str:
        """What an operator's command prints, which must not take long."""
        control = self.folder / "run" / "control.sock"
        done = sockguard(*map(str, words), "--control", control, timeout=SECONDS)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What an operator is told."""
        found: dict[str, Any] = json.loads(self.command("status", "--json"))
        return found

    def goes_on(self, *proxies: str) -> None:
        """Control answers an operator, and by each of these proxies somebody else is served who comes only now."""
        assert {proxy["name"] for proxy in self.status()["proxies"]} >= set(proxies)
        for proxy in proxies:
            with self.connect(FRIEND, proxy) as sock:
                served(sock, proxy)

    def ends(self, uid: int, count: int = 1) -> list[Event]:
        """How connections of that user ended, once there are so many that have."""

        def found() -> list[Event]:
            return [event for event in self.daemon.events("connection_closed") if event["uid"] == uid]

        wait_until(lambda: len(found()) >= count, f"{count} connections of {uid} end", SECONDS)
        return found()


def served(sock: socket.socket, proxy: str = "stream") -> None:
    """The service answers on this connection."""
    if proxy == "http":
        ask(sock, "GET /small")
        assert until(sock, b"ok\n").startswith(HEAD)
    else:
        sock.sendall(b"ping")
        assert sock.recv(100) == b"ping"


def is_over(sock: socket.socket) -> bool:
    """Has the connection ended? Waits for it."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def connect_as(uid: int, path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connection of that user's."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(SECONDS)
    with becoming(uid):
        sock.connect(str(path))
    return sock


def kernel_refuses_fds() -> bool:
    """Can a listener have the kernel refuse descriptors, as since Linux 6.16?"""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            return False
    return True


def write(config: Path, folder: Path, proxies: Mapping[str, str], more: str = "", drain: str = "1s") -> None:
    """The file with these proxies by their names, each with further keys, in which FOLDER stands for the folder.

    more: keys of [daemon], and other tables; drain: its drain_timeout
    """
    text = f'[daemon]\nrelays = 1\ndrain_timeout = "{drain}"\n{more}\n'
    for name, keys in proxies.items():
        text += f'[proxy.{name}]\nlisten = "FOLDER/{name}"\n{keys}\n'
        if "backend" not in keys:
            text += f'backend = "FOLDER/{name if name in KINDS else "stream"}.private"\n'
        if "allow" not in keys:
            text += f"allow = [{{ users = [0, {ATTACKER}, {FRIEND}] }}]\n"
    config.write_text(text.replace("FOLDER", str(folder)))


@contextlib.contextmanager
def services(folder: Path) -> Iterator[None]:
    """A service for each protocol, at folder/PROTOCOL.private: two that echo, and one of HTTP."""
    with ExitStack() as made:
        for name in ("stream", "seqpacket"):
            made.enter_context(serving(folder / f"{name}.private", kind=KINDS[name]))
        made.enter_context(recording(folder / "http.private"))
        yield


@contextlib.contextmanager
def place(proxies: Mapping[str, str] = PROTOCOLS, more: str = "", drain: str = "1s", **popen: Any) -> Iterator[Place]:
    """A daemon with one relay and these proxies, each of which admits ATTACKER, FRIEND and root; see ``write``."""
    with open_folder() as folder, services(folder):
        config = folder / "sockguard.toml"
        write(config, folder, proxies, more, drain)
        with running(config, *(folder / name for name in proxies), **popen) as daemon:
            wait_started(daemon)
            yield Place(daemon, folder)


@contextlib.contextmanager
def without_files(pid: int) -> Iterator[None]:
    """Meanwhile control has only some files to spare, so that it accepts nobody (RESERVE in server/listener.py)."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = min(set(range(len(used) + 1)) - used)
    _, hard = limit_files(pid, lowest + lowest // 2)  # half of them would have to be free
    try:
        yield
    finally:
        if state(pid):
            limit_files(pid, hard)


def limit_files(pid: int, soft: int) -> tuple[int, int]:
    """Set how many files control may open. What was the limit, and the hard one."""

    def change() -> str:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, before[1]))
        return " ".join(map(str, before))

    before, hard = map(int, as_user(change, *control_ids()).split())  # as the same uid: that needs no right
    return before, hard


def living(daemon: Daemon) -> dict[str, list[int]]:
    """The daemon's processes that have not ended, by their name; who inherited them may be slow to reap the others."""
    found = {name: [pid for pid in pids if state(pid) not in ("", "Z")] for name, pids in daemon.pids().items()}
    return {name: pids for name, pids in found.items() if pids}
