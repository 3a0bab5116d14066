"""How an inspected connection ends: nobody is waited for in vain, nothing that was sent is lost, no fault spreads."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from array import array
from collections.abc import Iterator

import pytest

from sockguard.privsep.messages import Assign, Credits
from sockguard.relay import inspected, peeking
from tests.unit.relay.lines import Control, configured, read, running, send_fd


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    with configured(monkeypatch) as control:
        yield control


def is_alive(control: Control) -> None:
    """Another connection is served."""
    client, backend = control.link()
    client.sendall(b"pass on\n")
    assert read(backend, 8) == b"pass on\n"


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_peer_that_goes_with_descriptors_on_their_way_to_it(control: Control, first: str) -> None:
    """Each copy of them is closed once: a second time it would be somebody else's."""
    client, backend = control.link(buffer=4608)
    reader, writer = (client, backend) if first == "client" else (backend, client)
    writer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(600):
            send_fd(writer, b"pass x\n", 2)
    assert reader.recv(1)
    reader.close()
    assert control.outcome()[0] in ("client_reset", "backend_reset")
    is_alive(control)


def test_more_descriptors_than_a_message_can_carry(control: Control) -> None:
    """The kernel refuses them (EINVAL); they are closed, and the connection alone fails."""
    client, _backend = control.link()
    reader, writer = os.pipe()
    for data in (b"pass", b" on\n"):
        client.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [writer] * 253))])
    os.close(writer)
    assert control.outcome()[0] == "failed"
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""
    is_alive(control)


def test_an_idle_connection_ends_though_its_client_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected, "LINGER_SECONDS", 0.25)
    with running(monkeypatch) as control:
        control.configure(1, proxy={"idle_timeout": 0.25}, sets=[[0, []]])
        control.send(Credits(1))
        client, _backend = control.link()
        client.sendall(b"flood 600000\n")
        assert control.outcome() == ("idle_timeout", "")


@pytest.mark.parametrize("where", ["made", "start", "eof", "timed_out", "new_rules", "busy"])
def test_a_fault_anywhere_in_an_inspector_ends_its_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The event says what and where, without the lines of source, which nobody can open in the cage."""
    with running(monkeypatch) as control:
        more = {"idle_timeout": 0.25} if where == "busy" else {}
        faulty = {"name": "faulty", "options": {"fault": where}, **more}
        control.configure(1, {"name": "good", "protocol": "lines"}, proxy=faulty, sets=[[0, []], [1, []]])
        control.send(Credits(100))
        if where == "made":
            with pytest.raises(AssertionError):
                control.link()
        else:
            client, _ = control.link()
            if where == "timed_out":
                client.sendall(b"timer 0.1\n")
            elif where == "eof":
                client.shutdown(socket.SHUT_WR)
            elif where == "new_rules":
                control.send(Assign(((1, 0),)))
        outcome, why = control.outcome()
        assert outcome == "failed"
        assert why.startswith(f"ZeroDivisionError: {where}, at lines.py:")
        good, backend = control.link(rule_set=1, proxy=1)
        good.sendall(b"pass on\n")
        assert read(backend, 8) == b"pass on\n"


def test_a_fault_in_what_serves_a_stream_ends_its_connection_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bytes are known that find one, so the first reading is made to have one."""
    pump = peeking.PeekingSide.pump
    faults = [ZeroDivisionError("here")]

    def faulty(side: peeking.PeekingSide) -> None:
        if faults:
            raise faults.pop()
        pump(side)

    monkeypatch.setattr(peeking.PeekingSide, "pump", faulty)
    with running(monkeypatch) as control:
        control.configure(1, proxy={"protocol": "stream"})
        client, backend = control.link(lines=False)
        client.sendall(b"x")
        outcome, why = control.outcome()
        assert outcome == "failed"
        assert why.startswith("ZeroDivisionError: here, at test_inspected_ends.py:")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert backend.recv(1) == b""
        client, backend = control.link(lines=False)
        client.sendall(b"y")
        assert backend.recv(1) == b"y"


def test_an_inspector_that_keeps_a_view_ends_its_connection_and_no_other(control: Control) -> None:
    """A view into bytes that wait keeps their buffer from shrinking: a BufferError in the loop's own hands."""
    client, _backend = control.link()
    client.sendall(b"ke")
    control.go_on()
    client.sendall(b"ep 1\npass 1\n")
    assert control.outcome()[0] == "failed"
    is_alive(control)


def test_nothing_has_an_effect_behind_the_end(control: Control) -> None:
    client, _backend = control.link()
    client.sendall(b"flood 600000\ngo-on because\n")
    data = bytearray()
    while more := client.recv(1 << 16):
        data += more
    assert data == b"x" * 600_000
    assert control.outcome() == ("malformed", "because")
    assert not control.requests


def test_nothing_is_shown_behind_the_end(control: Control) -> None:
    """What came in the same piece as what ended it: a fault in that would cut off what waits to be taken."""
    client, _backend = control.link()
    client.sendall(b"flood 600000\nend because\nfault here\n")
    data = bytearray()
    while more := client.recv(1 << 16):
        data += more
    assert data == b"x" * 600_000 + b"bye\n"
    assert control.outcome() == ("malformed", "because")


def test_an_end_by_itself_waits_for_a_slow_reader(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel would keep it: what was sent before a plain end is not lost on one who reads later."""
    monkeypatch.setattr(inspected, "LINGER_SECONDS", 0.0)
    client, _backend = control.link()
    client.sendall(b"flood 600000\nquit\n")
    time.sleep(1.0)
    control.go_on()
    assert read(client, 600_001) == b"x" * 600_000
    assert control.outcome() == ("closed", "")


def test_what_the_last_words_of_a_client_wait_for_is_a_slow_service(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspected, "LINGER_SECONDS", 0.0)
    client, backend = control.link(buffer=4608)
    client.sendall(b"pass x\n" * 10_000)
    client.close()
    time.sleep(1.0)
    assert read(backend, 70_001) == b"pass x\n" * 10_000
    assert control.outcome() == ("closed", "")
    assert control.counts[1] == (70_000, 0)


def test_a_tunnel_ends_when_one_end_of_it_has_gone(control: Control) -> None:
    """Nobody takes what the other sends: it must see that, not write into nothing."""
    for first in (0, 1):
        ends = control.link()
        ends[0].sendall(b"tunnel\n")
        assert read(ends[1], 7) == b"tunnel\n"
        ends[first].sendall(b"bye")
        ends[first].close()
        assert read(ends[1 - first], 4) == b"bye"
        assert control.outcome(first + 1) == ("closed", "")
        with pytest.raises(BrokenPipeError):
            ends[1 - first].send(b"x")


@pytest.mark.parametrize("half_closed", [True, False])
def test_a_reset_of_a_tunnel_is_told(control: Control, half_closed: bool) -> None:
    client, backend = control.link()
    client.sendall(b"tunnel\n")
    assert read(backend, 7) == b"tunnel\n"
    if half_closed:
        backend.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    client.sendall(b"unread")
    assert backend.recv(1) == b"u"
    backend.close()
    if not half_closed:
        assert client.recv(1) == b""
    assert control.outcome() == ("backend_reset", "")
