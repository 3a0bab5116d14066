"""Much at a time: it is spliced where that can be, and nothing of the order of bytes and descriptors changes by it."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

import pytest

from sockguard.privsep.channel import close_all
from sockguard.relay import peeking, pipes
from tests.unit.relay.conftest import End, RelayUnderTest
from tests.unit.relay.lines import read, running

MB: Final = 1_000_000


@pytest.fixture
def relay(relay: RelayUnderTest) -> RelayUnderTest:
    relay.configure(1, {})
    return relay


def send_file(sock: End, data: bytes) -> None:
    """By sendfile(2), in as few messages as the kernel makes of it."""
    fd = os.memfd_create("file")
    os.write(fd, data)
    sent = 0
    while sent < len(data):
        select.select([], [sock], [], 20)
        sent += os.sendfile(sock.fileno(), fd, sent, len(data) - sent)
    os.close(fd)


def send_all(sock: End, data: bytes) -> None:
    sock.sendall(data)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("by", [send_all, send_file])
def test_descriptors_amid_much(relay: RelayUnderTest, seed: int, by: Callable[[End, bytes], None]) -> None:
    """Each arrives once, with its own message, whatever stands before and behind it, and however fast it is read."""
    rng = random.Random(seed)  # noqa: S311
    parts = [(rng.choice([1, 5, 4096, 65_536, 300_000, MB]), rng.choice([0, 0, 1, 3])) for _ in range(40)]
    _, client, backend = relay.link()
    sent, places, at = hashlib.sha256(), [], 0
    for size, fds in parts:
        places += [(at, at + size)] * fds
        at += size

    def write() -> None:
        for size, fds in parts:
            data = rng.randbytes(size)
            sent.update(data)
            if fds:
                first = socket.send_fds(client, [data], [0] * fds)
                client.sendall(data[first:])
            else:
                by(client, data)

    writer = threading.Thread(target=write)
    writer.start()
    got, place, found = hashlib.sha256(), 0, []
    with client, backend:
        while place < at:
            data, received, _, _ = socket.recv_fds(backend, rng.choice([1000, 70_000, MB]), 253)
            assert data, "the connection has ended"
            place += len(data)
            got.update(data)
            found += [place] * len(received)
            close_all(received)
        writer.join()
    assert got.digest() == sent.digest()
    assert len(found) == len(places)
    assert all(start < place <= end for place, (start, end) in zip(found, places, strict=True))


@pytest.mark.parametrize("fds", ["forward", "refuse"])
def test_with_no_pipe_to_be_had(monkeypatch: pytest.MonkeyPatch, fds: str) -> None:
    """As where a user's pipes are used up (pipe(7)): it is copied."""
    monkeypatch.setattr(pipes, "MAX_PIPES", 0)
    passes(monkeypatch, fds)


def test_on_a_kernel_whose_peeks_tell_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody knows how much carries no descriptors, and it is peeked and copied."""
    monkeypatch.setattr(peeking, "PEEK_SEES_ALL", False)
    passes(monkeypatch, "forward")


@pytest.mark.parametrize("fds", ["forward", "refuse"])
def test_more_blocked_readers_than_pipes(monkeypatch: pytest.MonkeyPatch, fds: str) -> None:
    """Each holds a pipe; the next are copied; when they read, all arrives."""
    monkeypatch.setattr(pipes, "MAX_PIPES", 2)
    passes(monkeypatch, fds, 6)


def passes(monkeypatch: pytest.MonkeyPatch, fds: str, count: int = 1) -> None:
    """So many connections, none of which is read from before all of them are full, get everything through."""
    data = random.Random(1).randbytes(3 * MB)  # noqa: S311
    with running(monkeypatch) as control:
        control.configure(1, proxy={"protocol": "stream", "fds": fds})
        ends = [control.link(lines=False, refuse_fds=fds == "refuse") for _ in range(count)]
        writers = [threading.Thread(target=client.sendall, args=(data,)) for client, _ in ends]
        for writer in writers:
            writer.start()
        control.go_on()
        for _, backend in ends:
            assert read(backend, len(data)) == data
        for writer in writers:
            writer.join()
