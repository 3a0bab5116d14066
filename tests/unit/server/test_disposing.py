"""What clients and services may have passed is never released by control: it ends such connections elsewhere."""

from __future__ import annotations

import itertools
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import pytest
import trio
import trio.testing

from sockguard.carriers import master
from sockguard.carriers.disposal import Disposal
from sockguard.carriers.master import Master
from sockguard.config.settings import Listen, ListenKind, Proxy
from sockguard.errors import SockguardError
from sockguard.identity import peercred
from sockguard.identity.accounts import Accounts
from sockguard.identity.peer import Peer
from sockguard.privsep import channel, foreign, listening
from sockguard.privsep.messages import Credits
from sockguard.server import guards, http_service, relays
from sockguard.server.connections import Connection
from sockguard.server.daemon import Daemon
from sockguard.server.delivery import RelayDelivery
from sockguard.server.guards import Guards
from sockguard.server.metrics import NullMetrics
from sockguard.server.privileges import Privileges
from sockguard.server.relays import RelayPool
from sockguard.server.separation import Separation
from tests.support.operator import MemoryDisposer, MemoryOperator, served
from tests.unit.server.conftest import SECONDS, Control, Make, allow, config, proxy

PEER: Final = Peer(1, 1, frozenset({1}), pid=1)
UID: Final = os.geteuid()


class Passed:
    """A descriptor that peers pass: the reading end of a pipe, of which nobody else has a copy."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._writer, 0)

    def by(self, sock: socket.socket, data: bytes = b"x", flags: int = 0) -> None:
        socket.send_fds(sock, [data], [self._reader], flags)

    def let_go(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def closed(self, seconds: float = 0) -> bool:
        self.let_go()
        return self._poll.poll(seconds * 1000) == [(self._writer, select.POLLERR)]

    def finish(self) -> None:
        self.let_go()
        os.close(self._writer)


@pytest.fixture
def passed() -> Iterator[Passed]:
    made = Passed()
    yield made
    made.finish()


def ended(peer: socket.socket) -> bool:
    try:
        return peer.recv(10) == b""
    except ConnectionResetError:
        return True


# ── clients that are not let in ──


def unknown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def fail(_: socket.socket) -> tuple[int, int, int]:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(peercred, "credentials", fail)
    return {}


def root(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(peercred, "credentials", lambda _: (1, 0, 0))
    return {"identity": "client"}


REFUSED: Final[dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]]] = {
    "unknown": unknown,
    "rules": lambda monkeypatch: {"rules": (allow("nobody", UID + 1),)},
    "identity": root,
    "limit": lambda monkeypatch: {"max_connections": 0},
}
"""By the cause: what makes a client be refused for it."""


@pytest.mark.parametrize("cause", REFUSED)
@pytest.mark.parametrize("passes", [True, False])
async def test_a_client_that_is_not_let_in(
    monkeypatch: pytest.MonkeyPatch, passed: Passed, cause: str, passes: bool
) -> None:
    """Whyever: it sees the end; handed over if it may have passed something, closed at once if not."""
    made = Control(config(replace(proxy("web", allow("all")), **REFUSED[cause](monkeypatch))))
    client, peer = socket.socketpair()
    with peer:
        if passes:
            passed.by(peer)
        await made.admissions["web"].arrive(client)
        assert [told["cause"] for told in made.audit.named("connection_denied")] == [cause]
        assert made.disposer.socks == ([client] if passes else [])
        assert (client.fileno() >= 0) is passes
        assert ended(peer)
        assert not passes or not passed.closed()
    made.close()


# ── clients that are let in, and get nowhere ──


class Nowhere:
    """Whoever connects as a client, cannot (a fake of the monitor)."""

    async def connect_as(self, proxy: Proxy, client: socket.socket, proof: str) -> socket.socket | int:
        raise SockguardError("not permitted")


class NoPool:
    """Nobody gets so far."""


class Delivering:
    """One client on its way to the service at folder/private, which has passed a descriptor."""

    def __init__(self, folder: Path, passed: Passed, **options: Any) -> None:
        path = str(folder / "private")
        self.made = Control(config(replace(proxy("web", allow("all"), protocol="stream"), backend=path, **options)))
        self.path = path
        self.client, self.peer = socket.socketpair()
        self.client.setblocking(False)
        passed.by(self.peer)
        admission = self.made.admissions["web"]
        assert admission.limits.take(1) is None
        self.connection = Connection(1, admission, PEER, 1, "all", trio.current_time())
        self.made.connections.add(self.connection)

    def deliver(self, nursery: trio.Nursery, pool: object = None) -> None:
        RelayDelivery(
            cast(RelayPool, pool or NoPool()),
            self.made.connections,
            cast(Privileges, Nowhere()),
            NullMetrics(),
            nursery,
            self.made.disposer,
        ).deliver(self.connection, self.client)

    def ended_as(self, outcome: str) -> None:
        """It has ended so, and what it passed is not released here."""
        (event,) = self.made.audit.named("connection_closed")
        assert event["outcome"] == outcome
        assert self.made.disposer.socks == [self.client]
        assert ended(self.peer)
        self.peer.close()
        self.made.close()


async def test_a_service_that_is_not_there(
    folder: Path, passed: Passed, autojump_clock: trio.testing.MockClock
) -> None:
    """Its client is ended when waiting was in vain."""
    subject = Delivering(folder, passed)
    async with trio.open_nursery() as nursery:
        subject.deliver(nursery)
    assert not passed.closed()
    subject.ended_as("backend_unavailable")


async def test_an_identity_that_cannot_be_shown(folder: Path, passed: Passed) -> None:
    """Its client is ended with what it has passed."""
    subject = Delivering(folder, passed, identity="client")
    async with trio.open_nursery() as nursery:
        subject.deliver(nursery)
    assert not passed.closed()
    subject.ended_as("identity_refused")


async def test_a_client_that_is_revoked_while_it_waits(folder: Path, passed: Passed) -> None:
    """Ended before it has a service."""
    subject = Delivering(folder, passed)
    async with trio.open_nursery() as nursery:
        subject.deliver(nursery)
        await trio.testing.wait_all_tasks_blocked()
        subject.made.pool.close(subject.connection, "revoked")
    assert not passed.closed()
    subject.ended_as("revoked")


async def test_a_client_that_waits_at_the_end(folder: Path, passed: Passed) -> None:
    """Ended with the daemon."""
    subject = Delivering(folder, passed)
    async with trio.open_nursery() as nursery:
        subject.deliver(nursery)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not passed.closed()
    subject.ended_as("stopped")


# ── connections that no relay gets ──


class Both:
    """A client and a service, connected to control, which have each passed a descriptor if there is one."""

    def __init__(self, made: Control, passed: Passed | None) -> None:
        (self.client, self.client_peer), (self.backend, self.backend_peer) = (socket.socketpair() for _ in range(2))
        for peer in (self.client_peer, self.backend_peer):
            if passed:
                passed.by(peer)
        self.connection = Connection(
            made.connections.next_number(), made.admissions["web"], PEER, 1, "all", trio.current_time()
        )
        assert made.admissions["web"].limits.take(1) is None
        made.connections.add(self.connection)
        made.pool.hand_over(self.connection, self.client, self.backend)

    def ended(self, made: Control, outcome: str) -> None:
        assert [event["outcome"] for event in made.audit.named("connection_closed")] == [outcome]
        assert made.disposer.socks == [self.client, self.backend]
        for peer in (self.client_peer, self.backend_peer):
            assert ended(peer)
            peer.close()


async def test_one_that_waits_for_a_relay(passed: Passed) -> None:
    """Told to end before any relay has it, both of its ends are ended here."""
    made = Control(config(proxy("web", allow("all"), protocol="stream")))
    both = Both(made, passed)
    made.pool.close(both.connection, "revoked")
    assert not passed.closed()
    both.ended(made, "revoked")
    made.close()


async def test_one_that_finds_every_relay_full(control: Make, passed: Passed) -> None:
    """It is ended at once."""
    async with control(config(proxy("web", allow("all"), protocol="stream"))) as made:
        (relay,) = made.pool
        relay.capacity = 0
        both = Both(made, passed)
        assert not passed.closed()
        both.ended(made, "out_of_files")


async def test_one_that_is_lost_on_its_way(control: Make, passed: Passed) -> None:
    """A relay that reads nothing more and ends: what could not be sent to it is ended here, and the rest by its end."""
    async with control(config(proxy("web", allow("all"), protocol="stream"))) as made:
        (relay,) = made.pool
        await made.relays.told(Credits)
        relay.channel.shutdown(socket.SHUT_WR)  # as one that is full: nothing goes out any more
        both = Both(made, passed)
        made.pool.flush()
        assert made.disposer.socks == []
        made.relays.end()
        await made.until(lambda: not len(made.connections))
        assert not passed.closed()
        both.ended(made, "relay_lost")


@pytest.mark.parametrize("passes", [True, False])
async def test_one_that_a_relay_has(control: Make, passed: Passed, passes: bool) -> None:
    """It is the relay's: control closes its copies, and ends nothing. The relay may have closed its own by then, so a
    copy in which something waits is handed over.
    """
    async with control(config(proxy("web", allow("all"), protocol="stream"))) as made:
        await made.relays.told(Credits)
        both = Both(made, passed if passes else None)
        made.pool.flush()
        _, fds = await made.relays.next()
        assert made.disposer.socks == ([both.client, both.backend] if passes else [])
        assert [sock.fileno() >= 0 for sock in (both.client, both.backend)] == [passes] * 2
        for fd, peer in zip(fds, (both.client_peer, both.backend_peer), strict=True):
            with socket.socket(fileno=fd) as sock:
                assert not passes or sock.recv(10) == b"x"
                sock.send(b"y")
                peer.send(b"z")
                assert sock.recv(10) == b"z"
            assert peer.recv(10) == b"y"
            peer.close()


# ── relays that are given up ──


@pytest.mark.parametrize("what", ["heartbeat", "new rules"])
async def test_a_relay_that_does_not_end(
    control: Make, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Killed, it counts as gone, whatever the kernel keeps it for: what it had is told, and another one serves."""
    before = config(proxy("web", allow("all"), protocol="stream"))
    async with control(before) as made:
        await made.relays.told(Credits)
        made.admit(1)
        await made.relays.handed()
        if what == "new rules":
            made.pool.new_generation(before)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.pool.settled)
        with trio.fail_after(2 * relays.HEARTBEAT_SECONDS):
            while len(made.relays.ends) < 2:
                await trio.sleep(0.1)
        await made.relays.generation(1)
        assert set(made.relays.killed) == {1}
        assert [event["outcome"] for event in made.audit.named("connection_closed")] == ["relay_lost"]
        assert made.connections.get(1) is None
        await made.until(lambda: len(list(made.pool)) == 1)
        await made.relays.told(Credits, 1)
        made.admit(1)
        await made.relays.handed(1)


# ── listening sockets ──


@pytest.fixture
def doors(folder: Path) -> Iterator[tuple[Control, Path]]:
    made = Control(config(replace(proxy("web", allow("all")), listen=Listen(ListenKind.PATH, str(folder / "s")))))
    yield made, folder / "s"
    made.close()


def guarded(made: Control, path: Path, nursery: trio.Nursery) -> Guards:
    """The proxy's listener, before it has accepted anybody: there is no room."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.setblocking(False)
    found = Guards(nursery, lambda: None, trio.sleep_forever, made.disposer, cast(Privileges, made.relays))
    found.add(made.admissions["web"], sock)
    return found


CLOSES: Final[dict[str, Callable[[Guards], None]]] = {
    "one": lambda found: found.remove("web"),
    "all": lambda found: found.close(restarting=False),
    "all, for a while": lambda found: found.close(restarting=True),
}


@pytest.mark.parametrize(
    ("close", "kept"), [("one", False), ("one", True), ("all", False), ("all", True), ("all, for a while", False)]
)
async def test_clients_that_nobody_accepts_any_more(
    doors: tuple[Control, Path], passed: Passed, monkeypatch: pytest.MonkeyPatch, close: str, kept: bool
) -> None:
    """They are ended one by one: only what has passed something is handed over. Also where a service manager keeps
    the listening socket, unless this is a restart: what they send would be its to close.
    """
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if kept:
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    made, path = doors
    with socket.socket(socket.AF_UNIX) as quiet, socket.socket(socket.AF_UNIX) as passing:
        async with trio.open_nursery() as nursery:
            found = guarded(made, path, nursery)
            await trio.testing.wait_all_tasks_blocked()
            for client in (quiet, passing):
                client.connect(str(path))
            passed.by(passing)
            CLOSES[close](found)
            nursery.cancel_scope.cancel()
        assert len(made.disposer.socks) == 1
        assert ended(quiet)
        assert ended(passing)
        assert not passed.closed()
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(path))


@pytest.mark.parametrize(
    ("kind", "how", "restarting"),
    [
        (ListenKind.PATH, "close_listener", True),
        (ListenKind.PATH, "close", True),
        *itertools.product([ListenKind.ADOPTED], ["close_listener", "close"], [True, False]),
        (ListenKind.ADOPTED, "remove", False),
    ],
)
async def test_clients_that_the_next_run_accepts(
    doors: tuple[Control, Path],
    passed: Passed,
    monkeypatch: pytest.MonkeyPatch,
    kind: ListenKind,
    how: str,
    restarting: bool,
) -> None:
    """Where a service manager keeps the listening socket over a restart, or has made it, nobody in its backlog is
    ended. It is not closed here: whoever has the other copy may have closed it by now.
    """
    made, path = doors
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    if kind is ListenKind.ADOPTED:
        monkeypatch.delenv("NOTIFY_SOCKET")
    admission = made.admissions["web"]
    admission.proxy = replace(admission.proxy, listen=Listen(kind, str(path)))
    with socket.socket(socket.AF_UNIX) as client:
        async with trio.open_nursery() as nursery:
            found = guarded(made, path, nursery)
            (guard,) = found
            await trio.testing.wait_all_tasks_blocked()
            client.connect(str(path))
            passed.by(client)
            match how:
                case "close_listener":
                    guards.close_listener(admission.proxy, guard.socket, made.disposer, restarting=restarting)
                case "close":
                    found.close(restarting=restarting)
                case "remove":
                    found.remove("web")
            nursery.cancel_scope.cancel()
        assert made.disposer.socks == [guard.socket]
        with guard.socket.accept()[0] as accepted:
            assert accepted.recv(10) == b"x"
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(path))


# ── who asks control ──


@pytest.fixture(params=["kernel refuses", "kernel takes all"])
async def disposer(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MemoryDisposer]:
    """Of a control socket that is served at folder/control.sock, by a kernel since Linux 6.16 or before it."""
    if request.param == "kernel takes all":
        set_options = listening.set_options

        def take_all(sock: socket.socket, *, refuse_fds: bool, credentials: bool) -> None:
            set_options(sock, refuse_fds=False, credentials=credentials)

        monkeypatch.setattr(listening, "set_options", take_all)
    disposer = MemoryDisposer()
    async with served(folder / "control.sock", MemoryOperator(), disposer):
        yield disposer


REQUEST: Final = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"


def asking(folder: Path) -> socket.socket:
    """A client of the control socket, which nobody has accepted yet."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(folder / "control.sock"))
    sock.setblocking(False)
    return sock


async def all_said(client: socket.socket) -> bytes:
    """What the service says, to its end."""
    said = b""
    with trio.fail_after(SECONDS):
        while True:
            await trio.lowlevel.wait_readable(client)
            try:
                data = client.recv(65536)
            except ConnectionResetError:
                return said
            if not data:
                return said
            said += data


async def answered(client: socket.socket) -> bytes:
    """The beginning of what it says."""
    with trio.fail_after(SECONDS):
        await trio.lowlevel.wait_readable(client)
    return client.recv(65536)


async def is_served(folder: Path) -> None:
    with asking(folder) as other:
        other.send(REQUEST)
        assert (await answered(other)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["in turn", "urgent"])
@pytest.mark.parametrize("before", [b"", b"GET /sta", REQUEST], ids=["first", "within a request", "behind one"])
async def test_descriptors_end_an_operators_connection(
    folder: Path,
    disposer: MemoryDisposer,
    passed: Passed,
    capsys: pytest.CaptureFixture[str],
    before: bytes,
    flags: int,
) -> None:
    """They are not received: such a connection ends, with nothing logged, and others are answered."""
    with asking(folder) as client:
        if before:
            client.send(before)
        if before == REQUEST:
            assert (await answered(client)).startswith(b"HTTP/1.1 200 ")
        try:
            passed.by(client, flags=flags)
        except PermissionError:
            await is_served(folder)
            return
        assert b"HTTP/1.1 " not in await all_said(client)  # but the rest of what was answered before
    assert len(disposer.socks) == 1
    assert not passed.closed()
    await is_served(folder)
    assert capsys.readouterr() == ("", "")


async def test_a_request_with_descriptors_behind_it(
    folder: Path, disposer: MemoryDisposer, passed: Passed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is answered or not, what came behind it is not received."""
    with asking(folder) as client:
        client.send(REQUEST)
        try:
            passed.by(client)
        except PermissionError:
            return
        await all_said(client)
    assert len(disposer.socks) == 1
    assert not passed.closed()
    await is_served(folder)
    assert capsys.readouterr() == ("", "")


async def test_an_operators_urgent_byte(
    folder: Path, disposer: MemoryDisposer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a byte as any other, or none: it is not waited for in a loop that never rests, and a request before it is
    answered.
    """
    in_vain = 0
    plain_bytes = foreign.plain_bytes

    def count(sock: socket.socket, limit: int) -> int:
        nonlocal in_vain
        try:
            return plain_bytes(sock, limit)
        except BlockingIOError:
            in_vain += 1
            raise

    monkeypatch.setattr(foreign, "plain_bytes", count)
    with asking(folder) as lone, asking(folder) as last:
        lone.send(b"!", socket.MSG_OOB)
        last.send(REQUEST + b"!", socket.MSG_OOB)
        assert (await answered(last)).startswith(b"HTTP/1.1 200 ")
        for _ in range(50):
            await is_served(folder)
        assert in_vain < 50
        for client in (lone, last):
            client.shutdown(socket.SHUT_WR)
            await all_said(client)
    assert disposer.socks == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("why", ["not permitted", "too many", "fault"])
@pytest.mark.parametrize("passes", [True, False])
async def test_an_operator_who_is_turned_away(
    folder: Path,
    disposer: MemoryDisposer,
    passed: Passed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: str,
    passes: bool,
) -> None:
    """Told why, as before; what such a client has passed is released elsewhere."""
    match why:
        case "not permitted":
            monkeypatch.setattr(peercred, "credentials", lambda _: (1, UID + 1, 0))
        case "too many":
            monkeypatch.setattr(http_service, "MAX_CONNECTIONS", 0)
        case "fault":
            monkeypatch.setattr(peercred, "credentials", lambda _: ())
    with asking(folder) as client:
        handed = 0
        if passes:
            with suppress(PermissionError):
                passed.by(client)
                handed = 1
        wanted = {"not permitted": b"HTTP/1.1 403 ", "too many": b"HTTP/1.1 503 ", "fault": b""}[why]
        assert (await all_said(client))[:13] == wanted
    assert len(disposer.socks) == handed
    assert not passed.closed() or not handed
    assert ("a fault of sockguard's own" in capsys.readouterr().out) is (why == "fault")


async def test_an_operator_who_passes_nothing(folder: Path, disposer: MemoryDisposer) -> None:
    """Closed here, at once, whatever of a request is unread."""
    for data in (b"", b"GET /sta", REQUEST, REQUEST + b"x" * 100_000):
        with asking(folder) as client:
            if data:
                client.send(data)
            if data.startswith(REQUEST):
                assert (await answered(client)).startswith(b"HTTP/1.1 200 ")
            client.shutdown(socket.SHUT_WR)
            await all_said(client)
    assert disposer.socks == []


# ── handing over ──


async def test_what_cannot_be_handed_over_now_is_handed_over_later(autojump_clock: trio.testing.MockClock) -> None:
    """The daemon tries again as long as something waits, and again for what comes later."""
    ours, theirs = channel.pair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        daemon = Daemon(
            "f",
            config(proxy("web", allow("all"))),
            Accounts.from_system(),
            cast(Privileges, Control(config()).relays),
            Separation(False, 0, 0),
            Master(ours, ours, [], 0),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon._dispose)
            for _ in range(2):
                with suppress(BlockingIOError):
                    while ours.send(b"full"):
                        pass
                one, other = socket.socketpair()
                daemon._disposal.dispose((one,))
                await trio.sleep(10)
                assert daemon._disposal.waiting == 1
                with suppress(BlockingIOError):
                    while theirs.recv(10):
                        pass
                await trio.sleep(10)
                assert daemon._disposal.waiting == 0
                assert one.fileno() == -1
                _, (fd,), _, _ = socket.recv_fds(theirs, 10, 1)
                os.close(fd)
                other.close()
            nursery.cancel_scope.cancel()


async def test_a_client_that_is_not_let_in_and_a_real_master(passed: Passed) -> None:
    """What it has passed is released by a process that exits, and no socket of it is left here."""
    started = master.start()
    started.wait_ready()
    made = Control(config(proxy("web", allow("nobody", UID + 1))))
    admission = made.admissions["web"]
    admission._disposer = Disposal(started.disposals)
    client, peer = socket.socketpair()
    with peer:
        passed.by(peer)
        await admission.arrive(client)
        assert client.fileno() == -1
        assert ended(peer)
        assert await trio.to_thread.run_sync(passed.closed, SECONDS)
    started.close()
    made.close()
