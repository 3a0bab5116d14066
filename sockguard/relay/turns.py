"""Whose turn it is: users in turn, and each user's sides in turn. A user is whom a connection counts for, so that
nobody has more turns by more connections, or by the users of a range of sub-uids.
"""

from __future__ import annotations

import select
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from sockguard.relay.link import AnySide

RETRY: Final = 1 << 40
"""Among the events of a turn: what could not be done is tried again. No event of epoll, which has 32 bits."""

SECONDS: Final = 0.05
"""For one round of turns, or for the events of one wake; then control is heard before others have their turn."""

_Sides = OrderedDict[AnySide, int]


class Turns:
    """Sides that wait for a turn, each with the events that are to be served then; EPOLLIN alone: it is pumped.

    A user is in here only with sides, and whoever closes a side takes it out.
    """

    __slots__ = ("_users",)

    def __init__(self) -> None:
        self._users: OrderedDict[int, _Sides] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._users)

    def __len__(self) -> int:
        """How many sides."""
        return sum(map(len, self._users.values()))

    def add(self, side: AnySide, events: int = select.EPOLLIN) -> None:
        """Put it behind those of its user. One that waits already stays in its place, and has these events as well."""
        user = side.link.user
        sides = self._users.get(user)
        if sides is None:
            sides = self._users[user] = OrderedDict()
        sides[side] = sides.get(side, 0) | events

    def discard(self, side: AnySide) -> None:
        """Take it out, if it is here."""
        user = side.link.user
        sides = self._users.get(user)
        if sides is not None and sides.pop(side, None) is not None and not sides:
            del self._users[user]

    def take(self) -> tuple[AnySide, int]:
        """Take out the first side of the user whose turn it is, who gets behind the other users. Raises KeyError when
        nobody is here.
        """
        user, sides = self._users.popitem(last=False)
        taken = sides.popitem(last=False)
        if sides:
            self._users[user] = sides
        return taken

    def give(self, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Give a turn to each side that waits now, while there is time for it and ``may_go_on`` says so; it ends no
        turn. False when there was no more time.
        """
        end = monotonic() + SECONDS
        for _ in range(len(self)):
            if not self._users or not may_go_on():
                return True
            side, events = self.take()
            try:
                self._serve(side, events)
            except Exception as error:
                side.link.fail(error)
            if monotonic() > end:
                return False
        return True

    def _serve(self, side: AnySide, events: int) -> None:
        if events == select.EPOLLIN:
            side.pump()
            return
        if events & RETRY:
            if events != RETRY:
                self.add(side, events & ~RETRY)  # taken out if this ends it
            side.retry()
            return
        side.on_events(events)
