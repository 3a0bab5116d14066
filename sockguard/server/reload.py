"""Going by another configuration while everything runs: all of it, or none.

Read in full first, expectations included; bind what is new; then, without a pause in between, renew every admission,
tell the relays, and judge every live connection again by the facts recorded at its admission. Whatever fails before
that point leaves the old configuration in force and nothing bound.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Final

import trio

from sockguard.config.load import load
from sockguard.config.read import Source
from sockguard.config.settings import Config, ListenKind, Proxy
from sockguard.errors import ConfigError, Mistake, SockguardError
from sockguard.identity.accounts import Accounts
from sockguard.privsep import foreign
from sockguard.privsep.foreign import Disposer
from sockguard.server.admission import Admission
from sockguard.server.connections import Connection, Connections
from sockguard.server.guards import Guards
from sockguard.server.privileges import Privileges
from sockguard.server.relays import RelayPool

_FIXED: Final = "cannot change while the proxy runs: restart sockguard, or give it a new name and another place"

READ_SECONDS: Final = 30.0
"""For reading the file: names are resolved in it, and a name service can hang. Start and reload fail after that."""


async def read(privileges: Privileges) -> tuple[Config, Accounts]:
    """Read and resolve the configuration. Raises ConfigError; SockguardError when the accounts cannot be had."""
    sources = await privileges.read_config()
    with trio.move_on_after(READ_SECONDS):
        return await trio.to_thread.run_sync(_resolve, sources, abandon_on_cancel=True)
    raise SockguardError(f"users and groups could not be looked up within {READ_SECONDS:g} s: is a name service down?")


def _resolve(sources: tuple[Source, ...]) -> tuple[Config, Accounts]:
    accounts = Accounts.from_system()
    return load(sources, accounts), accounts


class Reloader:
    """Brings a new configuration into force. ``make`` gives a new proxy's admission."""

    def __init__(
        self,
        privileges: Privileges,
        guards: Guards,
        pool: RelayPool,
        connections: Connections,
        make: Callable[[Proxy, Accounts], Admission],
        disposer: Disposer,
    ) -> None:
        self._privileges = privileges
        self._guards = guards
        self._pool = pool
        self._connections = connections
        self._make = make
        self._disposer = disposer

    async def reload(self, old: Config, in_force: Callable[[], None]) -> tuple[Config, int]:
        """The new configuration, in force in every relay, and how many connections it revoked. ``in_force`` is called
        as soon as admissions go by it: relays may take longer, and its rules can end meanwhile.

        Raises ConfigError or SockguardError, and then nothing has changed.
        """
        new, accounts = await read(self._privileges)
        _refuse_what_takes_a_restart(old, new)
        if refusals := [text for proxy in new.proxies.values() if (text := self._privileges.refuses(proxy))]:
            raise SockguardError("\n".join(refusals))
        added = [proxy for name, proxy in new.proxies.items() if name not in old.proxies]
        removed = [name for name in old.proxies if name not in new.proxies]
        listeners = await self._bind(added)
        try:
            await self._privileges.adopt()
            if self._guards.closed:  # told to end meanwhile: nothing is accepted any more
                raise SockguardError("sockguard is ending")
        except BaseException:
            await self._undo(added, listeners)
            raise
        revoked = self._switch(new, accounts, dict(zip([p.name for p in added], listeners, strict=True)), removed)
        in_force()
        for name in removed:
            await self._privileges.unbind(name)
        await self._pool.settled()
        return new, revoked

    async def _bind(self, proxies: Iterable[Proxy]) -> list[socket.socket]:
        bound: list[Proxy] = []
        listeners: list[socket.socket] = []
        failures = []
        for proxy in proxies:
            try:
                listeners.append(await self._privileges.bind(proxy))
                bound.append(proxy)
            except SockguardError as error:
                failures.append(str(error))
        if failures:
            await self._undo(bound, listeners)
            raise SockguardError("\n".join(failures))
        return listeners

    async def _undo(self, proxies: Iterable[Proxy], listeners: Iterable[socket.socket]) -> None:
        for proxy, sock in zip(proxies, listeners, strict=True):
            if proxy.listen.kind is ListenKind.ADOPTED:  # systemd goes on listening
                self._disposer.dispose((sock,))
            else:
                foreign.end_listener(sock, self._disposer)
            await self._privileges.unbind(proxy.name)

    def _switch(
        self, new: Config, accounts: Accounts, listeners: dict[str, socket.socket], removed: Iterable[str]
    ) -> int:
        """Everything at once: no connection is admitted by one configuration and relayed by the other."""
        for name in removed:
            self._guards.remove(name)
        for guard in self._guards:
            proxy = new.proxies[guard.admission.proxy.name]
            guard.admission.renew(proxy, accounts)
            self._guards.set_options(proxy)
        revoked, _ = self._judge_again(lambda admission: True)
        self._pool.new_generation(new)  # with the rules that connections have now
        for name, sock in listeners.items():
            self._guards.add(self._make(new.proxies[name], accounts), sock)
        return revoked

    def judge_again(self, concerned: Callable[[Admission], bool]) -> int:
        """Close every live connection that would not be admitted now; gives how many. Others go by the rules of now."""
        revoked, changed = self._judge_again(concerned)
        self._pool.assign(changed)
        return revoked

    def _judge_again(self, concerned: Callable[[Admission], bool]) -> tuple[int, list[Connection]]:
        """How many were closed, and those that have other rules than before, of which relays are still to be told."""
        revoked = 0
        changed = []
        for connection in self._connections:
            admission = connection.admission
            if connection.ending or not concerned(admission):
                continue
            guard = self._guards.get(admission.proxy.name)
            before = connection.rules
            if guard is None or guard.admission is not admission or not admission.still_admits(connection):
                self._pool.close(connection, "revoked")
                revoked += 1
            elif connection.rules != before:
                changed.append(connection)
        return revoked, changed


def _refuse_what_takes_a_restart(old: Config, new: Config) -> None:
    """A socket that is listened on keeps its place, its type and its mode."""
    mistakes = []
    for name in [name for name in new.proxies if name in old.proxies]:
        before, after = _place(old.proxies[name]), _place(new.proxies[name])
        mistakes += [
            Mistake("", 0, f"proxy.{name}.{key}", _FIXED)
            for key in before
            if key in after and before[key] != after[key]
        ]
    if mistakes:
        raise ConfigError(mistakes)


def _place(proxy: Proxy) -> dict[str, object]:
    place: dict[str, object] = {"listen": proxy.listen, "protocol": proxy.protocol}
    if proxy.listen.kind is ListenKind.PATH:
        place |= {"mode": proxy.mode, "owner": proxy.owner, "group": proxy.group}
    return place
