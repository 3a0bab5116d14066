"""What waits of an inspected connection: in its order, for as long as it must, and no longer."""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import termios
from array import array
from collections.abc import Iterator

import pytest

from sockguard.privsep import channel
from sockguard.privsep.messages import Close, Credits
from sockguard.relay import inspected, inspected_side, outbox
from tests.unit.relay.lines import Control, configured, read, running, send_fd


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    with configured(monkeypatch) as control:
        yield control


def test_a_client_is_read_again_when_what_waited_behind_a_body_has_gone(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it goes at once, so no event of the socket will tell of it."""
    monkeypatch.setattr(inspected_side, "MAX_UNREAD_REPLIES", 1000)
    client, backend = control.link()
    backend.sendall(b"body 10\n")
    assert read(client, 8) == b"body 10\n"
    client.sendall(b"flood 2000\npass 0\n")
    assert read(backend, 7) == b"pass 0\n"
    client.sendall(b"pass 1\n")
    control.go_on()
    backend.sendall(b"0123456789")
    assert read(client, 2010) == b"0123456789" + b"x" * 2000
    assert read(backend, 7) == b"pass 1\n"


def test_a_half_close_waits_for_what_waits_behind_a_body(control: Control) -> None:
    client, backend = control.link()
    backend.sendall(b"body 10\n")
    assert read(client, 8) == b"body 10\n"
    client.sendall(b"flood 5\nshut-client\npass 0\n")
    assert read(backend, 7) == b"pass 0\n"
    backend.sendall(b"0123456789")
    assert read(client, 16) == b"0123456789xxxxx"
    client.sendall(b"pass 1\n")
    assert read(backend, 7) == b"pass 1\n"


def test_a_half_close_waits_for_the_end_of_a_body(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"last 10\n01234")
    assert read(backend, 13) == b"last 10\n01234"
    client.sendall(b"56789")
    assert read(backend, 6) == b"56789"
    backend.sendall(b"still here\n")
    assert read(client, 11) == b"still here\n"


def test_a_client_that_is_paused_is_shown_nothing_more(control: Control) -> None:
    """Not even what has come already."""
    client, backend = control.link()
    client.sendall(b"pause\npass 1\n")
    assert read(backend, 6) == b"pause\n"
    control.go_on()
    backend.setblocking(False)
    with pytest.raises(BlockingIOError):
        backend.recv(1)
    backend.settimeout(20)
    backend.sendall(b"go on\n")
    assert read(backend, 7) == b"pass 1\n"


def test_credit_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for much has no more of it than who asks for little."""
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        clients = [control.link()[0] for _ in range(12)]
        for client in clients:
            client.sendall(b"deny 1\ndeny 2\ndeny 3\n")
            control.go_on()
        for _ in range(2 * len(clients)):
            control.send(Credits(1))
        control.go_on()
        told = [row[0] for row in control.requests]
        assert told == [*range(1, 13), *range(1, 13)]


def test_a_half_close_waits_for_what_does_not_go_at_once(control: Control) -> None:
    client, backend = control.link(buffer=4608)
    client.sendall(b"pass x\n" * 3000 + b"shut\n")
    assert read(backend, 21_001) == b"pass x\n" * 3000
    backend.sendall(b"still here\n")
    assert read(client, 11) == b"still here\n"


def tunnel_with_descriptors_waiting(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> tuple[socket.socket, socket.socket]:
    """A tunnel, 5 bytes with a descriptor that are not taken, and 20,000 more with another, which waits for that."""
    monkeypatch.setattr(outbox, "MAX_IN_FLIGHT", 1)
    client, backend = control.link(buffer=4608)
    client.sendall(b"tunnel\n")
    assert read(backend, 7) == b"tunnel\n"
    send_fd(client, b"first")
    assert select.select([backend], [], [], 20)[0]
    send_fd(client, b"x" * 20_000)
    control.go_on()
    return client, backend


def test_descriptors_wait_until_those_before_are_taken(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """And go once, though the bytes that they came with do not go in one piece."""
    _client, backend = tunnel_with_descriptors_waiting(control, monkeypatch)
    backend.setblocking(False)
    unread = array("i", [0])
    fcntl.ioctl(backend, termios.FIONREAD, unread)
    assert unread[0] == 5
    data, fds, _, _ = socket.recv_fds(backend, 5, 10)
    channel.close_all(fds)
    assert (data, len(fds)) == (b"first", 1)
    backend.settimeout(20)
    got, count = 0, 0
    while got < 20_000:
        data, fds, _, _ = socket.recv_fds(backend, 1 << 16, 10)
        channel.close_all(fds)
        got, count = got + len(data), count + len(fds)
    assert (got, count) == (20_000, 1)


def test_descriptors_that_wait_are_closed_with_their_connection(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture counts what is left open."""
    tunnel_with_descriptors_waiting(control, monkeypatch)
    control.send(Close(((1, "revoked"),)))
    assert control.outcome() == ("revoked", "")


def test_what_the_kernel_cannot_take_for_now_is_tried_again(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of a kernel that is out of memory for as long as it takes to notice: a real one cannot be had."""
    made = outbox.Outbox.__init__

    def init(self: outbox.Outbox, link: inspected.InspectedLink, sock: socket.socket) -> None:
        made(self, link, sock)
        put, refusals = self.put, [errno.ENOBUFS, errno.ENOMEM]

        def refuse(data: outbox.Data) -> int:
            if data != b"hello\n" and refusals:
                raise OSError(refusals.pop(), "not now")
            return put(data)

        self.put = refuse  # type: ignore[assignment]

    monkeypatch.setattr(outbox.Outbox, "__init__", init)
    client, backend = control.link()
    client.sendall(b"pass 1\npass 2\n")
    assert read(backend, 14) == b"pass 1\npass 2\n"


def test_a_client_that_leaves_much_unread_is_read_no_further_until_it_reads(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"flood 800000\nflood 800000\n")
    control.go_on()
    client.sendall(b"pass 1\n")
    control.go_on()
    backend.setblocking(False)
    with pytest.raises(BlockingIOError):
        backend.recv(1)
    backend.settimeout(20)
    assert read(client, 1_600_000) == b"x" * 1_600_000
    assert read(backend, 7) == b"pass 1\n"


def test_what_a_service_does_not_take_is_left_with_the_client(control: Control) -> None:
    client, _backend = control.link(buffer=4608)
    client.setblocking(False)
    sent = stalls = 0
    while stalls < 3:
        try:
            sent += client.send(b"pass x\n" * 1000)
            stalls = 0
        except BlockingIOError:
            control.go_on()
            stalls += 1
        assert sent < 1_000_000, "it has no bound"
