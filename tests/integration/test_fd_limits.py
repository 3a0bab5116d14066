"""Limits of passed descriptors: on their way they count for a uid, and once received for a process."""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
from pathlib import Path

import pytest

from sockguard.privsep.channel import close_all
from sockguard.relay.peeking import MAX_IN_FLIGHT
from tests.support.clients import as_user, connect
from tests.support.identities import open_folder, wait_until
from tests.support.passing import MOST, Tracer, guarding, open_files, receive, send
from tests.support.services import serving

pytestmark = pytest.mark.root


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


def back(sock: socket.socket) -> None:
    """Send back what comes, with its descriptors; where it begins with "n", read nothing until the client has gone."""
    if sock.recv(1, socket.MSG_PEEK) == b"n":
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        poll.poll(60_000)
        return
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 16, MOST)
        if not data:
            return
        send(sock, data, fds)
        close_all(fds)


def fill(sock: socket.socket, fd: int) -> int:
    """Send messages with as many descriptors as fit until there is no room. How many messages."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.5)[1]:
        try:
            send(sock, b"f", [fd] * MOST)
        except BlockingIOError:
            continue
        sent += 1
    return sent


def is_reset(sock: socket.socket) -> bool:
    """Whoever ends a connection with something unread is heard of at the last close, which may be after the end."""
    try:
        assert sock.recv(10) == b""
    except ConnectionResetError:
        return True
    return False


def test_a_service_that_does_not_read_starves_nobody(tracer: Tracer) -> None:
    """The kernel counts descriptors on their way by uid, for all connections of the relays together. One direction
    gets no more than its share: then its writer waits. Others go on, and in the end all of them arrive."""
    arrived: list[int] = []
    go, over = threading.Event(), threading.Event()

    def slow(sock: socket.socket) -> None:
        if sock.recv(1, socket.MSG_PEEK) != b"f":
            back(sock)
            return
        go.wait(60)
        while True:
            data, fds, flags, _ = socket.recv_fds(sock, 1, MOST)
            close_all(fds)
            if not data:
                break
            arrived.append(-1 if flags & socket.MSG_CTRUNC else len(fds))
        over.set()

    files = 2 * MAX_IN_FLIGHT  # for the relay: one connection may take half of what its uid may have on their way
    with (
        open_folder() as folder,
        serving(folder / "private", slow),
        guarding(folder, folder / "private", relays=1, files=files),
    ):

        def greedy() -> str:
            with connect(folder / "public", 60) as sock:
                sent = fill(sock, tracer.reader)
                os.write(full_write, b"x")
                select.select([done_read], [], [], 60)
            return str(sent)

        def modest() -> str:
            for _ in range(200):
                with connect(folder / "public", 30) as sock:
                    send(sock, b"e", [tracer.reader] * 5)
                    data, fds, _, _ = socket.recv_fds(sock, 10, MOST)
                    close_all(fds)
                    assert (data, len(fds)) == (b"e", 5)
            return "served"

        (full_read, full_write), (done_read, done_write) = os.pipe(), os.pipe()
        answers: list[str] = []
        # Not as root, which control is where there is no user sockguard: what they send counts for their own uids.
        one = threading.Thread(target=lambda: answers.append(as_user(greedy, 4242)), daemon=True)
        one.start()
        assert select.select([full_read], [], [], 60)[0]
        assert as_user(modest, 4243) == "served"
        os.write(done_write, b"x")
        one.join()
        go.set()
        assert over.wait(60)
        (sent,) = map(int, answers)
        assert sent * MOST > MAX_IN_FLIGHT  # more than its share: some had to wait
        assert arrived == [MOST] * sent
        close_all([full_read, full_write, done_read, done_write])
        tracer.finish()


def test_a_relay_without_room_for_them(tracer: Tracer) -> None:
    """Descriptors that the kernel could not give a carrier would be lost, so the connection ends as ``out_of_files``;
    those that it did give are closed, and the next connection is served as if nothing had been."""
    with (
        open_folder() as folder,
        serving(folder / "private", back),
        guarding(folder, folder / "private", relays=1, files=128) as daemon,
    ):
        (relay,) = daemon.pids()["sockguard-relay"]
        before = open_files(daemon)
        for number in range(1, 4):
            with connect(folder / "public", 60) as unlucky:
                send(unlucky, b"e", [tracer.reader] * 20)
                assert receive(unlucky) == b"e"
                send(unlucky, b"x", [tracer.reader] * 200)
                wait_until(lambda: len(daemon.events("connection_closed")) == number, "it ends")  # noqa: B023
                wait_until(lambda: is_reset(unlucky), "it hears that they were not read")
            wait_until(lambda: open_files(daemon) == before, "all is closed")
        assert [event["outcome"] for event in daemon.events("connection_closed")] == ["out_of_files"] * 3
        assert daemon.pids()["sockguard-relay"] == [relay]
        tracer.finish()


def test_another_users_descriptors_are_counted_for_that_user(tracer: Tracer) -> None:
    """A client that sends more than it may have on their way gets ETOOMANYREFS itself, as without sockguard."""

    def greedy(path: Path) -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with connect(path) as sock:
            try:
                for _ in range(1000):
                    send(sock, b"n", [tracer.reader] * 20)
            except OSError as error:
                return error.strerror or ""
        return "sent all"

    with (
        open_folder() as folder,
        serving(folder / "private", back),
        guarding(folder, folder / "private", relays=1),
    ):
        assert as_user(lambda: greedy(folder / "public"), 4242) == "Too many references: cannot splice"
    tracer.finish()
