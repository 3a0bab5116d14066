"""The relay processes as control sees them: started, handed connections in batches, and replaced when they die.

A relay parses untrusted bytes, so nothing it says is taken on trust: it may speak only of connections that it was
handed, in the few messages of privsep/messages.py; anything else ends it.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

import trio

from sockguard.config.settings import Config
from sockguard.errors import ChannelError, SockguardError
from sockguard.logs import log
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.messages import (
    MAX_BATCH,
    RELAY_TO_CONTROL,
    Close,
    Closed,
    ConnectionsTaken,
    Fault,
    GenerationTaken,
    Hello,
    Message,
    Ping,
    Pong,
    Row,
    Stop,
)
from sockguard.privsep.messages import Connections as Batch
from sockguard.privsep.messages import Requests as RequestsMessage
from sockguard.privsep.pipe import Inlet
from sockguard.server.connections import Connection, Connections
from sockguard.server.generation import OUT_OF_SETS, Generation
from sockguard.server.privileges import Privileges
from sockguard.server.record import Record
from sockguard.server.relay import Pending, Relay, how_it_ended
from sockguard.server.requests import Requests

HEARTBEAT_SECONDS: Final = 10.0
"""A relay that has not answered for so long is replaced: its connections stand still, and it would get new ones."""

_START_SECONDS: Final = 10.0
_TAKE_SECONDS: Final = 5.0  # for a relay to take a new generation
_STEADY_SECONDS: Final = 5.0  # a relay that lived this long is replaced without a pause
_LONGEST_PAUSE: Final = 5.0
_STOP_SECONDS: Final = 0.5


class RelayPool:
    """All relays. Connections go to the one with the least to do."""

    def __init__(
        self,
        config: Config,
        privileges: Privileges,
        record: Record,
        connections: Connections,
        disposer: Disposer,
    ) -> None:
        self._privileges = privileges
        self._disposer = disposer
        self._audit = record.audit
        self._requests = Requests(record)
        self._connections = connections
        self._ready: list[Relay] = []
        self._waiting: deque[Pending] = deque()  # while no relay is ready; bounded by the proxies' max_connections
        self._last_number = 0
        self.restarts = 0
        self._stopping = False
        self._all_ended = trio.Event()
        self._generation = Generation(1, config)

    @property
    def generation(self) -> int:
        """The number of the generation in force."""
        return self._generation.number

    def new_generation(self, config: Config) -> None:
        """Put what relays need to know of the configuration into force: every relay is told before anything else.

        Live connections have the rules of the new configuration already; those that are not admitted by it are closed.
        """
        self._generation = Generation(self.generation + 1, config)
        for relay in self._ready:
            try:
                self._generation.tell(relay)
            except OSError as error:  # no memfd to be had: the others go on, and this one is replaced
                relay.fault = f"it could not be told new rules: {error.strerror}"
                relay.give_up()
        self._retire_what_cannot_read_it()

    def assign(self, connections: Iterable[Connection]) -> None:
        """Other rules hold for the requests of these connections: tell the relays that have them."""
        if connections := list(connections):
            for relay in self._ready:
                self._generation.assign(relay, connections)

    def give_credits(self) -> None:
        """The audit queue has room again: relays that wait for it may go on."""
        for relay in self._ready:
            self._requests.give(relay)

    async def settled(self) -> None:
        """Wait until every relay has taken the generation in force; one that does not is killed and replaced."""
        with trio.move_on_after(_TAKE_SECONDS):
            while late := [relay for relay in self._ready if relay.generation != self.generation]:
                await late[0].settled.wait()
            return
        for relay in [relay for relay in self._ready if relay.generation != self.generation]:
            relay.fault = f"it did not take new rules within {_TAKE_SECONDS:g} s"
            await self._privileges.end_relay(relay.number)
            relay.give_up()

    # ── the life of a relay ──

    async def run(self, count: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``count`` relays alive; started when all are. Raises SockguardError when one cannot be at first."""
        async with trio.open_nursery() as self._nursery:
            for _ in range(count):
                await self._nursery.start(self._keep_one)
            task_status.started()
        self._all_ended.set()

    def _retire_what_cannot_read_it(self) -> None:
        """A relay in its cage can load nothing more: where a protocol has come, others take its place."""
        for relay in self._ready:
            if not relay.retiring and not relay.protocols >= self._generation.protocols:
                relay.retiring = True
                self._waiting.extend(relay.queue)
                relay.queue.clear()
                self._nursery.start_soon(self._keep_one)
                self._end_if_done(relay)
        self._deal_out()

    def _end_if_done(self, relay: Relay) -> None:
        if relay.retiring and not relay.held:
            relay.send(Stop())

    async def _keep_one(self, task_status: trio.TaskStatus[None] | None = None) -> None:
        """Keep one relay alive until it retires. ``task_status``: of the start, which fails if the relay does."""
        pause = 0.0
        first = task_status is not None
        lost = False

        def ready() -> None:
            nonlocal first
            if task_status is not None and first:
                task_status.started()
            first = False
            if lost:
                self.restarts += 1
                self._audit.emit("relay_restarted", relay=number)

        number = 0
        while not self._stopping:
            started = trio.current_time()
            number = self._next_number()
            relay = None
            try:
                with trio.fail_after(_START_SECONDS):
                    relay = await self._start(number)
                    relay.ready = ready
                await self._serve(relay)
                reason = ""
            except (OSError, SockguardError) as error:
                reason = str(error)
            except trio.TooSlowError:
                reason = f"it did not start within {_START_SECONDS:g} s"
            if first:
                raise SockguardError(f"a relay could not be started: {reason or self._how(number, relay)}")
            if self._stopping:
                return
            if relay is None:
                log.error("a relay could not be started; trying again", reason=reason)
            elif relay.retiring and not relay.held:
                self._ready.remove(relay)
            else:
                self._bury(relay, reason)
                lost = True
            with contextlib.suppress(ChannelError):  # the monitor has gone: that ends everything in order
                await self._privileges.end_relay(number)  # it may live on behind a channel that it has closed
            if relay is not None and relay.retiring:
                return
            pause = 0.0 if trio.current_time() - started > _STEADY_SECONDS else min(2 * pause + 0.1, _LONGEST_PAUSE)
            await trio.sleep(pause)

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    async def _start(self, number: int) -> Relay:
        protocols = self._generation.protocols
        sock, pipe = await self._privileges.spawn_relay(number, ",".join(sorted(protocols)))
        sock.setblocking(False)
        relay = Relay(number, sock, Inlet(pipe, RELAY_TO_CONTROL), self._disposer, protocols)
        try:
            message = await relay.receive()
            if not isinstance(message, Hello):
                raise ChannelError(message.text if isinstance(message, Fault) else self._how(number, relay))
            relay.capacity, relay.cage = message.capacity, message.cage
            while relay.generation != self.generation:  # a newer one can come into force meanwhile
                if not protocols >= self._generation.protocols:
                    raise ChannelError("a reload has brought a protocol that it cannot read")
                self._generation.tell(relay)
                message = await relay.receive()
                if not isinstance(message, GenerationTaken):
                    raise ChannelError(message.text if isinstance(message, Fault) else self._how(number, relay))
                relay.took(message.number)
        except BaseException:
            relay.close()
            raise
        return relay

    async def _serve(self, relay: Relay) -> None:
        """Until the relay has gone, or is given up. Raises ChannelError for what it must not say."""
        self._ready.append(relay)
        relay.ready()
        self._requests.give(relay)
        self._deal_out()
        fault = None
        try:
            async with trio.open_nursery() as nursery:
                relay.give_up = nursery.cancel_scope.cancel
                nursery.start_soon(relay.write)
                nursery.start_soon(self._watch, relay)
                try:
                    while (message := await relay.receive()) is not None:
                        self._on_message(relay, message)
                except (OSError, ChannelError) as error:  # raised behind the nursery, which would make a group of it
                    fault = error
                nursery.cancel_scope.cancel()
            relay.gone = True
            if fault is None:
                for message in relay.said_before():
                    self._on_message(relay, message)
        finally:
            relay.close()
        if fault:
            raise fault

    async def _watch(self, relay: Relay) -> None:
        """Kill a relay whose loop has stopped going round. It counts as gone then, however long the kernel keeps it."""
        number = 0
        while True:
            number += 1
            relay.send(Ping(number))
            await trio.sleep(HEARTBEAT_SECONDS)
            if relay.answered != number:
                relay.fault = f"it did not answer within {HEARTBEAT_SECONDS:g} s"
                await self._privileges.end_relay(relay.number)
                relay.give_up()
                return

    def _on_message(self, relay: Relay, message: Message) -> None:
        match message:
            case ConnectionsTaken(count):
                if count != relay.batch or not count:
                    raise ChannelError("an acknowledgement of what was not sent")
                relay.batch = 0
                self._hand_over(relay)
            case RequestsMessage(rows):
                self._requests.take(relay, rows)
            case Closed(rows):
                for row in rows:
                    self._connections.ended(*relay.let_go(row))
                self._end_if_done(relay)
            case GenerationTaken(number):
                if not relay.generation < number <= self.generation:
                    raise ChannelError("an acknowledgement of what was not sent")
                relay.took(number)
                settled, relay.settled = relay.settled, trio.Event()
                settled.set()
            case Pong(number):
                relay.answered = number
            case Fault(text):
                relay.fault = text
            case _:
                raise ChannelError(f"a {message.TAG} message out of its time")

    def _bury(self, relay: Relay, reason: str) -> None:
        """A relay has died, or is to: its connections are lost, and those that wait for it go to another."""
        if relay in self._ready:
            self._ready.remove(relay)
        relay.settled.set()  # nobody need wait for it
        self._waiting.extend(relay.queue)
        relay.queue.clear()
        lost = list(relay.held.values())
        relay.held.clear()
        log.error(
            "a relay has ended; its connections are lost, another one is started",
            relay=relay.number,
            connections=len(lost),
            reason=reason or self._how(relay.number, relay),
        )
        for connection in lost:
            self._connections.ended(connection, "relay_lost", None, None)
        self._deal_out()

    def _how(self, number: int, relay: Relay | None) -> str:
        if relay is not None and relay.fault:
            return relay.fault
        try:
            return how_it_ended(self._privileges.relay_status(number))
        except KeyError:
            return how_it_ended(None)

    def __iter__(self) -> Iterator[Relay]:
        """The relays that take connections."""
        return iter(list(self._ready))

    # ── connections ──

    def hand_over(self, connection: Connection, client: socket.socket, backend: socket.socket) -> None:
        """Queue a connection for a relay; flush() sends what is queued."""
        pending = Pending(connection, client, backend)
        relay = min((r for r in self._ready if not r.retiring), key=lambda relay: relay.load, default=None)
        if relay is None:
            self._waiting.append(pending)
        elif relay.load >= relay.capacity:
            pending.close(self._disposer)
            self._connections.ended(connection, "out_of_files", reason="every relay is at its limit of open files")
        else:
            relay.queue.append(pending)

    def flush(self) -> None:
        """Send what is queued, a batch a relay."""
        for relay in self._ready:
            if relay.queue and not relay.batch:
                self._hand_over(relay)

    def close(self, connection: Connection, outcome: str) -> None:
        """End a live connection. Its end is told when the relay has done it."""
        connection.ending = outcome
        if connection.connecting is not None:
            connection.connecting.cancel()
            return
        for relay in self._ready:
            if connection.number in relay.held:
                relay.send(Close(((connection.number, outcome),)))
                return
        for queue in (self._waiting, *(relay.queue for relay in self._ready)):
            for pending in queue:
                if pending.connection is connection:
                    queue.remove(pending)
                    pending.close(self._disposer)
                    self._connections.ended(connection, outcome)
                    return

    async def stop(self) -> None:
        """Tell all relays to end, and wait a moment for it; one that hangs is killed by who started it."""
        self._stopping = True
        for relay in self._ready:
            relay.send(Stop())
        with trio.move_on_after(_STOP_SECONDS):
            await self._all_ended.wait()

    def _deal_out(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            self.hand_over(pending.connection, pending.client, pending.backend)
        self.flush()

    def _hand_over(self, relay: Relay) -> None:
        if relay.gone:
            return
        rows: list[Row] = []
        socks: list[socket.socket] = []
        while relay.queue and len(rows) < MAX_BATCH:
            pending = relay.queue.popleft()
            connection = pending.connection
            rules = self._generation.set_of(connection)
            if isinstance(rules, str):
                pending.close(self._disposer)
                self._connections.ended(connection, OUT_OF_SETS, reason=rules)
                continue
            index = self._generation.index_of(connection)
            rows.append((connection.number, self.generation, index, rules, connection.peer.uid, connection.user))
            socks += (pending.client, pending.backend)
            relay.held[connection.number] = connection
        if rows:
            self._generation.tell_sets(relay)
            relay.batch = len(rows)
            relay.send(Batch(tuple(rows)), socks=socks)
