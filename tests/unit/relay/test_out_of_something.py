"""A relay that is short of files, memory or the kernel's lists ends what it has to, and nobody else's connection."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from functools import partial

import pytest

from sockguard.privsep import channel
from sockguard.privsep.messages import Credits, Message, Pong
from sockguard.relay import loop
from tests.unit.relay.lines import End, open_files, read, running


def moves(ends: tuple[End, End]) -> bool:
    """Does a byte get through?"""
    client, backend = ends
    client.sendall(b"x")
    return backend.recv(1) == b"x"


def test_connections_that_leave_no_room_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end at once; those that were there before go on, through a reload, too."""
    files = 2 * open_files() + 50
    monkeypatch.setattr(loop, "Loop", partial(loop.Loop, files=files))
    with running(monkeypatch) as control:
        control.configure(1, proxy={"protocol": "stream"})
        links: list[tuple[End, End]] = []
        while not control.closed and len(links) < files:
            links.append(control.link(lines=False))
            control.go_on()
        *served, refused = links
        assert served
        assert control.closed == {len(links): ("out_of_files", "")}
        assert [end.recv(1) for end in refused] == [b"", b""]
        control.configure(2, proxy={"protocol": "stream"})
        assert all(map(moves, served))


@pytest.mark.parametrize("protocol", ["stream", "lines"])
@pytest.mark.parametrize("registered", [0, 1], ids=["client", "backend"])
def test_a_connection_that_epoll_does_not_take(monkeypatch: pytest.MonkeyPatch, protocol: str, registered: int) -> None:
    """The user's share of watches is used up (ENOSPC): that connection fails, and others go on."""
    real = select.epoll
    room = [1 + 2 + registered]  # the channel, a connection, and part of another

    class Epoll:
        def __init__(self) -> None:
            self.epoll = real()
            self.poll, self.modify, self.unregister = self.epoll.poll, self.epoll.modify, self.epoll.unregister

        def register(self, fd: int, events: int) -> None:
            if not room[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room[0] -= 1
            self.epoll.register(fd, events)

    monkeypatch.setattr(select, "epoll", Epoll)
    with running(monkeypatch) as control:
        control.configure(1, {"protocol": "stream"}, proxy={"protocol": protocol}, sets=[[0, []]])
        before = control.link(proxy=1, lines=False)
        refused = control.link(lines=False)
        assert control.outcome(2)[0] == "failed"
        assert [end.recv(1) for end in refused] == [b"", b""]
        room[0] = 2
        assert all(map(moves, (before, control.link(proxy=1, lines=False))))


def test_want_of_memory_for_a_word_to_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be told just now is told later."""
    real, failures = channel.send, [errno.ENOBUFS, errno.ENOMEM]

    def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
        if isinstance(message, Pong) and failures:
            raise OSError(number := failures.pop(), os.strerror(number))
        real(sock, message, fds)

    monkeypatch.setattr(channel, "send", send)
    with running(monkeypatch) as control:
        control.go_on()
    assert not failures


def test_waiting_descriptors_that_leave_no_room_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who brings them is ended; others go on, through a reload, and new ones are served."""
    files = 2 * open_files() + 50
    monkeypatch.setattr(loop, "Loop", partial(loop.Loop, files=files))
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        control.send(Credits(100))
        greedy, _ = control.link()
        _, backend = control.link()
        control.go_on()
        for _ in range(files):
            with contextlib.suppress(OSError):  # it has ended
                socket.send_fds(greedy, [b"x"], [greedy.fileno()] * 5)
            control.go_on()
        assert control.closed == {1: ("out_of_files", "")}
        control.configure(2, sets=[[0, []]], connections=[[2, 0]])
        client, backend = control.link(number=2)
        client.sendall(b"pass on\n")
        assert read(backend, 8) == b"pass on\n"
