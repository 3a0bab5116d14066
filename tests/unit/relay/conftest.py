"""A relay process alone, spoken to as control does: its ends are socket pairs of the test."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from sockguard.privsep import channel, memfd, spawn
from sockguard.privsep.messages import (
    RELAY_TO_CONTROL,
    Closed,
    Connections,
    ConnectionsTaken,
    Generation,
    GenerationTaken,
    Hello,
    Message,
    Stop,
)
from sockguard.privsep.pipe import Inlet

SECONDS: Final = 20.0
End = socket.socket


def generation(*proxies: dict[str, Any], **content: Any) -> bytes:
    """The JSON of a generation: options of each proxy, the defaults filled in; ``content``: other keys than those."""
    defaults: dict[str, Any] = {
        "name": "p",
        "protocol": "stream",
        "sender": "any",
        "fds": "forward",
        "idle_timeout": 0.0,
        "enforce": True,
        "options": {},
        "backend_uid": None,
        "rules": [],
    }
    rows = [{**defaults, **proxy} for proxy in proxies]
    return json.dumps({"proxies": rows, "sets": [], "connections": [], "log_allowed": False, **content}).encode()


class RelayUnderTest:
    """One relay. ``link()`` gives a client's and a backend's end with the relay between them."""

    def __init__(self) -> None:
        self.pid, self.channel, pipe = spawn.spawn_relay(None, "")
        self.channel.settimeout(SECONDS)
        self.inlet = Inlet(pipe, RELAY_TO_CONTROL)
        self.ended: dict[int, tuple[int, int, str]] = {}
        self.last_number = 0
        hello = self.receive()
        assert isinstance(hello, Hello)
        self.capacity = hello.capacity
        self.cage = hello.cage

    def send(self, message: Message, *fds: int) -> None:
        channel.send(self.channel, message, fds)

    def receive(self) -> Message | None:
        return hear(self.inlet)

    def configure(self, number: int, *proxies: dict[str, Any]) -> None:
        """Bring a generation into force: options of each proxy, the defaults filled in."""
        fd = memfd.write("test", generation(*proxies))
        self.send(Generation(number), fd)
        os.close(fd)
        assert self.receive_but_ends() == GenerationTaken(number)

    def receive_but_ends(self) -> Message | None:
        """The next message that is no end of a connection; those are kept in ``ended``."""
        while isinstance(message := self.receive(), Closed):
            for number, from_client, from_backend, outcome, _ in message.rows:
                assert int(number) not in self.ended
                self.ended[int(number)] = (int(from_client), int(from_backend), str(outcome))
        return message

    def link(
        self,
        generation: int = 1,
        proxy: int = 0,
        before: Callable[[End, End], object] = lambda *_: None,
        *,
        kind: int = socket.SOCK_STREAM,
    ) -> tuple[int, End, End]:
        """Hand over one connection: its number, and both ends as client and backend have them.

        before: what they do before the relay has the connection; kind: the type of all sockets.
        """
        client, relay_client = socket.socketpair(type=kind)
        backend, relay_backend = socket.socketpair(type=kind)
        before(client, backend)
        self.last_number += 1
        with relay_client, relay_backend:
            row = (self.last_number, generation, proxy, 0, os.geteuid(), os.geteuid())
            self.send(Connections((row,)), relay_client.fileno(), relay_backend.fileno())
        for end in (client, backend):
            end.settimeout(SECONDS)
        assert self.receive_but_ends() == ConnectionsTaken(1)
        return self.last_number, client, backend

    def end_of(self, number: int) -> tuple[int, int, str]:
        """Bytes from client, bytes from backend and outcome of a connection, once the relay has told its end."""
        while number not in self.ended:
            message = self.receive()
            assert isinstance(message, Closed), message
            for row in message.rows:
                self.ended[int(row[0])] = (int(row[1]), int(row[2]), str(row[3]))
        return self.ended[number]

    def wait(self) -> int:
        """The exit status; the process must end by itself."""
        end = time.monotonic() + SECONDS
        while True:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, "the relay did not end"
            select.select([], [], [], 0.005)

    def close(self) -> None:
        if self.pid:
            self.send(Stop())
            assert self.wait() == 0
        self.channel.close()
        self.inlet.close()


def hear(inlet: Inlet) -> Message | None:
    """The next message of a relay; None when it has ended."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return inlet.receive()
        except BlockingIOError:
            left = end - time.monotonic()
            assert left > 0, "the relay said nothing"
            select.select([inlet.fd], [], [], left)


@pytest.fixture
def relay() -> Iterator[RelayUnderTest]:
    made = RelayUnderTest()
    yield made
    if made.pid:
        made.close()
    else:
        made.channel.close()
        made.inlet.close()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            select.select([], [], [], 0.001)

    return wait
