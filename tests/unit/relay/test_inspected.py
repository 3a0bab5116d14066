"""A connection that is inspected, in a real loop between real sockets.

The protocol is one of this test, in lines, so that each thing an inspector can ask for has a line that asks for it:
a fake of an inspector, not of the loop.
"""

from __future__ import annotations

import os
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import pytest

from sockguard.privsep import channel, memfd
from sockguard.privsep.messages import (
    RELAY_TO_CONTROL,
    Assign,
    Close,
    Closed,
    Connections,
    ConnectionsTaken,
    Credits,
    Generation,
    GenerationTaken,
    Message,
    Requests,
    RuleSets,
    Stop,
)
from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, Json, RequestRule, RequestRules, RequestVerdict, Start
from sockguard.relay import inspected, loop, rules
from tests.unit.relay.conftest import generation

SECONDS: Final = 20.0
Verdict = RequestVerdict


class Lines:
    """Rules of the test's protocol: the names of those that hold."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def judge(self, request: object, /) -> RequestVerdict:
        return Verdict(str(request) in self.names, None, "as the test has it")


class LineRules:
    @staticmethod
    def compile_rules(rules: Sequence[RequestRule], options: Mapping[str, Json]) -> RequestRules:
        return Lines([rule.name for rule in rules])


class LineInspector:
    """Each line of the client is a command; each line of the service goes to the client as it is."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset()
    max_buffer = 64
    busy = False

    def __init__(self, start: Start) -> None:
        self.effects, self.rules, self.held = start.effects, start.rules, False
        assert isinstance(start.rules, Lines)

    def start(self) -> None:
        self.effects.send(BACKEND, b"hello\n")

    def received(self, source: int, data: memoryview, fds: int) -> int:
        text = bytes(data)
        line, end, _ = text.partition(b"\n")
        if not end:
            if len(text) >= self.max_buffer:
                self.effects.end("malformed", "too long")
            return 0
        used = len(line) + 1
        if source == BACKEND:
            self.held = False
            self.effects.send(CLIENT, data[:used], fds)
            self.effects.resume(CLIENT)
            return used
        word, _, rest = line.decode().partition(" ")
        return self.command(word, rest, data[:used], fds)

    def command(self, word: str, rest: str, data: memoryview, fds: int) -> int:
        effects, used = self.effects, len(data)
        match word:
            case "pass":
                effects.send(BACKEND, data, fds)
            case "wait":  # the next line of the client is not looked at before the service has said one
                if self.held:
                    return 0
                self.held = True
                effects.send(BACKEND, data)
            case "twice":  # not used the first time, but to be shown again
                if not self.held:
                    self.held = True
                    effects.resume(CLIENT)
                    return 0
                effects.send(BACKEND, data)
            case "deny":
                effects.drop_fds(CLIENT, fds)
                effects.audit("denied", rest, Verdict(False, None, "denied by the test"))
                effects.send(CLIENT, f"denied {rest}\n".encode())
            case "flood":
                effects.send(CLIENT, b"x" * int(rest))
            case "body":
                effects.send(BACKEND, data)
                effects.passthrough(CLIENT, int(rest))
                effects.send(BACKEND, b"behind the body\n")
            case "tunnel":
                effects.send(BACKEND, data)
                effects.passthrough(CLIENT, FOREVER)
                effects.passthrough(BACKEND, FOREVER)
            case "timer":
                effects.timer(float(rest))
            case "shut":
                effects.half_close(BACKEND)
            case "rules":
                allowed = self.rules.judge(rest).allowed
                effects.send(CLIENT, f"{allowed}\n".encode())
            case "end":
                effects.send(CLIENT, b"bye\n")
                effects.end("malformed", rest)
            case "fault":
                raise IndexError(rest)
        return used

    def eof(self, source: int) -> None:
        self.effects.end("closed")

    def answered(self, answer: Sequence[int | str]) -> None:
        raise AssertionError

    def timed_out(self) -> None:
        self.effects.send(CLIENT, b"time\n")
        self.effects.end("timeout")

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        self.rules = rules


class Control:
    """What control does, for one loop: hands over connections, and hears what is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(SECONDS)
        self.closed: dict[int, tuple[str, str]] = {}
        self.requests: list[tuple[Any, ...]] = []
        self.number = 0
        self.ends: list[socket.socket] = []

    def send(self, message: Message, *fds: int) -> None:
        channel.send(self.sock, message, fds)

    def hear(self, until: Callable[[Message], bool]) -> None:
        while True:
            received = channel.receive(self.sock, RELAY_TO_CONTROL)
            assert received
            message = received[0]
            if isinstance(message, Closed):
                self.closed |= {int(row[0]): (str(row[3]), str(row[4])) for row in message.rows}
            elif isinstance(message, Requests):
                self.requests += message.rows
            if until(message):
                return

    def configure(self, number: int, **content: Any) -> None:
        proxy = {"protocol": "lines", **content.pop("proxy", {})}
        fd = memfd.write("test", generation(proxy, **content))
        self.send(Generation(number), fd)
        os.close(fd)
        self.hear(lambda message: message == GenerationTaken(number))

    def link(self, rule_set: int = 0, number: int = 1) -> tuple[socket.socket, socket.socket]:
        client, relay_client = socket.socketpair()
        backend, relay_backend = socket.socketpair()
        self.number += 1
        with relay_client, relay_backend:
            row = (self.number, number, 0, rule_set, os.geteuid())
            self.send(Connections((row,)), relay_client.fileno(), relay_backend.fileno())
        self.ends += (client, backend)
        for end in (client, backend):
            end.settimeout(SECONDS)
        self.hear(lambda message: message == ConnectionsTaken(1))
        assert backend.recv(6) == b"hello\n"
        return client, backend

    def outcome(self, number: int = 1) -> tuple[str, str]:
        while number not in self.closed:
            self.hear(lambda message: isinstance(message, Closed))
        return self.closed[number]


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    monkeypatch.setattr(inspected, "inspector_of", lambda _: LineInspector)
    monkeypatch.setattr(rules, "rules_of", lambda _: LineRules)
    ours, theirs = channel.pair()
    faults: list[BaseException] = []

    def run() -> None:
        try:
            loop.Loop(theirs).run()
        except BaseException as error:
            faults.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    control = Control(ours)
    try:
        yield control
    finally:
        channel.send(ours, Stop())
        thread.join(SECONDS)
        for end in (ours, *control.ends):
            end.close()
        assert not faults
        assert not thread.is_alive()


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A loop that has a generation with one proxy, rules a, b and c, set 0 of which is a and b; and ample credit."""
    with running(monkeypatch) as control:
        rows = [["a", False, None], ["b", False, None], ["c", False, None]]
        control.configure(1, proxy={"rules": rows}, sets=[[0, [0, 1]]])
        control.send(Credits(100))
        yield control


def read(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := sock.recv(length - len(data))):
        data += more
    return data


def send_fd(sock: socket.socket, data: bytes) -> None:
    with open(os.devnull, "rb") as null:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null.fileno()]))])


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


def test_nobody_waits_for_ever_for_an_end_to_be_taken(control: Control) -> None:
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
