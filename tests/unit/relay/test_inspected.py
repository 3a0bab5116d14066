"""A connection that is inspected, in a real loop between real sockets (lines.py: the protocol, and control)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from array import array
from collections.abc import Iterator

import pytest

from sockguard.privsep import channel
from sockguard.privsep.messages import MAX_OVERDRAFT, Assign, Close, Credits, RuleSets
from sockguard.relay import inspected, loop
from tests.unit.relay.lines import SECONDS, Control, configured, read, running, send_fd


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    with configured(monkeypatch) as control:
        yield control


def test_lines_pass_in_order_both_ways(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"pass 1\npass 2\ndeny 3\npass 4\n")
    assert read(backend, 21) == b"pass 1\npass 2\npass 4\n"
    assert read(client, 9) == b"denied 3\n"
    backend.sendall(b"answer\n")
    assert read(client, 7) == b"answer\n"
    client.close()
    assert control.outcome() == ("closed", "")
    assert control.requests == [(1, "denied", "", "denied by the test", "3")]
    assert backend.recv(1) == b""


def test_lines_may_come_byte_by_byte(control: Control) -> None:
    client, backend = control.link()
    for byte in b"pass 1\ndeny 2\n":
        client.sendall(bytes([byte]))
    assert read(backend, 7) == b"pass 1\n"
    assert read(client, 9) == b"denied 2\n"


def test_what_stays_unused_is_bounded(control: Control) -> None:
    client, _backend = control.link()
    client.sendall(b"x" * 100)
    assert control.outcome() == ("malformed", "too long")


def test_an_inspector_that_waits_is_shown_the_rest_when_it_resumes(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"wait 1\nwait 2\npass 3\n" + b"pass 4\n" * 1000)
    assert read(backend, 7) == b"wait 1\n"
    backend.setblocking(False)
    with pytest.raises(BlockingIOError):
        backend.recv(1)
    backend.settimeout(SECONDS)
    backend.sendall(b"go\n")
    assert read(client, 3) == b"go\n"
    assert read(backend, 7) == b"wait 2\n"
    backend.sendall(b"go\n")
    assert read(backend, 7 * 1001) == b"pass 3\n" + b"pass 4\n" * 1000


def test_an_inspector_may_ask_to_be_shown_the_rest_while_it_is_shown_it(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"twice 1\n")
    assert read(backend, 8) == b"twice 1\n"


def test_a_body_passes_unseen_and_what_is_sent_meanwhile_follows_it(control: Control) -> None:
    client, backend = control.link()
    body = b"pass x\n" * 100_000
    sender = threading.Thread(target=client.sendall, args=(b"body 700000\n" + body + b"pass y\n",))
    sender.start()
    assert read(backend, 12) == b"body 700000\n"
    assert read(backend, 700_000) == body
    assert read(backend, 23) == b"behind the body\npass y\n"
    sender.join()


def test_descriptors_amid_a_body_end_the_connection(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"body 10\nabc")
    assert read(backend, 11) == b"body 10\nabc"
    send_fd(client, b"def")
    assert control.outcome()[0] == "malformed"
    assert backend.recv(10) == b""


def test_a_tunnel_passes_everything_and_each_half_close_at_its_time(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"tunnel\nfault at once\n")
    assert read(backend, 21) == b"tunnel\nfault at once\n"
    send_fd(client, b"with fd")
    data, fds, _, _ = socket.recv_fds(backend, 100, 4)
    assert (data, len(fds)) == (b"with fd", 1)
    channel.close_all(fds)
    client.shutdown(socket.SHUT_WR)
    assert backend.recv(1) == b""
    backend.sendall(b"last words")
    assert read(client, 10) == b"last words"
    backend.close()
    assert client.recv(1) == b""
    assert control.outcome() == ("closed", "")


def test_descriptors_go_with_their_line_or_are_closed(control: Control) -> None:
    client, backend = control.link()
    send_fd(client, b"pass fd\n")
    data, fds, _, _ = socket.recv_fds(backend, 100, 4)
    assert (data, len(fds)) == (b"pass fd\n", 1)
    channel.close_all(fds)
    reader, writer = os.pipe()
    client.sendmsg([b"deny fd\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [writer]))])
    os.close(writer)
    assert read(client, 10) == b"denied fd\n"
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""  # the last copy of its other end is closed


def test_a_client_that_does_not_read_its_refusals_is_read_no_further(control: Control) -> None:
    client, _backend = control.link()
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        client.sendall(b"flood 100000\n" * 1_000_000)
    client.settimeout(SECONDS)
    assert read(client, 100_000) == b"x" * 100_000


def test_what_the_service_does_not_take_is_not_read(control: Control) -> None:
    client, backend = control.link()
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        client.sendall(b"pass x\n" * 10_000_000)
    assert read(backend, 700) == b"pass x\n" * 100


def test_the_end_comes_behind_what_was_sent_before(control: Control) -> None:
    client, _backend = control.link()
    client.sendall(b"flood 600000\nend because\n")
    assert read(client, 600_004) == b"x" * 600_000 + b"bye\n"
    assert client.recv(1) == b""
    assert control.outcome() == ("malformed", "because")


def test_nobody_waits_for_ever_for_an_end_to_be_taken(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected, "LINGER_SECONDS", 0.5)
    client, _backend = control.link()
    client.sendall(b"flood 600000\nend because\n")
    assert control.outcome() == ("malformed", "because")


def test_an_inspectors_fault_ends_its_connection_and_no_other(control: Control) -> None:
    client, _ = control.link()
    other, backend = control.link()
    client.sendall(b"fault of its own\n")
    outcome, why = control.outcome()
    assert outcome == "failed"
    assert "IndexError: of its own" in why
    other.sendall(b"pass on\n")
    assert read(backend, 8) == b"pass on\n"


def test_a_timer_fires_once(control: Control) -> None:
    client, _backend = control.link()
    client.sendall(b"timer 60\ntimer 0.3\n")
    assert read(client, 5) == b"time\n"
    assert control.outcome() == ("timeout", "")


def test_no_time_passes_while_an_answer_is_behind_what_the_client_does_not_read(control: Control) -> None:
    client, backend = control.link(buffer=4608)
    backend.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += backend.send(b"say\n" * 1000)
    client.sendall(b"await 0.1\n")
    control.go_on()
    other, _ = control.link()
    other.sendall(b"timer 0.6\n")
    assert control.outcome(2) == ("timeout", "")
    got = b""
    while not got.endswith(b"time\n"):
        got += client.recv(65536)
    assert len(got) == sent + len(b"time\n")
    assert control.outcome(1) == ("timeout", "")


def test_time_passes_while_the_service_does_not_have_all_that_it_is_to_answer(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits behind half a body of the client's: it could stop there for ever."""
    monkeypatch.setattr(inspected, "LINGER_SECONDS", 0.5)
    client, _backend = control.link(buffer=4608)
    client.sendall(b"await 0.1\nflood 60000\nbody 10\nabc")
    assert control.outcome() == ("timeout", "")


def test_a_half_close_waits_for_what_was_sent(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"pass 1\nshut\n")
    assert read(backend, 100) == b"pass 1\n"
    backend.sendall(b"still here\n")
    assert read(client, 11) == b"still here\n"


def test_descriptors_do_not_wait_for_ever(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2014-3637: the client's own end, passed with half a line, would keep the connection when the client ends."""
    monkeypatch.setattr(inspected, "FDS_SECONDS", 0.2)
    client, backend = control.link()
    client.sendmsg([b"pa"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [client.fileno()]))])
    client.close()
    assert control.outcome() == ("limit", "descriptors waited 0.2 s for the rest of their message")
    assert backend.recv(1) == b""


def test_what_is_said_without_descriptors_does_not_let_others_wait_longer(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspected, "FDS_SECONDS", 0.6)
    client, _backend = control.link()
    client.sendmsg([b"drop 0\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [client.fileno()]))])
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(90):
            client.sendall(b"drop 0\n")
            time.sleep(0.1)
        raise AssertionError("they wait for ever")
    assert control.outcome() == ("limit", "descriptors waited 0.6 s for the rest of their message")


def test_without_credit_no_request_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        client, backend = control.link()
        client.sendall(b"deny 1\n")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(SECONDS)
        backend.sendall(b"the service may speak\n")
        assert read(client, 22) == b"the service may speak\n"
        control.send(Credits(1))
        assert read(client, 9) == b"denied 1\n"
        client.sendall(b"deny 2\ndeny 3\n")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        control.send(Credits(1))
        client.settimeout(SECONDS)
        assert read(client, 9) == b"denied 2\n"
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):  # it has come with the other, but is shown when there is credit for it
            client.recv(1)
        control.send(Credits(1))
        client.settimeout(SECONDS)
        assert read(client, 9) == b"denied 3\n"
        client.close()
        control.send(Credits(1))  # the end, too, is read in its turn
        control.outcome()
        assert [row[4] for row in control.requests] == ["1", "2", "3"]


def test_what_other_peers_say_does_not_use_up_what_may_be_overdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is read without credit, but not so far that the requests of a client could not be told of."""
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        client, backend = control.link()
        backend.sendall(b"tell x\n" * 5000)
        control.hear(lambda _: len(control.requests) >= MAX_OVERDRAFT // 2)
        control.go_on()
        assert len(control.requests) == MAX_OVERDRAFT // 2
        control.send(Credits(6000))
        control.hear(lambda _: len(control.requests) >= 5000)
        client.sendall(b"deny 1\n")
        assert read(client, 9) == b"denied 1\n"
        assert not control.closed


def test_long_texts_are_cut(control: Control) -> None:
    client, _ = control.link()
    monkey = "é" * 20
    client.sendall(f"deny {monkey}\n".encode())
    client.close()
    control.outcome()
    assert control.requests[0][4] == monkey
    assert loop._cut("x" * 1000) == "x" * 399 + "…"


def test_rules_by_set_by_assignment_and_by_generation(control: Control) -> None:
    client, _backend = control.link()

    def holds(name: str) -> bool:
        client.sendall(f"rules {name}\n".encode())
        return _line(client) == "True"

    assert (holds("a"), holds("b"), holds("c")) == (True, True, False)
    control.send(RuleSets(((1, 0, "2"),)))
    control.send(Assign(((1, 1),)))
    other, _ = control.link(1)
    other.sendall(b"rules c\n")
    assert _line(other) == "True"
    assert (holds("a"), holds("c")) == (False, True)
    control.configure(2, proxy={"rules": [["d", False, None]]}, sets=[[0, [0]]], connections=[[1, 0]])
    assert (holds("c"), holds("d")) == (False, True)
    other.sendall(b"rules d\n")
    assert _line(other) == "False", "a connection that is not assigned has no rule at all"


def _send_and_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.close()


def _line(sock: socket.socket) -> str:
    text = b""
    while not text.endswith(b"\n"):
        text += sock.recv(1)
    return text.decode().strip()


def test_control_can_close(control: Control) -> None:
    client, backend = control.link()
    control.send(Close(((1, "revoked"),)))
    assert control.outcome() == ("revoked", "")
    assert (client.recv(1), backend.recv(1)) == (b"", b"")


def test_a_client_that_sends_and_goes_is_heard_to_its_end(control: Control) -> None:
    client, backend = control.link()
    sender = threading.Thread(target=_send_and_close, args=(client, b"pass x\n" * 100_000))
    sender.start()
    assert read(backend, 700_000) == b"pass x\n" * 100_000
    sender.join()
    assert control.outcome() == ("closed", "")


def test_a_client_that_asks_and_goes_unanswered_is_heard_to_its_end(control: Control) -> None:
    """Answers that it does not wait for must not cost it what it had sent: a service would have read that, too."""
    client, backend = control.link()
    client.sendall(b"flood 100000\n" + b"pass x\n" * 10_000)
    client.close()
    assert read(backend, 70_000) == b"pass x\n" * 10_000
    assert control.outcome()[0] in ("closed", "client_reset")


def test_a_client_that_hears_nothing_more_is_let_go(control: Control) -> None:
    client, _backend = control.link()
    client.shutdown(socket.SHUT_RD)
    client.sendall(b"deny 1\n")
    assert control.outcome() == ("client_reset", "")


def test_a_service_that_answers_and_goes_is_heard_to_its_end(control: Control) -> None:
    client, backend = control.link()
    sender = threading.Thread(target=_send_and_close, args=(backend, b"answer\n" * 100_000))
    sender.start()
    assert read(client, 700_000) == b"answer\n" * 100_000
    sender.join()
    assert control.outcome() == ("closed", "")


def test_a_service_that_goes_with_bytes_unread_is_a_reset(control: Control) -> None:
    client, backend = control.link()
    client.sendall(b"pass 1\n")
    assert backend.recv(1) == b"p"
    backend.close()
    assert client.recv(1) == b""
    assert control.outcome()[0] == "backend_reset"
