"""A relay that is short of files, memory or the kernel's lists ends what it has to, and nobody else's connection."""

from __future__ import annotations

import errno
import os
import select
from functools import partial

import pytest

from sockguard.relay import loop
from tests.unit.relay.lines import End, open_files, running


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
    room = [2 + 2 + registered]  # the channel, the master's, a connection, and part of another

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
    real, failures = os.write, [errno.EAGAIN, errno.ENOMEM]

    def write(fd: int, data: bytes) -> int:
        if b'"pong"' in data and failures:
            raise OSError(number := failures.pop(), os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with running(monkeypatch) as control:
        control.go_on()
    assert not failures
