"""Control's side of relays, with the test as the relay."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import pytest
import trio

from sockguard.audit import AuditLog, to_json
from sockguard.config.read import Source
from sockguard.config.settings import Config, Daemon, Listen, ListenKind, Log, Proxy
from sockguard.errors import SockguardError
from sockguard.identity.accounts import Accounts
from sockguard.identity.peer import Peer
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.privsep import channel, memfd
from sockguard.privsep.messages import (
    CONTROL_TO_RELAY,
    ConnectionsTaken,
    Generation,
    GenerationTaken,
    Hello,
    Message,
    Ping,
    RuleSets,
)
from sockguard.privsep.messages import (
    Connections as Batch,
)
from sockguard.privsep.pipe import Outlet
from sockguard.relay.options import GenerationContent, read_generation
from sockguard.server.admission import Admission
from sockguard.server.connections import Connection, Connections
from sockguard.server.guards import Guards
from sockguard.server.metrics import NullMetrics
from sockguard.server.privileges import Privileges
from sockguard.server.record import Record
from sockguard.server.relays import RelayPool
from sockguard.server.reload import Reloader
from tests.support.operator import MemoryDisposer

SECONDS: Final = 10.0
M = TypeVar("M", bound=Message)


def allow(name: str, *uids: int, what: Any = None, **other: Any) -> Rule:
    """An allow for these uids; for anyone if there are none."""
    return Rule(name, Action.ALLOW, Who(Users(frozenset(uids), anyone=not uids)), what=what, **other)


def deny(name: str, *uids: int, what: Any = None) -> Rule:
    return Rule(name, Action.DENY, Who(Users(frozenset(uids))), what=what)


def proxy(name: str, *rules: Rule, protocol: str = "http", **other: Any) -> Proxy:
    return Proxy(name, Listen(ListenKind.PATH, f"/{name}"), f"/{name}-private", rules, protocol=protocol, **other)


def config(*proxies: Proxy, **log: Any) -> Config:
    return Config(Daemon(), Log(**log), {proxy.name: proxy for proxy in proxies})


class Events(AuditLog):
    """Keeps events, and is full when a test says so (a fake: test_audit fills the real queue by a sink that blocks)."""

    def __init__(self) -> None:
        super().__init__(-1, to_json, on_room=lambda: None, on_failure=lambda _: None)
        self.told: list[dict[str, Any]] = []
        self.full = False

    def emit(self, event: str, **fields: object) -> None:
        self.told.append({"event": event, **fields})

    def has_room(self) -> bool:
        return not self.full

    def named(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.told if told["event"] == event]


class Relays:
    """Stands in for what starts relays (a fake: no real relay misbehaves on demand). The test is the relay."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.outlets: list[Outlet] = []
        self.killed: list[int] = []
        self.protocols: list[str] = []  # that each was to read
        self.fail_from = 1_000_000
        self._ended: set[int] = set()

    async def spawn_relay(self, number: int, protocols: str) -> tuple[socket.socket, int]:
        if number >= self.fail_from:
            self.fail_from += 2  # one failure more after this
            raise SockguardError("a relay cannot be started: no more processes")
        ours, theirs = channel.pair()
        ours.shutdown(socket.SHUT_RD)  # as spawn.spawn_relay does
        theirs.setblocking(False)
        inlet, outlet = os.pipe()
        self.ends.append(theirs)
        self.outlets.append(Outlet(outlet))
        self.protocols.append(protocols)
        self.say(Hello(100), len(self.ends) - 1)
        return ours, inlet

    async def end_relay(self, number: int) -> None:
        self.killed.append(number)

    def relay_status(self, number: int) -> int | None:
        return None

    def say(self, message: Message, relay: int = 0) -> None:
        self.outlets[relay].send(message)
        assert self.outlets[relay].flush()

    def say_packet(self, data: bytes, relay: int = 0) -> None:
        """Say what need not be a message."""
        self.say_bytes(struct.pack("!I", len(data)) + data, relay)

    def say_bytes(self, data: bytes, relay: int = 0) -> None:
        assert os.write(self.outlets[relay].fd, data) == len(data)

    def end(self, relay: int = 0) -> None:
        """That relay's process ends: both ways to and from it are closed."""
        if relay not in self._ended:
            self._ended.add(relay)
            self.ends[relay].close()
            os.close(self.outlets[relay].fd)

    async def told_to_go(self, relay: int = 0) -> None:
        """Its channel must end next, as control has it; it ends then."""
        with trio.fail_after(SECONDS):
            while True:
                await trio.lowlevel.wait_readable(self.ends[relay])
                received = channel.receive(self.ends[relay], CONTROL_TO_RELAY)
                if received is None:
                    break
                assert isinstance(received[0], Ping), received
        self.end(relay)

    async def next(self, relay: int = 0) -> tuple[Message, list[int]]:
        """What that relay is told next, but pings."""
        with trio.fail_after(SECONDS):
            while True:
                await trio.lowlevel.wait_readable(self.ends[relay])
                received = channel.receive(self.ends[relay], CONTROL_TO_RELAY)
                assert received is not None
                if not isinstance(received[0], Ping):
                    return received

    async def told(self, kind: type[M], relay: int = 0) -> M:
        """What it is told next must be such a message; fds that come along are closed."""
        message, fds = await self.next(relay)
        channel.close_all(fds)
        assert isinstance(message, kind), message
        return message

    async def generation(self, relay: int = 0) -> tuple[int, GenerationContent]:
        """It must be told a generation next, and takes it."""
        message, (fd,) = await self.next(relay)
        assert isinstance(message, Generation), message
        try:
            content = read_generation(memfd.read(fd))
        finally:
            os.close(fd)
        self.say(GenerationTaken(message.number), relay)
        return message.number, content

    async def taken(self, relay: int = 0) -> Batch:
        """It must be handed connections next, and takes them."""
        batch = await self.told(Batch, relay)
        self.say(ConnectionsTaken(len(batch.rows)), relay)
        return batch

    async def handed(self, relay: int = 0) -> None:
        """It must be handed connections next, whatever sets of rules it is told before; it takes them."""
        while not isinstance(message := (await self.next(relay))[0], Batch):
            assert isinstance(message, RuleSets), message
        self.say(ConnectionsTaken(len(message.rows)), relay)

    async def started(self, count: int) -> None:
        """Until that many have been started, and given the generation in force."""
        with trio.fail_after(SECONDS):
            while len(self.ends) < count:
                await trio.sleep(0.01)
        await self.told(Generation, count - 1)

    def heard(self, relay: int = 0) -> list[Message]:
        """All that it has been told and not read yet, but pings."""
        found: list[Message] = []
        while True:
            try:
                received = channel.receive(self.ends[relay], CONTROL_TO_RELAY)
            except BlockingIOError:
                return found
            assert received is not None
            channel.close_all(received[1])
            if not isinstance(received[0], Ping):
                found.append(received[0])


class Control:
    """A pool with what it needs, and connections that nobody had to make."""

    def __init__(self, config: Config) -> None:
        self.relays = Relays()
        self.audit = Events()
        self.record = Record(self.audit, NullMetrics())
        self.connections = Connections(self.record)
        self.disposer = MemoryDisposer()
        self.pool = RelayPool(config, cast(Privileges, self.relays), self.record, self.connections, self.disposer)
        self.admissions = {name: self.admission(proxy) for name, proxy in config.proxies.items()}
        self._others: list[socket.socket] = []

    def admission(self, proxy: Proxy) -> Admission:
        return Admission(
            proxy,
            Accounts.from_system(),
            self.record,
            self.connections,
            cast(Privileges, self.relays),
            self,
            self.disposer,
        )

    def deliver(self, connection: Connection, client: socket.socket) -> None:
        """Hand over, with a pair of sockets for the service."""
        ours, backend = socket.socketpair()
        self._others.append(ours)
        self.pool.hand_over(connection, client, backend)

    def admit(self, uid: int, proxy: str = "web", count: int = 1, owner: int | None = None) -> Connection:
        """A connection of that user, delivered; the last one of so many. owner: of the sub-uid that it is."""
        admission = self.admissions[proxy]
        peer = Peer(uid, uid, frozenset({uid}), pid=1)
        for _ in range(count):
            verdict, rules = admission.judge(peer)
            user = uid if owner is None else owner
            assert admission.limits.take(user) is None
            connection = Connection(
                self.connections.next_number(), admission, peer, user, verdict.rule, trio.current_time(), rules
            )
            self.connections.add(connection)
            ours, client = socket.socketpair()
            self._others.append(ours)
            self.deliver(connection, client)
        self.pool.flush()
        return connection

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let control go on until it is so."""
        with trio.fail_after(SECONDS):
            while not condition():
                await trio.sleep(0)

    def close(self) -> None:
        for connection in self.connections:  # what still waits for a relay holds its sockets
            self.pool.close(connection, "stopped")
        for relay in range(len(self.relays.ends)):
            self.relays.end(relay)
        for sock in self._others:
            sock.close()
        self.disposer.close()


class Doors:
    """The guards of a daemon without their listeners (a fake: nobody connects here)."""

    closed = False

    def __init__(self, admissions: dict[str, Admission]) -> None:
        self._guards = {name: SimpleNamespace(admission=admission) for name, admission in admissions.items()}

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(list(self._guards.values()))

    def get(self, name: str) -> SimpleNamespace | None:
        return self._guards.get(name)

    def remove(self, name: str) -> None:
        del self._guards[name]

    def set_options(self, proxy: Proxy) -> None:
        return


class File:
    """A configuration to be read, and nothing else that needs privilege."""

    text = ""

    async def read_config(self) -> tuple[Source, ...]:
        return (Source("/etc/sockguard/sockguard.toml", self.text.encode()),)

    def refuses(self, proxy: Proxy) -> str | None:
        return None

    async def adopt(self) -> None:
        return

    async def unbind(self, name: str) -> None:
        return


def reloader(made: Control, file: File) -> Reloader:
    doors = cast(Guards, Doors(made.admissions))
    return Reloader(
        cast(Privileges, file),
        doors,
        made.pool,
        made.connections,
        lambda proxy, accounts: made.admission(proxy),
        made.disposer,
    )


Make = Callable[..., AbstractAsyncContextManager[Control]]


@asynccontextmanager
async def _control(config: Config, count: int = 1) -> AsyncIterator[Control]:
    made = Control(config)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.pool.run, count)
            for relay in range(count):
                with trio.fail_after(SECONDS):
                    while len(made.relays.ends) <= relay:
                        await trio.sleep(0)
                await made.relays.generation(relay)
            with trio.fail_after(SECONDS):
                while len(list(made.pool)) < count:
                    await trio.sleep(0)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        made.close()


@pytest.fixture
def control() -> Make:
    """Makes a Control for a configuration, its relays up and the first generation taken."""
    return _control
