"""Passed descriptors: a daemon to pass them through, and where their copies are."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sockguard.privsep.channel import close_all
from tests.support.daemon import Daemon, running
from tests.support.identities import wait_started, wait_until

MOST: Final = 253
"""fds in a message, SCM_MAX_FD."""

CONFIG = """
[daemon]
relays = {relays}
drain_timeout = "1s"
[proxy.one]
listen = "{folder}/{listen}"
backend = "{backend}"
max_connections = 5000
max_connections_per_user = 5000
allow = [{{ users = ["*"] }}]
"""


@contextmanager
def guarding(
    folder: Path, backend: Path, *, relays: int = 2, listen: str = "public", files: int | None = None
) -> Iterator[Daemon]:
    """The daemon in front of ``backend``. files: the hard limit of open files of all its processes."""
    config = folder / f"{listen}.toml"
    config.write_text(CONFIG.format(folder=folder, backend=backend, relays=relays, listen=listen))
    how = {}
    if files is not None:
        start = folder / "start"
        start.write_text(f'#!/bin/sh -e\nulimit -Sn {files}\nulimit -Hn {files}\nexec {sys.executable} "$@"\n')
        start.chmod(0o755)
        how = {"executable": str(start)}
    with running(config, folder / listen, **how) as daemon:
        wait_started(daemon)
        yield daemon


def open_files(daemon: Daemon) -> dict[int, int]:
    """How many descriptors each of the daemon's processes has open; of carriers, which come as they are needed, how
    many they have together beyond what one that is idle has (-1).
    """
    counts = {-1: 0}
    for name, pids in daemon.pids().items():
        for pid in pids:
            try:
                count = len(os.listdir(f"/proc/{pid}/fd"))
                is_carrier = name == "sockguard-fds" == name_of(parent_of(pid))
            except (FileNotFoundError, ProcessLookupError):  # it had only to close something
                continue
            if is_carrier:
                counts[-1] += max(count - IDLE_CARRIER, 0)
            elif name != "sockguard-fds":
                counts[pid] = count
    return counts


IDLE_CARRIER = 4
"""Descriptors of a carrier that has nothing to do: standard input, output and error, and its channel."""


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


class Tracer:
    """A pipe whose read end is passed around; ``gone()`` once no process and no queue has a copy of it any more."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self.writer, 0)

    def gone(self) -> bool:
        return self._poll.poll(0) == [(self.writer, select.POLLERR)]

    def finish(self) -> None:
        """Close one's own copy, and wait until there is no other."""
        os.close(self.reader)
        wait_until(self.gone, "every copy of the passed descriptor is closed", 20)
        os.close(self.writer)


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    socket.send_fds(sock, [data], fds)


def receive(sock: socket.socket) -> bytes:
    data, fds, flags, _ = socket.recv_fds(sock, 1 << 16, MOST)
    close_all(fds)
    assert not flags & socket.MSG_CTRUNC
    return data
