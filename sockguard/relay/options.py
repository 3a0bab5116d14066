"""What a relay knows of the proxies: their options, as they come with a generation."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from sockguard.errors import ChannelError

TICK_SECONDS: Final = 0.25
"""Resolution of idle timeouts (never early), and how long a side waits that the kernel could not serve (FOR_NOW)."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one proxy. ``idle_ticks``: the idle timeout in ticks, 0 for none."""

    name: str
    protocol: str
    refuse_fds: bool
    same_user: bool
    idle_ticks: int


def read(row: object) -> Options:
    """Options from a generation's JSON. Raises ChannelError when something is missing or of another type."""
    match row:
        case {
            "name": str(name),
            "protocol": str(protocol),
            "fds": str(fds),
            "sender": str(sender),
            "idle_timeout": idle,
        }:
            if isinstance(idle, int | float):
                return Options(name, protocol, fds == "refuse", sender == "same-user", ceil(idle / TICK_SECONDS))
    raise ChannelError("options that are none")
