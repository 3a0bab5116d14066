"""What serves a connection that control hands over, by the protocol of its proxy."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from sockguard.errors import ChannelError
from sockguard.privsep import foreign
from sockguard.privsep.messages import Row, check_row
from sockguard.relay.inspected import InspectedLink
from sockguard.relay.link import AnyLink
from sockguard.relay.records import RecordLink
from sockguard.relay.rules import Rules
from sockguard.relay.stream import Link

if TYPE_CHECKING:
    from sockguard.relay.loop import Loop

LINKS: Final[dict[str, type[Link]]] = {"stream": Link, "seqpacket": RecordLink}
"""What serves a connection of each protocol that is not read; InspectedLink serves those that are."""


def make_link(loop: Loop, rules: Rules, row: Row, fds: Sequence[int]) -> AnyLink | int:
    """Make a link of a row of Connections and its two descriptors, which are its own from then on.

    Where too many files are open they are closed, and this gives its number. Raises ChannelError.
    """
    number, generation, proxy, rule_set, uid, user = map(int, check_row(row, int, int, int, int, int, int))
    if generation != rules.generation:
        raise ChannelError("a connection of a generation that is not in force")
    of_proxy = rules.proxy(proxy)
    kind = LINKS.get(of_proxy.protocol)
    client, backend = _sockets(fds, socket.SOCK_SEQPACKET if kind is RecordLink else socket.SOCK_STREAM)
    if loop.crowded(fds):
        foreign.end_all((client, backend), loop.carriers)
        return number
    if kind is not None:
        return kind(loop, number, client, backend, of_proxy, uid, user)
    of_peer, shared = rules.of(rule_set, of_proxy), rules.shared(of_proxy)
    return InspectedLink(loop, number, client, backend, of_proxy, uid, user, of_peer, shared)


def _sockets(fds: Iterable[int], kind: int) -> list[socket.socket]:
    """Objects for them. Told their type, they ask the kernel for less (socket(7), SO_TYPE and SO_PROTOCOL)."""
    return [socket.socket(socket.AF_UNIX, kind, 0, fd) for fd in fds]
