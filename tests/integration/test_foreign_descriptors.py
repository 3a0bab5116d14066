"""Descriptors whose last close waits for as long as their maker likes: whoever brings one, sockguard does not wait.

The attackers are users of the machine. What they pass is a TCP socket that lingers (tests/support/lingering.py), of
which they keep no copy: whoever closes the connection, or the listener, in which it waits would close it, too.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.integration.test_ordinary_user import run_as
from tests.support.foreign import (
    ATTACKER,
    FRIEND,
    KINDS,
    PROTOCOLS,
    SECONDS,
    STRANGER,
    Place,
    connect_as,
    is_over,
    kernel_refuses_fds,
    place,
    served,
    without_files,
)
from tests.support.identities import account, guarding, open_folder, stopped, wait_until
from tests.support.lingering import Lingering, lingering
from tests.support.services import serving

pytestmark = pytest.mark.root

MANY: Final = 100
"""Connections at once: more than processes that dispose of sockets (carriers/master.py)."""


@pytest.fixture
def bombs() -> Iterator[Lingering]:
    with lingering() as made:
        yield made


def throw(bombs: Lingering, sock: socket.socket, refused: bool) -> None:
    """Send one over a connection that nobody has accepted yet. refused: the kernel must not take it."""
    if refused:
        with pytest.raises(PermissionError):
            bombs.send(sock)
    else:
        bombs.send(sock)


# ── control ends the connection ──


@pytest.mark.parametrize("proxy", KINDS)
def test_a_user_whom_no_rule_admits(bombs: Lingering, proxy: str) -> None:
    """Who is not admitted sends one before the connection is accepted. Where the protocol knows no descriptors, the
    kernel refuses it (Linux 6.16), from the first connection on that there ever is."""
    with place() as guard, ExitStack() as socks:
        with stopped(guard.control()):
            sock = socks.enter_context(guard.connect(STRANGER, proxy))
            throw(bombs, sock, proxy == "http" and kernel_refuses_fds())
        assert guard.daemon.wait_for("connection_denied")["uid"] == STRANGER
        guard.goes_on(*KINDS)
        assert is_over(sock)


def test_many_at_once(bombs: Lingering) -> None:
    """A hundred of them cost nobody anything, and each connection is ended and told."""
    with place() as guard, ExitStack() as socks:
        with stopped(guard.control()):
            clients = [socks.enter_context(guard.connect(STRANGER)) for _ in range(MANY)]
            for client in clients:
                bombs.send(client)
        guard.goes_on(*KINDS)
        wait_until(lambda: len(guard.daemon.events("connection_denied")) == MANY, "all are denied", SECONDS)
        for client in clients:
            assert is_over(client)


def test_a_daemon_without_a_monitor(bombs: Lingering) -> None:
    """One that an ordinary user has started, where everything runs under one uid."""
    rules = f"[daemon]\nrelays = 1\n[proxy.own]\nallow = [{{ users = [{FRIEND}] }}]\n"
    with open_folder() as folder, account(f"sgt{os.getpid()}lone") as user, ExitStack() as socks:
        os.chown(folder, user.uid, user.gid)
        guard = socks.enter_context(guarding(folder, rules, **run_as(folder, user.uid, user.gid)))
        with stopped(guard.daemon.process.pid):
            for _ in range(3):
                bombs.send(socks.enter_context(connect_as(STRANGER, guard.path("own"))))
        with connect_as(FRIEND, guard.path("own")) as sock:
            served(sock)
        assert guard.daemon.wait_for("connection_denied")["uid"] == STRANGER
        assert guard.daemon.stop(wait=SECONDS) == 0


OTHER_ENDS: Final = {
    "limit": ("max_connections_per_user = 1", ATTACKER, "connection_denied", "cause"),
    "identity": ('identity = "client"', 0, "connection_denied", "cause"),
    "backend_unavailable": ('backend = "FOLDER/nobody"', ATTACKER, "connection_closed", "outcome"),
}
"""Ways in which control ends a connection of an admitted user: keys of the proxy, the user, and what the event says."""


@pytest.mark.parametrize("way", OTHER_ENDS)
def test_however_control_ends_it(bombs: Lingering, way: str) -> None:
    """Who is admitted has one wait in a connection that is not delivered."""
    keys, uid, name, field = OTHER_ENDS[way]
    with place({**PROTOCOLS, "one": keys}) as guard, ExitStack() as socks:
        if way == "limit":
            served(socks.enter_context(guard.connect(uid, "one")))
        with stopped(guard.control()):
            sock = socks.enter_context(guard.connect(uid, "one"))
            bombs.send(sock)
        assert guard.daemon.wait_for(name, lambda event: event["uid"] == uid)[field] == way
        guard.goes_on(*KINDS)
        assert is_over(sock)


# ── nobody accepts the connection ──


def backlog(guard: Place, bombs: Lingering, socks: ExitStack) -> list[socket.socket]:
    """Connections with bombs that wait to be accepted, and go on waiting: within ``without_files``."""
    clients = []
    for proxy in ("stream", "seqpacket"):
        for uid in (STRANGER, ATTACKER, STRANGER):
            clients.append(socks.enter_context(guard.connect(uid, proxy)))
            bombs.send(clients[-1])
    wait_until(lambda: "clients wait" in guard.daemon.stderr(), "control accepts nobody")
    assert not guard.daemon.events("connection_denied")
    return clients


def test_a_reload_removes_the_proxy(bombs: Lingering) -> None:
    """What waits in the backlog of a listener is ended before that is closed."""
    with place() as guard, ExitStack() as socks:
        with without_files(guard.control()):
            clients = backlog(guard, bombs, socks)
            guard.write({"http": PROTOCOLS["http"]})
            guard.daemon.process.send_signal(signal.SIGHUP)
            guard.daemon.wait_for("reloaded")
        guard.goes_on("http")
        for client in clients:
            assert is_over(client)
        assert not guard.daemon.events("connection_denied")  # nobody was accepted


def test_a_reload_refuses_descriptors(bombs: Lingering) -> None:
    """What connected before still has them, and its end looks for them."""
    with place() as guard, ExitStack() as socks:
        with without_files(guard.control()):
            clients = backlog(guard, bombs, socks)
            guard.write(
                {**PROTOCOLS, "stream": 'fds = "refuse"', "seqpacket": 'fds = "refuse"\n' + PROTOCOLS["seqpacket"]}
            )
            guard.daemon.process.send_signal(signal.SIGHUP)
            guard.daemon.wait_for("reloaded")
        guard.goes_on(*KINDS)
        for client in clients:
            assert is_over(client)


def test_the_daemon_ends(bombs: Lingering) -> None:
    """What waits in the backlog at the end does not keep it: the status is the usual one, and the paths are gone."""
    with place() as guard, ExitStack() as socks, without_files(guard.control()):
        clients = backlog(guard, bombs, socks)
        assert guard.daemon.stop(wait=SECONDS) == 0
        for client in clients:
            assert is_over(client)
        assert not any((guard.folder / proxy).exists() for proxy in KINDS)
        assert not guard.daemon.events("connection_denied")

    # ── a relay ends the connection ──


@pytest.mark.parametrize("outcome", ["closed_by_operator", "stopped"])
def test_a_relay_ends_it(bombs: Lingering, outcome: str) -> None:
    """They wait in connections that the relay does not read, since the service does not. Whether an operator closes
    these, or the daemon is told twice to end: the relay ends one after the other, and says how much has passed."""
    proxies = {**PROTOCOLS, "silent": 'backend = "FOLDER/silent.private"'}
    with place(proxies, drain="1h") as guard, unheard(guard.folder / "silent.private"), ExitStack() as socks:
        served(socks.enter_context(guard.connect(FRIEND)))
        for _ in range(3):
            sock = socks.enter_context(guard.connect(ATTACKER, "silent"))
            fill(sock)
            bombs.send(sock)
        if outcome == "stopped":
            guard.daemon.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in guard.daemon.stderr(), "the daemon drains")
            assert guard.daemon.stop(wait=SECONDS) == 0
            assert guard.ends(FRIEND)[0]["bytes_from_client"] == len("ping")
        else:
            for event in guard.daemon.events("connection_admitted"):
                if event["uid"] == ATTACKER:
                    guard.command("close", event["connection"])
        ends = guard.ends(ATTACKER, 3)
        assert [event["outcome"] for event in ends] == [outcome] * 3
        assert all(event["bytes_from_client"] for event in ends)
        if outcome != "stopped":
            guard.goes_on(*KINDS)
        assert not guard.daemon.events("relay_restarted")


@contextmanager
def unheard(path: Path) -> Iterator[None]:
    """A service that reads nothing."""
    over = threading.Event()

    def wait(_: socket.socket) -> None:
        over.wait()

    with serving(path, wait):
        try:
            yield
        finally:
            over.set()


def fill(sock: socket.socket) -> None:
    """Send until nobody takes any more of it, and make room for one more message."""
    sock.setblocking(False)
    while select.select([], [sock], [], 0.5)[1]:
        with suppress(BlockingIOError):
            sock.send(bytes(4096))
    sock.settimeout(SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
