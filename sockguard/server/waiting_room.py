"""Clients that wait until their program, or which of very many groups they have, is known; each by itself. One whose
file system hangs keeps no other back.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import trio

from sockguard.logs import log
from sockguard.server.admission import Admission

MAX_WAITING: Final = 1024
"""Of one proxy, at a time. While there are so many, its other clients wait in the kernel's backlog."""


class WaitingRoom:
    """In front of one proxy's admission.

    nursery  where those are that wait; when it is cancelled they are dropped
    done     called when one of them has been let in, or not
    """

    def __init__(self, admission: Admission, nursery: trio.Nursery, done: Callable[[], None]) -> None:
        self._admission = admission
        self._nursery = nursery
        self._done = done
        self._by_user: dict[int, int] = {}
        self._count = 0
        self._room = trio.Event()

    async def arrive(self, client: socket.socket, proof: str) -> None:
        """Have a connection judged, now or as soon as it is known well enough. Waits while there is no room."""
        if not (self._admission.waits_for_facts or self._admission.waits_for_groups(client)):
            await self._admission.arrive(client, proof)
            return
        try:
            user = self._admission.user_of(client)
        except OSError:  # it is told there
            await self._admission.arrive(client, proof)
            return
        waiting = self._by_user.get(user, 0)
        if self._admission.turns_away(client, user, waiting):
            return
        while self._count >= MAX_WAITING:
            self._room = trio.Event()
            await self._room.wait()
        self._count += 1
        self._by_user[user] = self._by_user.get(user, 0) + 1
        self._nursery.start_soon(self._wait, client, proof, user)

    async def _wait(self, client: socket.socket, proof: str, user: int) -> None:
        try:
            await self._admission.arrive(client, proof)
        except Exception:
            self._admission.drop(client)
            log.exception("a connection was dropped by a fault of sockguard's own", proxy=self._admission.proxy.name)
        except BaseException:
            self._admission.drop(client)
            raise
        finally:
            self._count -= 1
            self._by_user[user] -= 1
            if not self._by_user[user]:
                del self._by_user[user]
            self._room.set()
            self._done()
