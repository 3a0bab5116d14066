"""Heads that were read before, known again by all of their bytes. Sound where what is kept is a function of those."""

from __future__ import annotations

import re
from typing import Final, TypeVar

from sockguard.protocols.http.limits import MAX_KNOWN, MAX_KNOWN_HEAD

Value = TypeVar("Value")

_CREDENTIALS: Final = re.compile(rb"(?i)\r\n(?:[a-z\-]*auth[a-z\-]*|(?:set-)?cookie)[a-z\-0-9]*:")


class Known(dict[bytes, Value]):
    """What was made of a head, by its bytes. Bounded; when it is full it is emptied, which costs a reading each.

    Nothing is kept of heads that carry credentials: they would outlive their connection.
    """

    __slots__ = ()

    def keep(self, head: bytes, value: Value) -> None:
        if len(head) > MAX_KNOWN_HEAD or _CREDENTIALS.search(head) is not None:
            return
        if len(self) >= MAX_KNOWN:
            self.clear()
        self[head] = value
