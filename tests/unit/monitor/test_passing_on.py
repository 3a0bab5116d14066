"""What control passes to the monitor, and back: the monitor's copies are closed, and are never the last that are."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sockguard.errors import SockguardError
from sockguard.monitor.process import Monitor
from sockguard.privsep import channel
from sockguard.privsep.messages import ConnectAs, Done, Facts, Failed, Message, ProcessFacts, ReadConfig
from tests.support.operator import MemoryDisposer


class Case:
    """A monitor, its end of the channel to control, and control's; what is disposed of is kept open."""

    def __init__(self, folder: Path) -> None:
        (folder / "sockguard.toml").write_text("[proxy]\n")
        self.monitor = Monitor(str(folder / "sockguard.toml"))
        self.disposer = MemoryDisposer()
        vars(self.monitor)["_disposal"] = self.disposer
        self.ours, self.control = channel.pair()

    def close(self) -> None:
        self.ours.close()
        self.control.close()
        self.disposer.close()


@pytest.fixture
def case(folder: Path) -> Iterator[Case]:
    made = Case(folder)
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection as control has accepted it, and its peer."""
    accepted, peer = socket.socketpair()
    with accepted, peer:
        yield accepted, peer


Client = tuple[socket.socket, socket.socket]


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def is_closed(writer: int) -> bool:
    """True when no read end of that pipe is open any more (pipe(7): POLLERR)."""
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


@pytest.mark.parametrize("unread", [True, False])
@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("passes", [True, False])
def test_copies_of_connections(case: Case, client: Client, passes: bool, lives: bool, unread: bool) -> None:
    """Closed, as long as control has its own and nothing was passed on them. When control has ended they may be the
    last, and what comes on them later would be released here: a process that exits gets them.
    """
    accepted, peer = client
    if passes:
        socket.send_fds(peer, [b"x"], [peer.fileno()])
    if unread:
        case.control.send(b"x")
    if not lives:
        case.control.close()
    copies = [accepted.dup().detach() for _ in range(2)]
    case.monitor._close(case.ours, copies)
    if lives and not passes:
        assert case.disposer.socks == []
        assert not any(map(is_open, copies))
    else:
        assert [sock.fileno() for sock in case.disposer.socks] == copies
    accepted.send(b"as it was")
    assert peer.recv(20) == b"as it was"


@pytest.mark.parametrize("lives", [True, False])
def test_copies_of_what_is_no_socket(case: Case, lives: bool) -> None:
    """Files and pipes are of sockguard's own making."""
    reader, writer = os.pipe()
    if not lives:
        case.control.close()
    case.monitor._close(case.ours, [reader])
    assert is_closed(writer)
    os.close(writer)
    assert case.disposer.socks == []


def test_no_copies(case: Case) -> None:
    """Most messages bring none."""
    case.monitor._close(case.ours, [])
    case.control.close()
    case.monitor._close(case.ours, [])
    assert case.disposer.socks == []


def fails(_: Message, *fds: int) -> tuple[Message, list[int]]:
    assert all(map(is_open, fds))
    raise SockguardError("not now")


def answers(_: Message, *fds: int) -> tuple[Message, list[int]]:
    assert all(map(is_open, fds))
    return ProcessFacts("/bin/x", ""), []


@pytest.mark.parametrize("handler", [fails, answers])
def test_a_client_is_closed_before_the_answer(
    case: Case, client: Client, monkeypatch: pytest.MonkeyPatch, handler: object
) -> None:
    """Until it has its answer control keeps its own copy, so that the monitor's is not the last, whatever comes of it.
    A client that passes something at the last moment is released by nobody here.
    """
    accepted, peer = client
    copy = accepted.dup().detach()
    said: list[Message] = []

    def send(_: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
        assert not is_open(copy)
        said.append(message)

    monkeypatch.setattr(channel, "send", send)
    case.monitor._handlers[Facts] = handler  # type: ignore[assignment]  # one of both above
    case.monitor._answer(case.ours, Facts(1, "p"), [copy])
    assert said == [Failed("not now") if handler is fails else ProcessFacts("/bin/x", "")]
    assert case.disposer.socks == []
    socket.send_fds(peer, [b"x"], [peer.fileno()])
    copy = accepted.dup().detach()
    monkeypatch.setattr(channel, "send", lambda *_: None)
    case.monitor._answer(case.ours, Facts(1, "p"), [copy])
    assert [sock.fileno() for sock in case.disposer.socks] == [copy]


def test_a_client_is_closed_when_the_monitor_fails(case: Case, client: Client) -> None:
    """A fault of the monitor's own leaves nothing open, and is not hidden."""

    def fault(*_: object) -> tuple[Message, list[int]]:
        raise ZeroDivisionError

    copy = client[0].dup().detach()
    case.monitor._handlers[Facts] = fault
    with pytest.raises(ZeroDivisionError):
        case.monitor._answer(case.ours, Facts(1, "p"), [copy])
    assert not is_open(copy)


@pytest.mark.parametrize("passes", [True, False])
def test_a_connection_that_the_monitor_has_made(case: Case, client: Client, passes: bool) -> None:
    """Control gets it, and may have closed it before the monitor closes its own: what a service has passed by then is
    released elsewhere.
    """
    made, service = client
    if passes:
        socket.send_fds(service, [b"x"], [service.fileno()])
    copy = made.dup().detach()
    case.monitor._handlers[ConnectAs] = lambda *_: (Done(1), [copy])
    case.monitor._answer(case.ours, ConnectAs("shown", ""), [])
    assert [sock.fileno() for sock in case.disposer.socks] == ([copy] if passes else [])
    assert is_open(copy) is passes
    _, (fd,), _, _ = socket.recv_fds(case.control, 1000, 1)
    os.close(fd)


def test_what_the_monitor_has_read(case: Case) -> None:
    """The memfd with the configuration is closed as soon as control has it."""
    before = len(os.listdir("/proc/self/fd"))
    case.monitor._answer(case.ours, ReadConfig(), [])
    assert len(os.listdir("/proc/self/fd")) == before
    assert case.disposer.socks == []
