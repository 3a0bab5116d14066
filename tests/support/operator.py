"""An Operator in memory, and the control socket served for it.

The daemon's own Operator needs relays and a configuration, and is tested by integration tests; what is tested with
this one is the way between a command and any Operator, over a real socket.
"""

from __future__ import annotations

import copy
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from sockguard.server import control
from sockguard.server.operator import ConnectionStatus, ReloadResult, Status

STATUS: Status = {
    "version": "0.1.0",
    "started": "2026-03-01T10:00:00.000000Z",
    "generation": 3,
    "config": "/etc/sockguard/sockguard.toml",
    "last_reload": {"time": "2026-03-01T11:00:00.000000Z", "ok": True, "errors": []},
    "separation_warnings": [],
    "proxies": [
        {
            "name": "docker",
            "listen": "/run/docker.sock",
            "backend": "/run/docker-private/docker.sock",
            "protocol": "stream",
            "enforce": True,
            "connections": 3,
            "max_connections": 1024,
            "users": [{"uid": 1007, "user": "ci", "connections": 2}, {"uid": 4242, "user": None, "connections": 1}],
            "admitted": 120,
            "denied": 7,
            "would_deny": 0,
            "requests_denied": 0,
            "requests_would_deny": 0,
            "bytes_from_client": 1_200_000,
            "bytes_from_backend": 2_300_000,
        }
    ],
    "relays": [{"number": 1, "pid": 4711, "connections": 3, "cage": "seccomp"}],
    "relay_restarts": 0,
    "audit": {"queued": 0, "max": 10_000, "seq": 254},
    "latest_denials": [
        {
            "time": "2026-03-01T12:34:56.000000Z",
            "proxy": "docker",
            "connection": 126,
            "uid": 1001,
            "user": "mallory",
            "cause": "rules",
            "rule": "docker.deny[0]",
            "reason": "denied by docker.deny[0]",
            "request": None,
        }
    ],
}


def status() -> Status:
    """A status of one's own to change."""
    return copy.deepcopy(STATUS)


def row(number: int) -> ConnectionStatus:
    return {
        "number": number,
        "proxy": "docker",
        "uid": 1007,
        "gid": 1007,
        "user": "ci",
        "pid": 4000,
        "rule": "operators",
        "seconds": 1.5,
        "state": "open",
    }


class MemoryOperator:
    """What an Operator says is what stands here; ``asked`` is what was asked of it."""

    def __init__(self) -> None:
        self.answer = status()
        self.live = {17, 18}
        self.result = ReloadResult(True, (), 4)
        self.asked: list[str] = []
        self.fault: Exception | None = None

    def status(self) -> Status:
        self._ask("status")
        return self.answer

    def connections(self) -> Iterable[ConnectionStatus]:
        self._ask("connections")
        return self._rows()

    def _rows(self) -> Iterator[ConnectionStatus]:
        for number in sorted(self.live):
            yield row(number)

    async def reload(self) -> ReloadResult:
        self._ask("reload")
        await trio.lowlevel.checkpoint()
        return self.result

    def close(self, number: int) -> bool:
        self._ask(f"close {number}")
        if number not in self.live:
            return False
        self.live.remove(number)
        return True

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fault is not None:
            raise self.fault


class MemoryDisposer:
    """Keeps what would be closed in a process of its own (a fake: it shows what is handed over and what is not, and
    trio's threads, which no process may be forked beside, do not matter). See foreign.Disposer.
    """

    def __init__(self) -> None:
        self.socks: list[socket.socket] = []

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        self.socks.extend(socks)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


@asynccontextmanager
async def served(path: Path, operator: MemoryOperator, disposer: MemoryDisposer | None = None) -> AsyncIterator[None]:
    """The control socket of that operator at ``path``; removed afterwards."""
    disposer = disposer or MemoryDisposer()
    listener, bound = control.listen(str(path))
    try:
        with listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control.serve, listener, operator, disposer)
                yield
                nursery.cancel_scope.cancel()
    finally:
        bound.remove()
        disposer.close()
