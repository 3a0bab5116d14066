"""Heads, and parts of heads, that were read before, known again by all of their bytes. Sound where what is kept is a
function of those.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias, TypeVar

from sockguard.protocols.http.grammar import CONTENT_LENGTH
from sockguard.protocols.http.limits import MAX_KNOWN, MAX_KNOWN_HEAD

Value = TypeVar("Value")

Key: TypeAlias = bytes | tuple[bytes, bytes]
"""All bytes, or all but what ``part_length`` takes out."""

_CREDENTIALS: Final = re.compile(rb"\r\n[^:\r]*(?:auth|cookie|credential|key|passw|registry|secret|session|token)")
"""In names of fields, lower case. Docker has X-Registry-Auth and X-Registry-Config. One too many costs readings."""

_LENGTH: Final = b"\r\nContent-Length: "


class Known(dict[Key, Value]):
    """What was made of a head, by its bytes. Bounded; when it is full it is emptied, which costs a reading each.

    Nothing is kept of heads that carry credentials: they would outlive their connection.
    """

    __slots__ = ()

    def keep(self, key: Key, value: Value, *, private: bool) -> None:
        """Keep it, if the key is not too long. private: what ``has_credentials`` says of the head."""
        if private or (len(key) if isinstance(key, bytes) else len(key[0]) + len(key[1])) > MAX_KNOWN_HEAD:
            return
        if len(self) >= MAX_KNOWN:
            self.clear()
        self[key] = value


def has_credentials(head: bytes) -> bool:
    """Tell whether a field's name says so. Each field line has a CRLF before it."""
    return _CREDENTIALS.search(head.lower()) is not None


def part_length(head: bytes) -> tuple[Key, int | None]:
    """Take a Content-Length out, in bytes, so that heads which differ in it alone have one key.

    Only where it is written as nearly all write it; else the key is the whole head, and there is None.
    """
    before, mark, behind = head.partition(_LENGTH)
    if mark:
        digits, mark, _ = behind.partition(b"\r\n")
        if mark and CONTENT_LENGTH.fullmatch(digits) is not None:
            return (before, behind[len(digits) :]), int(digits)
    return head, None
