"""Who owes how many of the rows of requests that control has been told of and has not given credits back for."""

from __future__ import annotations

from collections import deque
from typing import Final

_SHARES: Final = 8  # a user may have so large a part of all credits, whatever others have used up


class Debts:
    """By user: whom a connection counts for. Credits pay for the oldest rows first.

    What is here is bounded: nobody is here without a row, and there are no more rows than credits and MAX_OVERDRAFT.
    """

    __slots__ = ("_owed", "_rows", "_told")

    def __init__(self) -> None:
        self._told: deque[tuple[int, int]] = deque()  # (user, rows), the oldest first
        self._owed: dict[int, int] = {}
        self._rows = 0

    def add(self, user: int) -> None:
        """One more row of that user."""
        self._rows += 1
        self._owed[user] = self._owed.get(user, 0) + 1
        told = self._told
        if told and told[-1][0] == user:
            told[-1] = user, told[-1][1] + 1
        else:
            told.append((user, 1))

    def pay(self, count: int) -> None:
        """So many credits came; those beyond all rows are for rows to come."""
        told, owed = self._told, self._owed
        while count > 0 and told:
            user, rows = told.popleft()
            paid = min(rows, count)
            if paid < rows:
                told.appendleft((user, rows - paid))
            count -= paid
            self._rows -= paid
            owed[user] -= paid
            if not owed[user]:
                del owed[user]

    def has_share(self, user: int, credit: int) -> bool:
        """Has this user used up less than a share of all credits? credit: what is left of them."""
        return self._owed.get(user, 0) < (credit + self._rows) // _SHARES
