"""``sender = "same-user"``: each message must come from the uid that connected, by the kernel's word; and MSG_OOB."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockguard.privsep.channel import close_all
from tests.support.clients import as_user
from tests.support.daemon import Daemon, running
from tests.support.identities import open_folder, stopped, wait_started, wait_until
from tests.support.services import serving

pytestmark = pytest.mark.root

MINE, THEIRS, OTHER = 4242, 4243, 4244
PROXIES = ("guarded", "open", "records")
CONFIG = """
[daemon]
relays = 1
[proxy.guarded]
listen = "{folder}/guarded"
backend = "{folder}/private"
sender = "same-user"
allow = [{{ users = ["*"] }}]
[proxy.open]
listen = "{folder}/open"
backend = "{folder}/private"
allow = [{{ users = ["*"] }}]
[proxy.records]
listen = "{folder}/records"
backend = "{folder}/private-records"
protocol = "seqpacket"
sender = "same-user"
allow = [{{ users = ["*"] }}]
"""


class Case:
    """The daemon with services that keep what they get. ``got`` is what each connection brought, in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon: Daemon
        self.got: list[bytearray] = []
        self.fds: list[int] = []
        self.over: list[threading.Event] = []
        self.before = 0

    def serve(self, sock: socket.socket) -> None:
        got, over = bytearray(), threading.Event()
        self.got.append(got)
        self.over.append(over)
        sock.send(b"hello")
        try:
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 253)
                except ConnectionResetError:  # of records it is told before what is queued
                    continue
                self.fds.append(len(fds))
                close_all(fds)
                if not data:
                    return
                got += data
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.send(b"!")
        finally:
            over.set()

    def relay(self) -> int:
        (pid,) = self.daemon.pids()["sockguard-relay"]
        return pid

    def connect(self, proxy: str) -> socket.socket:
        """A connection that the service has greeted; its kind is the proxy's."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if proxy == "records" else socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.folder / proxy))
        assert sock.recv(5) == b"hello"
        return sock

    def run(
        self, proxy: str, do: Callable[[socket.socket], str], uid: int = MINE, **how: Any
    ) -> tuple[str, str, bytes]:
        """Connect as ``uid``, and do that with the connection: what it gave, how it ended, what the service got."""
        self.before = len(self.daemon.lines)
        self.got.clear()
        self.over.clear()
        self.fds.clear()

        def client() -> str:
            with self.connect(proxy) as sock:
                return do(sock)

        said = as_user(client, uid, uid, **how)
        event = self.daemon.wait_for("connection_closed", lambda event: event["seq"] > self.before)
        assert event["uid"] == uid
        assert self.over[0].wait(20)
        return said, str(event["outcome"]), bytes(self.got[0])


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    with open_folder() as folder:
        made = Case(folder)
        config = folder / "sockguard.toml"
        config.write_text(CONFIG.format(folder=folder))
        with (
            serving(folder / "private", made.serve),
            serving(folder / "private-records", made.serve, kind=socket.SOCK_SEQPACKET),
            running(config, *[folder / name for name in PROXIES]) as daemon,
        ):
            wait_started(daemon)
            made.daemon = daemon
            yield made


def end_of(sock: socket.socket) -> str:
    """Until the connection is cut: how that shows."""
    try:
        while sock.recv(100):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def as_child(do: Callable[[], object], uid: int) -> None:
    """Have a child of this (root's) process do that as ``uid``, with the descriptors that it inherits."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            do()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def credentials(sock: socket.socket, data: bytes, uid: int) -> None:
    """Send with credentials that claim that uid; the kernel lets root, and whoever has it as one of its own ids."""
    ids = struct.pack("3I", os.getpid(), uid, os.getgid())
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ids)])


def exchange(sock: socket.socket) -> str:
    for _ in range(3):
        sock.send(b"mine")
        assert sock.recv(1) == b"!"
    sock.shutdown(socket.SHUT_WR)
    return end_of(sock)


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_rightful_sender(case: Case, proxy: str) -> None:
    """Who has connected may send, and so may another process of the same uid that got the descriptor."""
    assert case.run(proxy, exchange) == ("end", "closed", b"mine" * 3)

    def with_a_child(sock: socket.socket) -> str:
        as_child(lambda: sock.send(b"child's"), MINE)
        assert sock.recv(1) == b"!"
        return exchange(sock)

    assert case.run(proxy, with_a_child) == ("end", "closed", b"child's" + b"mine" * 3)


def handed_on(case: Case, proxy: str, *, queued: bool, fds: int) -> tuple[str, bytes]:
    """MINE connects and sends; THEIRS has the descriptor and sends, too: how it ended, what the service got.

    queued: the relay looks only when everything is there.
    """
    case.got.clear()
    case.over.clear()
    case.fds.clear()
    before = len(case.daemon.lines)
    ours, theirs = socket.socketpair()

    def client() -> str:
        with case.connect(proxy) as sock:
            socket.send_fds(ours, [b"x"], [sock.fileno()])
            assert ours.recv(1) == b"y"  # the test has it
            return end_of(sock)

    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(as_user(client, MINE, MINE)))
    thread.start()
    _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
    sock = socket.socket(fileno=fd)

    def send() -> None:
        as_child(lambda: [sock.send(b"mine1"), sock.send(b"mine2")], MINE)
        if not queued:
            for _ in range(2):
                select.select([], [], [], 0)  # whatever the relay has passed on by now is MINE's
        as_child(lambda: socket.send_fds(sock, [b"THEIRS"], [0] * fds), THEIRS)
        as_child(lambda: sock.send(b"mine3"), MINE)

    with sock:
        if queued:
            with stopped(case.relay()):
                send()
        else:
            send()
        with contextlib.suppress(OSError):  # cut already
            sock.shutdown(socket.SHUT_WR)
    theirs.send(b"y")
    thread.join(20)
    ours.close()
    theirs.close()
    event = case.daemon.wait_for("connection_closed", lambda event: event["seq"] > before)
    assert case.over[0].wait(20)
    return str(event["outcome"]), bytes(case.got[0])


@pytest.mark.parametrize("proxy", ["guarded", "records"])
@pytest.mark.parametrize("queued", [True, False], ids=["queued", "as they come"])
@pytest.mark.parametrize("fds", [0, 1], ids=["plain", "with an fd"])
def test_bytes_of_another_user_end_it(case: Case, proxy: str, queued: bool, fds: int) -> None:
    """What the rightful sender had sent may arrive; of another's not one byte, nor an fd, nor anything behind it."""
    outcome, got = handed_on(case, proxy, queued=queued, fds=fds)
    assert outcome == "sender_changed"
    assert b"mine1mine2".startswith(got)
    if queued:
        assert got == b"mine1mine2"
    assert not any(case.fds)


def test_without_it_whoever_has_the_connection_may_send(case: Case) -> None:
    """sender = "any": a descriptor that was handed on is as good as one's own."""
    outcome, got = handed_on(case, "open", queued=True, fds=1)
    assert (outcome, got) == ("closed", b"mine1mine2THEIRSmine3")
    assert sum(case.fds) == 1


@pytest.mark.parametrize("proxy", ["guarded", "records"])
def test_a_set_uid_client(case: Case, proxy: str) -> None:
    """It connects as its effective uid and, without more, sends as its real one: the kernel's words differ, and the
    connection ends. With credentials that name its effective uid it may send. (Documented in example.toml.)"""

    def plainly(sock: socket.socket) -> str:
        sock.send(b"from the real uid")
        with contextlib.suppress(OSError):  # cut already
            sock.shutdown(socket.SHUT_WR)
        return end_of(sock)

    def with_credentials(sock: socket.socket) -> str:
        credentials(sock, b"mine", MINE)
        assert sock.recv(1) == b"!"
        sock.shutdown(socket.SHUT_WR)
        return end_of(sock)

    _, outcome, got = case.run(proxy, plainly, real_uid=OTHER)
    assert (outcome, got) == ("sender_changed", b"")
    assert case.run(proxy, with_credentials, real_uid=OTHER) == ("end", "closed", b"mine")
    _, outcome, got = case.run("open", plainly, real_uid=OTHER)
    assert got == b"from the real uid"[: len(got)]
    assert outcome != "sender_changed"


@pytest.mark.parametrize("proxy", ["guarded", "records"])
def test_credentials_that_claim_another_uid(case: Case, proxy: str) -> None:
    """The kernel lets root name any uid as the sender: then that is the sender. Others can name none but their own."""

    def claim(uid: int) -> Callable[[socket.socket], str]:
        def do(sock: socket.socket) -> str:
            try:
                credentials(sock, b"claimed", uid)
            except PermissionError:
                return "not permitted"
            return end_of(sock)

        return do

    _, outcome, got = case.run(proxy, claim(THEIRS), 0)
    assert (outcome, got) == ("sender_changed", b"")
    assert case.run(proxy, claim(THEIRS), MINE) == ("not permitted", "closed", b"")


@pytest.mark.parametrize("proxy", ["guarded", "open"])
@pytest.mark.parametrize("data", [b"!", b"some bytes and the last one!"])
def test_an_urgent_byte_is_refused(case: Case, proxy: str, data: bytes) -> None:
    """MSG_OOB has no place in an ordered copy: the connection is cut, and says so; nothing is dropped in silence."""

    def urgently(sock: socket.socket) -> str:
        sock.send(b"before")
        assert sock.recv(1) == b"!"
        sock.send(data, socket.MSG_OOB)
        wait_until(lambda: end_of(sock) == "reset", "it hears that a byte was not read")
        return "reset"

    said, outcome, got = case.run(proxy, urgently)
    assert (said, outcome) == ("reset", "urgent_refused")
    assert got.startswith(b"before")
    assert (b"before" + data[:-1]).startswith(got)
