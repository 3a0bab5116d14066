"""An urgent byte (MSG_OOB) cannot be carried in an ordered copy: it ends the connection, and is never just dropped."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from sockguard.carriers import master
from sockguard.privsep import channel
from sockguard.privsep.pipe import Outlet
from sockguard.relay.loop import Loop
from sockguard.relay.options import Options
from sockguard.relay.side import READ_EVENTS
from sockguard.relay.stream import Link
from tests.unit.relay.conftest import End, RelayUnderTest

both_ways = pytest.mark.parametrize("first", ["client", "backend"])


@pytest.fixture
def relay(relay: RelayUnderTest) -> RelayUnderTest:
    relay.configure(1, {})
    return relay


def read_to_end(sock: End) -> None:
    """Its end comes, clean or not: that depends on what of it the relay had read."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(100):
            pass


@both_ways
@pytest.mark.parametrize("data", [b"u", b"plain ones before it, u"])
def test_an_urgent_byte_ends_the_connection(relay: RelayUnderTest, first: str, data: bytes) -> None:
    """From either end, alone or behind others: the outcome says so, and its sender sees the end."""
    number, client, backend = relay.link()
    one, other = (client, backend) if first == "client" else (backend, client)
    with one, other:
        one.sendall(b"before")
        assert other.recv(6, socket.MSG_WAITALL) == b"before"
        one.send(data, socket.MSG_OOB)
        assert relay.end_of(number)[2] == "urgent_refused"
        read_to_end(one)
        got = other.recv(100)
        assert data[:-1].startswith(got)


@both_ways
def test_one_that_is_there_first(relay: RelayUnderTest, first: str) -> None:
    """Also when it was sent before the relay had the connection, with more behind it."""

    def before(client: End, backend: End) -> None:
        sender = client if first == "client" else backend
        sender.send(b"u", socket.MSG_OOB)
        sender.send(b"behind it")

    number, client, backend = relay.link(before=before)
    with client, backend:
        assert relay.end_of(number)[2] == "urgent_refused"
        assert (backend if first == "client" else client).recv(100) == b""


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that does not run: the test says what happens when."""
    ours, theirs = channel.pair()
    read, write = os.pipe()
    carriers = master.start()
    carriers.wait_ready()
    with ours, theirs:
        yield Loop(theirs, Outlet(write), carriers)
    carriers.close()
    channel.close_all([read, write])


@pytest.mark.parametrize("same_user", [True, False])
@pytest.mark.parametrize("early", [b"", b"passed on"])
def test_one_that_comes_between_epoll_and_the_read(loop: Loop, same_user: bool, early: bytes) -> None:
    """A read drops an urgent byte that is first in the queue (unix(7)). Not so here: either the connection ends, or,
    where nobody could tell, the byte arrives as an ordinary one.
    """
    client, ours = socket.socketpair()
    backend, theirs = socket.socketpair()
    for sock in (backend, ours, theirs):
        sock.setblocking(False)
    if same_user:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    link = Link(loop, 1, ours, theirs, Options("p", "stream", False, same_user, 0), os.getuid(), os.getuid())
    loop._links[1] = link
    for side in (link.client, link.backend):
        loop._sides[side.fd] = side
        loop._epoll.register(side.fd, READ_EVENTS)
    with client, backend:
        if early:
            client.send(early)
            link.client.pump()
            assert backend.recv(100) == early
        client.send(b"u", socket.MSG_OOB)
        client.send(b"behind it")
        link.client.pump()  # before epoll has told
        for fd, events in loop._epoll.poll(0):
            if fd == link.client.fd and not link.client.closed:
                link.client.on_events(events)
        link.client.pump()
        ended = loop._ended == [(1, len(early), 0, "urgent_refused", "")]
        assert ended or backend.recv(100) == b"ubehind it"
        link.end("closed")
