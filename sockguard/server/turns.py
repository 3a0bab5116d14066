"""Turns at work that holds up the whole event loop: one piece at a time, and users come in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True, eq=False)
class _Queue:
    lock: trio.Lock = field(default_factory=trio.Lock)
    length: int = 0


class Turns:
    """However many wait for one user, another user waits for one of them at most. Between two pieces of work everything
    else in the event loop goes round.
    """

    def __init__(self) -> None:
        self._all = trio.Lock()
        self._queues: dict[int, _Queue] = {}

    @asynccontextmanager
    async def one(self, user: int) -> AsyncIterator[None]:
        """Wait for a turn and have it. ``user``: whom it counts for."""
        queue = self._queues.setdefault(user, _Queue())
        queue.length += 1
        try:
            async with queue.lock, self._all:
                yield
        finally:
            queue.length -= 1
            if not queue.length:
                del self._queues[user]
