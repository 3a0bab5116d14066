"""Delivery to a relay: where a client that had to wait is connected to."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import trio
import trio.testing

from sockguard.config.settings import Proxy
from sockguard.identity.peer import Peer
from sockguard.server import backend
from sockguard.server.connections import Connection
from sockguard.server.delivery import RelayDelivery
from sockguard.server.metrics import NullMetrics
from sockguard.server.privileges import Privileges
from sockguard.server.relays import RelayPool
from tests.unit.server.conftest import Control, allow, config, proxy

PEER = Peer(1, 1, frozenset({1}), pid=1)


class Pool:
    """Takes what would go to a relay (a fake: no relay is needed to see where it is connected to)."""

    def __init__(self) -> None:
        self.backends: list[Any] = []

    def hand_over(self, _: Connection, client: socket.socket, backend: socket.socket) -> None:
        self.backends.append(backend.getpeername())
        client.close()
        backend.close()

    def flush(self) -> None:
        return


class AsClient:
    """Connects as the client, as the monitor does; the connection is one that says so."""

    async def connect_as(self, proxy: Proxy, _: socket.socket, __: str) -> socket.socket | int:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(proxy.backend + "-as-client")
            listener.listen()
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(proxy.backend + "-as-client")
        return sock


@pytest.mark.parametrize(
    ("moved", "wanted"), [({"backend": "new"}, "new"), ({"identity": "client"}, "old-as-client")], ids=str
)
async def test_a_reload_while_a_client_waits(
    folder: Path, autojump_clock: trio.testing.MockClock, moved: dict[str, str], wanted: str
) -> None:
    """It is connected as the configuration says that admits it now, though the old way would be open again."""
    if "backend" in moved:
        moved = {"backend": str(folder / moved["backend"])}
    before = replace(proxy("web", allow("all"), protocol="stream"), backend=str(folder / "old"))
    made, pool = Control(config(before)), Pool()
    admission = made.admissions["web"]
    with socket.socket(socket.AF_UNIX) as old, socket.socket(socket.AF_UNIX) as new:
        async with trio.open_nursery() as nursery:
            delivery = RelayDelivery(
                cast(RelayPool, pool),
                made.connections,
                cast(Privileges, AsClient()),
                NullMetrics(),
                nursery,
                made.disposer,
            )
            connection = Connection(1, admission, PEER, 1, "all", trio.current_time())
            made.connections.add(connection)
            _ours, client = socket.socketpair()
            delivery.deliver(connection, client)
            await trio.testing.wait_all_tasks_blocked()
            admission.renew(replace(before, **moved), admission._accounts)  # type: ignore[arg-type]  # as a file has it
            for sock, name in ((old, "old"), (new, "new")):
                sock.bind(str(folder / name))
                sock.listen()
    _ours.close()
    assert pool.backends == [str(folder / wanted)]


@pytest.mark.parametrize("protocol", ["stream", "seqpacket"])
@pytest.mark.parametrize("fds", ["forward", "refuse"])
async def test_descriptors_go_by_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, fds: Literal["forward", "refuse"]
) -> None:
    """A service is connected to with the kernel's refusal where the proxy refuses descriptors, and only there."""
    asked: list[tuple[int, bool]] = []

    def try_connect(path: str, kind: int, *, refuse_fds: bool) -> int:
        asked.append((kind, refuse_fds))
        return errno.EPROTOTYPE  # which ends it

    monkeypatch.setattr(backend, "try_connect", try_connect)
    made = Control(config(proxy("web", allow("all"), protocol=protocol, fds=fds)))
    admission = made.admissions["web"]
    assert admission.limits.take(1) is None
    connection = Connection(1, admission, PEER, 1, "all", trio.current_time())
    made.connections.add(connection)
    ours, client = socket.socketpair()
    async with trio.open_nursery() as nursery:
        RelayDelivery(
            cast(RelayPool, Pool()),
            made.connections,
            cast(Privileges, AsClient()),
            NullMetrics(),
            nursery,
            made.disposer,
        ).deliver(connection, client)
    ours.close()
    kind = socket.SOCK_SEQPACKET if protocol == "seqpacket" else socket.SOCK_STREAM
    assert set(asked) == {(kind, fds == "refuse")}
