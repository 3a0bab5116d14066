"""Replies of our own among those of a service: each in its place. One bounded helper for all protocols.

A service answers in order the requests that a key stands for here (all of them, or those to a part of it that does).
A denial that comes behind such requests waits until they are answered, so that a client that sends several at once
gets its answers in the order of its questions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class ReplyOrder(Generic[Key]):
    """Requests that are under way, and denials that wait behind them. ``full``: at its bound; ask before adding."""

    __slots__ = ("_bound", "_line")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._line: deque[tuple[Key | None, bytes]] = deque()

    @property
    def full(self) -> bool:
        return len(self._line) >= self._bound

    def __len__(self) -> int:
        return len(self._line)

    def forwarded(self, key: Key) -> None:
        """A request has gone to the service, which will answer it in its turn."""
        self._line.append((key, b""))

    def denied(self, reply: bytes) -> bytes:
        """A request was denied. Return the reply if it is due now; it is kept else."""
        if not self._line:
            return reply
        self._line.append((None, reply))
        return b""

    def answered(self, key: Key) -> bytes:
        """The service has answered a request. Return the replies of our own that are due behind that answer.

        A service that answers out of turn is taken at its word: the request is struck off wherever it stands.
        """
        line = self._line
        if not line:
            return b""
        if line[0][0] == key:
            line.popleft()
        else:
            for index, (other, _) in enumerate(line):
                if other == key:
                    del line[index]
                    break
            else:
                return b""
        due = []
        while line and line[0][0] is None:
            due.append(line.popleft()[1])
        return b"".join(due)
