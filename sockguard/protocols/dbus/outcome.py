"""What judging a message gives, where that is not the serial that it is to have on the other side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from sockguard.protocols.dbus.header import Fields

DROP: Final = 0
"""It does not pass."""
WAIT: Final = -1
"""It is to be shown again, with more."""
REPLACED: Final = -2
"""It passes with another header (``Traffic.head``), which has its serial."""

Judge: TypeAlias = Callable[[Fields, int, int, memoryview, int, int], int]
"""Judges a message: its header, serial and reply serial, the bytes, where it begins there, and where it ends."""
