"""Sockets that systemd passed to this process (sd_listen_fds(3))."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def adopt(environ: MutableMapping[str, str] | None = None) -> dict[str, int]:
    """The passed descriptors by name, made close-on-exec; the variables are removed, as they are for one process only.

    Descriptors without a name of their own are called "unknown" by systemd; of two with one name the first is kept.
    """
    env = os.environ if environ is None else environ
    values = {name: env.pop(name, "") for name in _VARIABLES}
    if values["LISTEN_PID"] != str(os.getpid()) or not values["LISTEN_FDS"].isdecimal():
        return {}
    names = values["LISTEN_FDNAMES"].split(":")
    adopted: dict[str, int] = {}
    for index in range(int(values["LISTEN_FDS"])):
        os.set_inheritable(_FIRST + index, False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        adopted.setdefault(name, _FIRST + index)
    return adopted
