"""Looks at programs' files that are under way: a user whose file systems hang keeps nobody else waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from sockguard.identity.peer import Unknown

LOOK_SECONDS: Final = 2.0
"""How long a client waits for its program to be looked at; then what it is counts as unknown."""

MAX_A_USER: Final = 2
"""Looks of one user at a time; others of that user wait for these. One that hangs counts until it has ended."""

HANGS: Final = Unknown(f"the file system of its program has not answered for {LOOK_SECONDS:g} s")


class Looks:
    """Counts them by user: the uid, or the owner of a sub-uid."""

    def __init__(self) -> None:
        self._under_way: dict[int, int] = {}
        self._waiting: dict[int, trio.lowlevel.ParkingLot] = {}

    async def begin(self, user: int) -> None:
        """Wait until that user may have one more."""
        while self._under_way.get(user, 0) >= MAX_A_USER:
            lot = self._waiting.setdefault(user, trio.lowlevel.ParkingLot())
            try:
                await lot.park()
            finally:
                if not lot:
                    self._waiting.pop(user, None)
        self._under_way[user] = self._under_way.get(user, 0) + 1

    def end(self, user: int) -> None:
        """One of them has come to an end, whether or not anybody waits for it still."""
        self._under_way[user] -= 1
        if not self._under_way[user]:
            del self._under_way[user]
        if lot := self._waiting.get(user):
            lot.unpark()

    @asynccontextmanager
    async def one(self, user: int) -> AsyncIterator[None]:
        """A look that ends with the block."""
        await self.begin(user)
        try:
            yield
        finally:
            self.end(user)
