"""The daemon: start all or nothing, serve, drain. Puts the parts together; what each does stands in its own file."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

import trio

from sockguard import audit, logs
from sockguard.audit import AuditLog
from sockguard.checks.privileges import own_ids, this_process
from sockguard.checks.reach import backend_findings
from sockguard.config.load import load
from sockguard.config.settings import Config
from sockguard.errors import EXIT_OK, EXIT_WORLD, SockguardError
from sockguard.identity.accounts import Accounts
from sockguard.logs import log
from sockguard.policy.decide import next_expiry
from sockguard.server import listener
from sockguard.server.admission import Admission
from sockguard.server.connections import Connections
from sockguard.server.delivery import RelayDelivery
from sockguard.server.privileges import FromMonitor, Privileges
from sockguard.server.relays import RelayPool
from sockguard.server.separation import Separation
from sockguard.server.systemd import notify

MAX_RELAYS_BY_DEFAULT: Final = 8

_STDOUT: Final = 1
_FLUSH_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0
_CLOCK_STEP_SECONDS: Final = 30.0  # a wall clock can be set: no sleep towards a rule's `until` is longer


async def run(privileges: Privileges, separation: Separation) -> int:
    """Run until told to end. Gives the exit status; raises SockguardError when it cannot start, nothing left bound."""
    async with AsyncExitStack() as stack:
        stack.callback(privileges.close)
        if isinstance(privileges, FromMonitor):
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(privileges.run)
            stack.callback(nursery.cancel_scope.cancel)
        accounts = Accounts.from_system()
        config = load(await privileges.read_config(), accounts)
        logs.set_up(config.log.level, config.log.format)
        daemon = Daemon(config, accounts, privileges, separation)
        return await daemon.run()


class Daemon:
    """One run of the daemon with one configuration."""

    def __init__(self, config: Config, accounts: Accounts, privileges: Privileges, separation: Separation) -> None:
        self._config = config
        self._accounts = accounts
        self._privileges = privileges
        self._separation = separation
        self._token = trio.lowlevel.current_trio_token()
        self._room = trio.Event()
        self._ending = trio.Event()
        self._at_once = trio.Event()
        self._status = EXIT_OK
        console = logs.use_console(config.log.format, _STDOUT)
        self._audit = AuditLog(
            _STDOUT,
            audit.to_console if console else audit.to_json,
            on_room=lambda: self._token.run_sync_soon(self._on_room),
            on_failure=lambda reason: self._token.run_sync_soon(self._on_fault, reason),
        )
        self._connections = Connections(self._audit)
        self._pool = RelayPool(config, privileges, self._audit, self._connections)

    async def run(self) -> int:
        listeners = await self._bind()
        self._audit.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_signals)
                await nursery.start(self._pool.run, self._relay_count())
                await self._privileges.started()
                self._say_started()
                await self._serve(listeners, nursery)
                for sock in listeners:
                    sock.close()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            for sock in listeners:
                sock.close()
            if not self._audit.close(_FLUSH_SECONDS) and self._status == EXIT_OK:
                log.error("audit events were lost: standard output does not take them")
                self._status = EXIT_WORLD
        return self._status

    async def _serve(self, listeners: list[socket.socket], nursery: trio.Nursery) -> None:
        """Accept until it is time to end. Connections live on in ``nursery``."""
        delivery = RelayDelivery(self._pool, self._connections, nursery)
        async with trio.open_nursery() as accepting:
            for proxy, sock in zip(self._config.proxies.values(), listeners, strict=True):
                admission = Admission(proxy, self._accounts, self._audit, self._connections, self._privileges, delivery)
                accepting.start_soon(
                    listener.serve, proxy.name, sock, admission.arrive, self._pool.flush, self._wait_for_room
                )
                accepting.start_soon(self._watch_until, admission)
            notify("READY=1", f"STATUS=Guarding {len(listeners)} sockets")
            await self._ending.wait()
            accepting.cancel_scope.cancel()

    # ── start ──

    async def _bind(self) -> list[socket.socket]:
        """All listening sockets, or none: every failure is told."""
        listeners, failures = [], []
        for proxy in self._config.proxies.values():
            try:
                listeners.append(await self._privileges.bind(proxy))
            except SockguardError as error:
                failures.append(str(error))
        if failures:
            for sock in listeners:
                sock.close()
            raise SockguardError("\n".join(failures))
        return listeners

    def _relay_count(self) -> int:
        return self._config.daemon.relays or min(len(os.sched_getaffinity(0)), MAX_RELAYS_BY_DEFAULT)

    def _say_started(self) -> None:
        for text in self._separation.warnings():
            log.warning(text)
        for proxy in self._config.proxies.values():
            if not proxy.enforce:
                log.warning("PERMISSIVE: what the rules would deny is let through", proxy=proxy.name)
        guards, guard_gids = own_ids(this_process())
        for proxy in self._config.proxies.values():
            for finding in backend_findings(proxy, guards, guard_gids):
                if finding.severity == "error":
                    log.warning(finding.text, subject=finding.subject, remedy=finding.remedy)
            log.info("guarding", proxy=proxy.name, listen=str(proxy.listen), backend=proxy.backend)

    # ── events ──

    async def _wait_for_room(self) -> None:
        while not self._audit.has_room():
            await self._room.wait()

    def _on_room(self) -> None:
        room, self._room = self._room, trio.Event()
        room.set()

    def _on_fault(self, reason: str) -> None:
        """What the daemon cannot go on without is gone: nothing may pass any more."""
        log.error("ending", reason=reason)
        self._status = EXIT_WORLD
        self._ending.set()
        self._at_once.set()

    async def _read_signals(self) -> None:
        """The first "terminate" drains, the second closes at once."""
        async for name in self._privileges.signals():
            if name == "reload":
                log.warning("reload is not available in this version: restart sockguard")
            elif self._ending.is_set():
                self._at_once.set()
            else:
                self._ending.set()
        self._on_fault("the monitor has gone")

    async def _watch_until(self, admission: Admission) -> None:
        """When a rule's time passes, judge the proxy's live connections again."""
        while (moment := next_expiry(admission.proxy.rules, datetime.now(UTC))) is not None:
            while (seconds := (moment - datetime.now(UTC)).total_seconds()) > 0:
                await trio.sleep(min(seconds, _CLOCK_STEP_SECONDS))
            for connection in self._connections:
                if connection.admission is admission and not admission.still_admits(connection):
                    self._pool.close(connection, "revoked")

    # ── end ──

    async def _drain(self) -> None:
        """Let connections finish, then close them, then let the relays go."""
        notify("STOPPING=1", "STATUS=Waiting for connections to finish")
        empty = trio.Event()
        self._connections.on_empty = empty.set
        if len(self._connections):
            log.info("draining", connections=len(self._connections), seconds=self._config.daemon.drain_timeout)
            with trio.move_on_after(self._config.daemon.drain_timeout):
                await _first_of(empty, self._at_once)
        for connection in self._connections:
            self._pool.close(connection, "drain_timeout")
        if len(self._connections):
            with trio.move_on_after(_CLOSE_SECONDS):
                await empty.wait()
        await self._pool.stop()
        for connection in self._connections:
            self._connections.ended(connection, "stopped", None, None)


async def _first_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        for event in events:

            async def wait(event: trio.Event = event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
