"""What was passed on is taken at once: a sender is not kept waiting by a byte that stays unread.

A stream socket is writable while four times the memory of what its peer has not taken is below its SO_SNDBUF
(unix_writable of net/unix/af_unix.c), and that of one byte can be that of the whole send that it came with.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import sending
from tests.support.pairs import Case, pairwise
from tests.support.passages import KEYS, KINDS, TO_CLIENT, TO_SERVICE, Stage, read, stage
from tests.support.servers import ended, environment

pytestmark = pytest.mark.root

DIRECTIONS: Final = (TO_SERVICE, TO_CLIENT)
BUFFERS: Final = ("1", "4096", "65472", "default")
"""For SO_SNDBUF: below the kernel's minimum, small, that of PulseAudio's clients, and what a socket begins with."""

FACTORS: Final = (
    tuple(KEYS),
    DIRECTIONS,
    ("sendfile", "splice", "sendall", "small"),
    BUFFERS,
    ("blocking", "polling"),
    ("prompt", "late"),
)
LATE: Final = 0.3
"""Seconds before a late reader reads: enough for what goes through without it to stand still."""


def possible(case: Case) -> bool:
    """sendfile(2) and splice(2) choose by themselves how long a record is."""
    proxy, _, way, *_ = case
    return proxy != "seqpacket" or way in ("sendall", "small")


@pytest.fixture(scope="module")
def guard() -> Iterator[Stage]:
    with stage() as made:
        yield made


@contextmanager
def sent(data: bytes, sock: socket.socket, folder: Path, *how: str) -> Iterator[None]:
    """A process sends it meanwhile, and must have said at the end that all of it is taken. how: see sending.py."""
    file = folder / "sent"
    file.write_bytes(data)
    descriptor = sock.fileno()
    command = [sys.executable, "-I", sending.__file__, str(descriptor), str(file), *how]
    sender = subprocess.Popen(
        command,
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )
    with ended(sender):
        try:
            yield
        except TimeoutError as error:
            sender.kill()
            error.add_note(f"the sender: {sender.communicate()[0].decode()}")
            raise
        said, _ = sender.communicate(timeout=2 * sending.SECONDS)
    assert said == b"taken\n", said.decode()


@pytest.mark.parametrize("case", pairwise(FACTORS, possible), ids="-".join)
def test_all_of_it_is_taken(guard: Stage, tmp_path: Path, case: Case) -> None:
    """However it is sent, with whatever SO_SNDBUF: all arrives, the sender is writable again, and nothing of it stays
    unread while the connection goes on."""
    proxy, direction, way, sndbuf, waiting, reader = case
    with guard.passage(proxy, direction) as passage:
        with sent(passage.sent, passage.sender, tmp_path, way, sndbuf, waiting):
            if reader == "late":
                time.sleep(LATE)
            assert passage.receive() == passage.meant
        passage.go_on()


@pytest.mark.parametrize("length", [1, 1000, 40_000])
@pytest.mark.parametrize("sndbuf", BUFFERS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("proxy", [name for name in KINDS if name != "http"])
def test_one_message_is_taken_though_nobody_reads(
    guard: Stage, proxy: str, direction: str, sndbuf: str, length: int
) -> None:
    """One send, and then silence: it is taken all the same, and waits where its receiver is."""
    with guard.ends(proxy) as (client, service):
        sender, receiver = (client, service) if direction == TO_SERVICE else (service, client)
        if sndbuf != "default":
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(sndbuf))
        room = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        data = os.urandom(min(length, room - sending.DATAGRAM_OVERHEAD))
        sender.sendall(data)
        sending.wait_writable(sender)
        sending.wait_taken(sender)
        assert read(receiver, len(data)) == data


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("proxy", "way"), [("stream", "sendfile"), ("stream", "small"), ("seqpacket", "sendall")])
def test_all_of_it_is_taken_after_a_passed_fd(
    guard: Stage, tmp_path: Path, proxy: str, way: str, direction: str
) -> None:
    """A connection on which descriptors are passed is read in another way: the same holds of it."""
    reader, writer = os.pipe()
    with guard.ends(proxy) as (client, service):
        sender, receiver = (client, service) if direction == TO_SERVICE else (service, client)
        data = os.urandom(1 << 20)
        for _ in range(2):
            socket.send_fds(sender, [b"message"], [reader])
            message, fds, _, _ = socket.recv_fds(receiver, 100, 10)
            assert (message, [os.fstat(fd).st_ino for fd in fds]) == (b"message", [os.fstat(reader).st_ino])
            os.close(fds[0])
            sending.wait_taken(sender)
            with sent(data, sender, tmp_path, way, "4096", "polling"):
                assert read(receiver, len(data)) == data
    os.close(reader)
    os.close(writer)
