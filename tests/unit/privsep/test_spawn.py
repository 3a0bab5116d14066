"""Relays as they are started: what they are given, and which way anything can come from them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from sockguard.privsep import channel, spawn
from sockguard.privsep.messages import RELAY_TO_CONTROL, Hello, Message, Stop
from sockguard.privsep.pipe import Inlet

SECONDS: Final = 20.0


class Started:
    """A real relay; ``theirs`` is a copy of the end of the channel that it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = channel.pair

        def kept() -> tuple[socket.socket, socket.socket]:
            ours, theirs = pair()
            self.theirs = theirs.dup()
            return ours, theirs

        monkeypatch.setattr(channel, "pair", kept)
        self.pid, self.channel, inlet = spawn.spawn_relay(None, "")
        self.inlet = Inlet(inlet, RELAY_TO_CONTROL)

    def hear(self) -> Message | None:
        while True:
            try:
                return self.inlet.receive()
            except BlockingIOError:
                assert select.select([self.inlet.fd], [], [], SECONDS)[0], "it says nothing"

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()
        os.waitpid(self.pid, 0)
        self.inlet.close()


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    made = Started(monkeypatch)
    yield made
    made.close()


def test_it_speaks_over_its_pipe(relay: Started) -> None:
    """It says that it is up, ends when it is told to, and that is the end of the pipe: nobody else has its end."""
    hello = relay.hear()
    assert isinstance(hello, Hello)
    assert hello.capacity > 0
    channel.send(relay.channel, Stop())
    assert relay.hear() is None


def test_it_ends_with_its_channel(relay: Started) -> None:
    """Control need not say anything."""
    assert isinstance(relay.hear(), Hello)
    relay.channel.shutdown(socket.SHUT_RDWR)
    assert relay.hear() is None


def test_its_channel_is_one_way(relay: Started) -> None:
    """A relay that is taken over can pass nothing to control: what it sends there is queued nowhere."""
    reader, writer = os.pipe()
    poll = select.poll()
    poll.register(writer, 0)
    with pytest.raises(BrokenPipeError):
        relay.theirs.send(b"x")
    with pytest.raises(BrokenPipeError):
        socket.send_fds(relay.theirs, [b"x"], [reader])
    os.close(reader)
    assert poll.poll(0) == [(writer, select.POLLERR)]
    os.close(writer)


def test_nothing_is_left_open_by_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Want of processes costs no descriptor."""

    def fail(*_: object, **__: object) -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "posix_spawn", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockingIOError):
        spawn.spawn_relay(None, "")
    assert os.listdir("/proc/self/fd") == before


def test_what_is_given_where_those_numbers_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though 3 and 4 are what the channel and the pipe happen to be here, each gets its own."""
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    status = 1
    try:
        os.closerange(3, 1000)
        found = Started(monkeypatch)
        status = 0 if isinstance(found.hear(), Hello) else 2
        found.close()
    finally:
        os._exit(status)
