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
from sockguard.carriers.disposal import Disposal
from sockguard.carriers.master import Master
from sockguard.checks.privileges import own_ids, this_process
from sockguard.checks.reach import backend_findings
from sockguard.config.settings import Config, Proxy
from sockguard.errors import EXIT_OK, EXIT_WORLD, ConfigError, Mistake, SockguardError
from sockguard.identity.accounts import Accounts
from sockguard.logs import log
from sockguard.server.admission import Admission
from sockguard.server.connections import Connections
from sockguard.server.delivery import RelayDelivery
from sockguard.server.guards import Guards, close_listener
from sockguard.server.metrics import Metrics, NullMetrics
from sockguard.server.operator import ConnectionStatus, ReloadResult, ReloadStatus, Status
from sockguard.server.outlets import Outlets
from sockguard.server.overview import Overview, now
from sockguard.server.privileges import FromMonitor, Privileges
from sockguard.server.record import Record
from sockguard.server.relays import RelayPool
from sockguard.server.reload import Reloader, read
from sockguard.server.separation import Separation
from sockguard.server.untils import Untils

MAX_RELAYS_BY_DEFAULT: Final = 8

_STDOUT: Final = 1
# The end takes drain_timeout, and these at most when something stands still.
_FLUSH_SECONDS: Final = 1.5
_CLOSE_SECONDS: Final = 1.0
_DISPOSE_SECONDS: Final = 0.1


async def run(file: str, privileges: Privileges, separation: Separation, master: Master) -> int:
    """Run until told to end. Gives the exit status; raises SockguardError when it cannot start, nothing left bound."""
    async with AsyncExitStack() as stack:
        stack.callback(privileges.close)
        if isinstance(privileges, FromMonitor):
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(privileges.run)
            stack.callback(nursery.cancel_scope.cancel)
        config, accounts = await read(privileges)
        logs.set_up(config.log.level, config.log.format)
        return await Daemon(file, config, accounts, privileges, separation, master).run()


class Daemon:
    """One run of the daemon. It is also what an operator asks (operator.py)."""

    def __init__(
        self,
        file: str,
        config: Config,
        accounts: Accounts,
        privileges: Privileges,
        separation: Separation,
        master: Master,
    ) -> None:
        self._file = file
        self._config = config
        self._accounts = accounts
        self._privileges = privileges
        self._separation = separation
        self._token = trio.lowlevel.current_trio_token()
        self._room = trio.Event()
        self._ending = trio.Event()
        self._at_once = trio.Event()
        self._turn = trio.Lock()  # one reload at a time
        self._restarting = False
        self._status = EXIT_OK
        self._audit = AuditLog(
            _STDOUT,
            _audit_form(config),
            on_room=lambda: self._token.run_sync_soon(self._on_room),
            on_failure=lambda reason: self._token.run_sync_soon(self._on_fault, reason),
        )
        self._metrics = Metrics() if config.daemon.metrics else NullMetrics()
        self._record = Record(self._audit, self._metrics)
        self._connections = Connections(self._record)
        self._master = master
        self._dispose_later = trio.Event()
        self._disposal = Disposal(master.disposals, lambda: self._dispose_later.set())
        self._pool = RelayPool(config, privileges, self._record, self._connections, self._disposal)

    async def run(self) -> int:
        """Serve until the end. Raises SockguardError when a socket or a relay cannot be had."""
        outlets = Outlets(self._config.daemon, self._disposal)
        await self._turn.acquire()  # a reload that is asked for during the start waits for its end
        listeners = await self._bind()
        try:
            outlets.open()
            self._audit.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_signals)
                nursery.start_soon(self._dispose)
                nursery.start_soon(self._privileges.keep_alive)
                nursery.start_soon(self._watch_master, self._master)
                await nursery.start(self._pool.run, self._relay_count())
                await self._privileges.adopt()
                self._say_started()
                await self._serve(listeners, outlets, nursery)
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            outlets.close()
            for proxy, sock in zip(self._config.proxies.values(), listeners, strict=False):
                if sock.fileno() >= 0:  # not guarded, or not any more
                    close_listener(proxy, sock, self._disposal)
            if not self._audit.close(_FLUSH_SECONDS) and self._status == EXIT_OK:
                log.error("audit events were lost: standard output does not take them")
                self._status = EXIT_WORLD
        return self._status

    async def _serve(self, listeners: list[socket.socket], outlets: Outlets, nursery: trio.Nursery) -> None:
        """Accept until it is time to end. Connections, and answers to operators, live on in ``nursery``."""
        delivery = RelayDelivery(
            self._pool, self._connections, self._privileges, self._metrics, nursery, self._disposal
        )

        def make(proxy: Proxy, accounts: Accounts) -> Admission:
            return Admission(
                proxy, accounts, self._record, self._connections, self._privileges, delivery, self._disposal
            )

        async with trio.open_nursery() as accepting:
            self._guards = Guards(accepting, self._pool.flush, self._wait_for_room, self._disposal, self._privileges)
            self._reloader = Reloader(
                self._privileges, self._guards, self._pool, self._connections, make, self._disposal
            )
            self._untils = Untils(self._guards, self._reloader.judge_again)
            self._overview = Overview(
                self._file,
                self._separation.warnings(),
                self._guards,
                self._pool,
                self._connections,
                self._record,
            )
            self._metrics.observe(self.status)
            nursery.start_soon(self._untils.watch, datetime.now(UTC))  # rules end while connections finish, too
            for proxy, sock in zip(self._config.proxies.values(), listeners, strict=True):
                self._guards.add(make(proxy, self._accounts), sock)
            self._turn.release()
            nursery.start_soon(outlets.serve, self, self._metrics)
            await self._privileges.tell("ready", self._guarding())
            await self._ending.wait()
            self._guards.close(restarting=self._restarting)

    # ── start ──

    async def _bind(self) -> list[socket.socket]:
        """All listening sockets, or none: every failure is told."""
        bound, failures = [], []
        for proxy in self._config.proxies.values():
            try:
                bound.append((proxy, await self._privileges.bind(proxy)))
            except SockguardError as error:
                failures.append(str(error))
        if failures:
            for proxy, sock in bound:
                close_listener(proxy, sock, self._disposal)
            raise SockguardError("\n".join(failures))
        return [sock for _, sock in bound]

    def _relay_count(self) -> int:
        return self._config.daemon.relays or min(len(os.sched_getaffinity(0)), MAX_RELAYS_BY_DEFAULT)

    def _say_started(self) -> None:
        for text in self._separation.warnings():
            log.warning(text)
        for text in {relay.cage_warning for relay in self._pool if relay.cage_warning}:
            log.warning(text)
        for proxy in self._config.proxies.values():
            self._say_guarding(proxy)

    def _say_guarding(self, proxy: Proxy) -> None:
        if not proxy.enforce:
            log.warning("PERMISSIVE: what the rules would deny is let through", proxy=proxy.name)
        guards, guard_gids = own_ids(this_process())
        for finding in backend_findings(proxy, guards, guard_gids):
            if finding.severity == "error":
                log.warning(finding.text, subject=finding.subject, remedy=finding.remedy)
        log.info("guarding", proxy=proxy.name, listen=str(proxy.listen), backend=proxy.backend)

    def _guarding(self) -> str:
        return f"Guarding {len(self._config.proxies)} sockets"

    # ── what an operator asks ──

    def status(self) -> Status:
        return self._overview.status()

    def connections(self) -> list[ConnectionStatus]:
        return list(self._overview.connections())

    def close(self, number: int) -> bool:
        connection = self._connections.get(number)
        if connection is None:
            return False
        self._pool.close(connection, "closed_by_operator")
        return True

    async def reload(self) -> ReloadResult:
        """Go by the file as it is now; or keep the old configuration in force, and say why in all places."""
        async with self._turn:
            if self._ending.is_set():
                return ReloadResult(False, (Mistake("", 0, "", "sockguard is ending"),), self._pool.generation)
            await self._privileges.tell("reloading", "")
            try:
                new, revoked = await self._reloader.reload(self._config, self._untils.renewed)
            except SockguardError as error:
                return await self._say_refused(error)
            except Exception:  # a fault of our own must not end what guards by the old configuration
                log.exception("a reload failed by a fault of sockguard's own")
                return await self._say_refused(SockguardError("a fault of sockguard's own: see its log"))
            await self._say_reloaded(new, revoked)
            return ReloadResult(True, (), self._pool.generation)

    async def _say_refused(self, error: SockguardError) -> ReloadResult:
        if isinstance(error, ConfigError):
            mistakes = error.mistakes
        else:
            mistakes = tuple(Mistake("", 0, "", line) for line in str(error).split("\n"))
        lines = [str(mistake) for mistake in mistakes]
        log.error("reload refused: the old configuration stays in force", mistakes=lines)
        self._audit.emit("reload_failed", generation=self._pool.generation, mistakes=lines)
        self._metrics.reloaded(False)
        self._overview.last_reload = ReloadStatus(time=now(), ok=False, errors=lines)
        await self._privileges.tell("ready", f"{self._guarding()}; the last reload was refused: {lines[0]}")
        return ReloadResult(False, mistakes, self._pool.generation)

    async def _say_reloaded(self, new: Config, revoked: int) -> None:
        old, self._config = self._config, new
        logs.set_up(new.log.level, new.log.format)
        self._audit.encode = _audit_form(new)
        if (old.daemon.relays, old.daemon.control, old.daemon.metrics) != (
            new.daemon.relays,
            new.daemon.control,
            new.daemon.metrics,
        ):
            log.warning("changes of [daemon] relays, control and metrics take effect at the next start")
        for proxy in new.proxies.values():
            self._say_guarding(proxy)
        self._audit.emit("reloaded", generation=self._pool.generation, revoked=revoked)
        self._metrics.reloaded(True)
        self._metrics.keep({name: [rule.name for rule in proxy.rules] for name, proxy in new.proxies.items()})
        self._overview.last_reload = ReloadStatus(time=now(), ok=True, errors=[])
        await self._privileges.tell("ready", self._guarding())

    # ── events ──

    async def _wait_for_room(self) -> None:
        while not self._audit.has_room():
            await self._room.wait()

    def _on_room(self) -> None:
        room, self._room = self._room, trio.Event()
        room.set()
        self._pool.give_credits()

    def _on_fault(self, reason: str) -> None:
        """What the daemon cannot go on without is gone: nothing may pass any more."""
        log.error("ending", reason=reason)
        self._status = EXIT_WORLD
        self._ending.set()
        self._at_once.set()

    async def _watch_master(self, master: Master) -> None:
        """What is to be closed elsewhere cannot be, once the process for that has ended."""
        await trio.lowlevel.wait_readable(master.channel)  # it says nothing: this is its end
        self._on_fault("the process that closes what clients have passed has ended")

    async def _dispose(self) -> None:
        """Hand over, as soon as that can be, what connections could not be closed here."""
        while True:
            await self._dispose_later.wait()
            self._dispose_later = trio.Event()
            while self._disposal.waiting:
                await trio.sleep(_DISPOSE_SECONDS)
                self._disposal.retry()

    async def _read_signals(self) -> None:
        """The first "terminate" or "restart" drains, the second closes at once."""
        async with trio.open_nursery() as reloading:
            async for name in self._privileges.signals():
                if name == "reload":
                    if not self._turn.statistics().tasks_waiting:  # one that waits will read what is there then
                        reloading.start_soon(self.reload)
                elif self._ending.is_set():
                    self._at_once.set()
                else:
                    self._restarting = name == "restart"
                    self._ending.set()
            self._on_fault("the monitor has gone")

    # ── end ──

    async def _drain(self) -> None:
        """Let connections finish, then close them, then let the relays go."""
        await self._privileges.tell("stopping", "Waiting for connections to finish")
        empty = trio.Event()
        self._connections.on_empty = empty.set
        if len(self._connections):
            log.info("draining", connections=len(self._connections), seconds=self._config.daemon.drain_timeout)
            with trio.move_on_after(self._config.daemon.drain_timeout):
                await _first_of(empty, self._at_once)
        outcome = "stopped" if self._at_once.is_set() else "drain_timeout"
        for connection in self._connections:
            self._pool.close(connection, outcome)
        if len(self._connections):
            with trio.move_on_after(_CLOSE_SECONDS):
                await empty.wait()
        await self._pool.stop()
        for connection in self._connections:
            self._connections.ended(connection, outcome, None, None)


def _audit_form(config: Config) -> audit.Encoder:
    return audit.to_console if logs.use_console(config.log.format, _STDOUT) else audit.to_json


async def _first_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        for event in events:

            async def wait(event: trio.Event = event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
