"""One proxy's door: who has connected, may they, and is there room. The same whatever becomes of the connection then.

Identities come from the kernel alone. Verdicts are policy.decide's; they are remembered by what the rules can see of an
identity, as long as no rule's time passes and no rule asks for facts that differ from process to process.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Final, NamedTuple, Protocol

import trio

from sockguard.config.settings import ListenKind, Proxy
from sockguard.errors import SockguardError
from sockguard.identity import peercred, process
from sockguard.identity.accounts import Accounts
from sockguard.identity.groups import Groups
from sockguard.identity.groups import read as read_groups
from sockguard.identity.peer import NOT_ASKED, OVERFLOW_ID, Peer, Unknown
from sockguard.identity.shared import Shared
from sockguard.policy.decide import decide, next_expiry, wants
from sockguard.policy.requests import reduce_rules
from sockguard.policy.rule import Verdict
from sockguard.privsep import foreign
from sockguard.privsep.foreign import Disposer
from sockguard.protocols.registry import PROTOCOLS
from sockguard.server.connections import Connection, Connections
from sockguard.server.limits import Limits
from sockguard.server.privileges import Privileges
from sockguard.server.record import Record

MAX_REMEMBERED: Final = 4096
"""Identities whose verdict is remembered, for each proxy."""


_Identity = tuple[int, int, frozenset[int] | Unknown, str | Unknown]
"""Of a peer: uid, gid, those of its groups that rules name, label."""


class Judged(NamedTuple):
    """What the rules say of a peer: may it connect, and which of them its requests are judged by, if they are."""

    verdict: Verdict
    rules: tuple[int, ...]


class Delivery(Protocol):
    """What becomes of a permitted connection: to a relay, or some other way. Takes the socket over."""

    def deliver(self, connection: Connection, client: socket.socket) -> None: ...


class Admission:
    """Judges what arrives on one proxy's listener."""

    def __init__(
        self,
        proxy: Proxy,
        accounts: Accounts,
        record: Record,
        connections: Connections,
        privileges: Privileges,
        delivery: Delivery,
        disposer: Disposer,
    ) -> None:
        self.proxy = proxy
        self.limits = Limits(proxy.max_connections, proxy.max_connections_per_user)
        self._accounts = accounts
        self._record = record
        self._connections = connections
        self._privileges = privileges
        self._delivery = delivery
        self._disposer = disposer
        self._wants = wants(proxy.rules)
        self._shared = Shared()
        self._remembered: dict[_Identity, Judged] = {}
        self._forget(_now())

    def renew(self, proxy: Proxy, accounts: Accounts) -> None:
        """Go by another configuration from now on; admissions that wait for a fact are judged by it, too."""
        self.proxy = proxy
        self.limits.total_limit = proxy.max_connections
        self.limits.user_limit = proxy.max_connections_per_user
        self._accounts = accounts
        self._wants = wants(proxy.rules)
        self._forget(_now())

    async def arrive(self, client: socket.socket, proof: str = "") -> None:
        """Judge an accepted connection and deliver or close it. Only process facts make this wait.

        proof: see listener.Arrival
        """
        number = self._connections.next_number()
        if self.proxy.listen.kind is ListenKind.ADOPTED:  # it may have come in by what the .socket unit had set
            foreign.ask_for_nothing(client, credentials=self.proxy.sender == "same-user")
        try:
            user = self.user_of(client)
            if refusal := self.limits.refusal(user, 0):  # before what costs more
                self._turn_away(client, number, refusal)
                return
            peer, groups = await self._identify(client, user)
        except (OSError, SockguardError) as error:
            self.drop(client)
            self._deny(number, None, "unknown", None, f"the peer cannot be known: {error}")
            return
        verdict, rules = self.judge(peer)
        rule = verdict.rule
        if not verdict.allowed:
            if self.proxy.enforce or _identity_unknown(peer) or verdict.uncertain:
                self.drop(client)
                self._deny(number, peer, "rules", rule, verdict.reason)
                return
            rule = None
        if self._hides(peer):
            self.drop(client)
            self._deny(
                number, peer, "identity", rule, "uid 0 is not shown to the service: allow_root_identity is false"
            )
            return
        refusal = self.limits.take(user)
        if refusal:
            self.drop(client)
            self._deny(number, peer, "limit", rule, refusal)
            return
        if not verdict.allowed:
            self._record.would_deny(self.proxy, number, peer, verdict.rule, verdict.reason)
        connection = Connection(number, self, peer, user, rule, trio.current_time(), rules, proof, groups)
        self._connections.add(connection)
        self._delivery.deliver(connection, client)

    @property
    def waits_for_facts(self) -> bool:
        """Can ``arrive`` take long with anybody?"""
        return self._wants.executable

    def waits_for_groups(self, client: socket.socket) -> bool:
        """Can ``arrive`` take long with this one, for all the groups that it has?"""
        return bool(self._wants.groups) and peercred.has_many_groups(client)

    def user_of(self, client: socket.socket) -> int:
        """Whom a connection counts for. Raises OSError where there is no peer."""
        return self._user(peercred.credentials(client)[1])

    def turns_away(self, client: socket.socket, user: int, waiting: int) -> bool:
        """Has that user all that it may have, with those that wait to be judged? Then this one is denied."""
        refusal = self.limits.refusal(user, waiting)
        if refusal is None:
            return False
        self._turn_away(client, self._connections.next_number(), refusal)
        return True

    def _turn_away(self, client: socket.socket, number: int, refusal: str) -> None:
        """Deny one for what its user has open. The rule that would admit it is told if its ids alone say which."""
        pid, uid, gid = peercred.credentials(client)
        peer = Peer(uid, gid, Unknown(refusal), pid, self._accounts.name_of(uid))
        verdict = self.judge(peer).verdict
        self.drop(client)
        self._deny(number, peer, "limit", verdict.rule if verdict.allowed else None, refusal)

    def drop(self, client: socket.socket) -> None:
        """Close a connection that is not delivered, whatever its client has sent."""
        foreign.end(client, self._disposer)

    def judge(self, peer: Peer) -> Judged:
        """The verdict on a peer as of now, and its reduced rules."""
        start = perf_counter()
        now = _now()
        if now < self._since or (self._expires is not None and now >= self._expires):  # before it: a clock was set back
            self._forget(now)
        judged = self._remember(peer, now)
        self._record.metrics.decided(self.proxy.name, perf_counter() - start)
        return judged

    def _forget(self, now: datetime) -> None:
        """Begin to remember anew: what is decided from now on holds until a rule ends."""
        self._remembered.clear()
        self._since = now
        self._expires = next_expiry(self.proxy.rules, now)

    def _remember(self, peer: Peer, now: datetime) -> Judged:
        if self._wants.executable or self._wants.cgroup:
            return self._decide(peer, now)
        # Not all of its groups: they can be 65536, and with sub-gids a user can come with ever other ones.
        groups = peer.groups if isinstance(peer.groups, Unknown) else peer.groups & self._wants.groups
        identity = peer.uid, peer.gid, groups, peer.label
        judged = self._remembered.get(identity)
        if judged is None:
            judged = self._decide(peer, now)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[identity] = judged
        return judged

    def _decide(self, peer: Peer, now: datetime) -> Judged:
        rules = self.proxy.rules
        inspected = self.proxy.protocol in PROTOCOLS
        return Judged(decide(rules, peer, now), reduce_rules(rules, peer, now) if inspected else ())

    def still_admits(self, connection: Connection) -> bool:
        """Would this connection be admitted now, by the facts of its admission? If so, its rules are those of now."""
        peer = connection.peer
        if connection.groups is not None:
            groups = self._named(connection.groups, peer.gid)
            if groups != peer.groups:  # the rules name others than they did
                peer = connection.peer = replace(peer, groups=groups)
        verdict, rules = self.judge(peer)
        if not verdict.allowed and (self.proxy.enforce or verdict.uncertain or _identity_unknown(peer)):
            return False
        if self._hides(peer):
            return False
        connection.rule = verdict.rule if verdict.allowed else None
        connection.rules = rules
        return True

    def _hides(self, peer: Peer) -> bool:
        """Is it root, whom the service is not to see?"""
        return self.proxy.identity == "client" and peer.uid == 0 and not self.proxy.allow_root_identity

    def name_of(self, uid: int) -> str | None:
        """The name of a user, as the accounts have it that the configuration was read with."""
        return self._accounts.name_of(uid)

    def _user(self, uid: int) -> int:
        """Whom a connection counts for."""
        owner = self._accounts.owner_of_subuid(uid)
        return uid if owner is None else owner

    async def _identify(self, client: socket.socket, user: int) -> tuple[Peer, Groups | None]:
        """The peer, with those of its groups that rules name, and what is to be kept of its groups besides."""
        pid, uid, gid = peercred.credentials(client)
        executable: str | Unknown = NOT_ASKED
        cgroup: str | Unknown = NOT_ASKED
        if self._wants.cgroup:
            cgroup = process.cgroup_of_peer(client)
        if self._wants.executable:
            executable = await self._privileges.executable(self.proxy, client, user)
        if self.waits_for_groups(client):
            async with self._connections.turns.one(user):
                groups = read_groups(client, self._wants.groups)
        else:
            groups = read_groups(client, self._wants.groups)
        one = self._shared.one
        peer = Peer(
            uid=uid,
            gid=gid,
            groups=self._named(groups, gid),
            pid=pid,
            user=self._accounts.name_of(uid),
            executable=one(executable),
            cgroup=one(cgroup),
            label=one(peercred.label(client)) if self._wants.label else NOT_ASKED,
        )
        return peer, None if isinstance(groups, Unknown) else one(groups)

    def _named(self, groups: Groups | Unknown, gid: int) -> frozenset[int] | Unknown:
        """Of a peer's groups, its gid among them, those that the rules in force name."""
        known = groups if isinstance(groups, Unknown) else groups.among(self._wants.groups)
        return known if isinstance(known, Unknown) else self._shared.one(known | (self._wants.groups & {gid}))

    def _deny(self, number: int, peer: Peer | None, cause: str, rule: str | None, reason: str) -> None:
        self._record.denied(self.proxy, number, peer, cause, rule, reason)


def _identity_unknown(peer: Peer) -> bool:
    return peer.uid == OVERFLOW_ID or isinstance(peer.groups, Unknown)


def _now() -> datetime:
    return datetime.now(UTC)
