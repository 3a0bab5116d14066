"""What is kept of a peer's supplementary groups: little, however many it has, and always what the rules ask about.

With sub-gids (/etc/subgid) any user can come with 65,536 groups, ever other ones. On Linux 6.18 the kernel takes 3 ms
to copy so many, and a set of them takes 4 MiB. So of a peer with many groups only those are kept that rules name when
it comes, and where they name none its groups are not read at all.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Final

from sockguard.identity import peercred
from sockguard.identity.peer import Unknown
from sockguard.identity.peercred import MANY_GROUPS


@dataclass(frozen=True, slots=True)
class Groups:
    """Of a peer's supplementary groups, at connect().

    raw    those that are known, as the kernel gives them: unsigned, 32 bits each, in this machine's byte order
    asked  of which groups it is known whether the peer has them; None: of all
    """

    raw: bytes
    asked: frozenset[int] | None = None

    def among(self, wanted: frozenset[int]) -> frozenset[int] | Unknown:
        """Which of these groups the peer has; Unknown where that was not asked when it came."""
        if not wanted:
            return wanted
        if self.asked is not None and not wanted <= self.asked:
            return Unknown(f"of a client with more than {MANY_GROUPS} groups only those are kept that rules named then")
        # Not by bisection: in a user namespace the kernel shows them in another order than its own.
        return wanted.intersection(memoryview(self.raw).cast("I"))


_NONE_ASKED: Final = Groups(b"", frozenset())


def read(sock: socket.socket, wanted: frozenset[int]) -> Groups | Unknown:
    """What is to be kept of the groups of the peer of ``sock``, for rules that name the ``wanted`` ones."""
    if peercred.has_many_groups(sock):
        if not wanted:
            return _NONE_ASKED
        raw = peercred.raw_groups(sock)
        if isinstance(raw, Unknown):
            return raw
        found = wanted.intersection(memoryview(raw).cast("I"))
        return Groups(b"".join(gid.to_bytes(4, sys.byteorder) for gid in sorted(found)), wanted)
    raw = peercred.raw_groups(sock)
    return raw if isinstance(raw, Unknown) else Groups(raw)
