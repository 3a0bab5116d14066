"""A protocol in lines, so that each thing an inspector can ask for has a line that asks for it; and what control does.

A fake of an inspector, and of control; the loop, the links and the sockets are real.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import pytest

from sockguard.carriers import master, pool
from sockguard.privsep import channel, foreign, memfd
from sockguard.privsep.messages import (
    RELAY_TO_CONTROL,
    Closed,
    Connections,
    ConnectionsTaken,
    Credits,
    Generation,
    GenerationTaken,
    Message,
    Ping,
    Pong,
    Requests,
    Stop,
)
from sockguard.privsep.pipe import Inlet, Outlet
from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, Json, RequestRule, RequestRules, RequestVerdict, Start
from sockguard.relay import inspected, loop, rules
from sockguard.relay.inspected_side import InspectedSide
from tests.unit.relay.conftest import generation, hear

SECONDS: Final = 20.0
Verdict = RequestVerdict
End = socket.socket


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
    """Each line of the client is a command; each line of the service goes to the client as it is, but for "tell"."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset()
    max_buffer = 64

    def __init__(self, start: Start) -> None:
        self.effects, self.rules, self.held = start.effects, start.rules, False
        self.fault = start.options.get("fault")  # the part of an inspector that has one
        self.kept: list[memoryview] = []
        self.fail("made")
        assert isinstance(start.rules, Lines)

    def fail(self, where: str) -> None:
        if self.fault == where:
            raise ZeroDivisionError(where)

    @property
    def busy(self) -> bool:
        self.fail("busy")
        return False

    def start(self) -> None:
        self.effects.send(BACKEND, b"hello\n")
        self.fail("start")

    def received(self, source: int, data: memoryview, fds: int) -> int:
        text = bytes(data)
        line, end, _ = text.partition(b"\n")
        if not end:
            if len(text) >= self.max_buffer:
                self.effects.end("malformed", "too long")
            return 0
        used = len(line) + 1
        word, _, rest = line.decode().partition(" ")
        if source == BACKEND:
            if word == "tell":  # of what another peer of the service says
                self.effects.audit("denied", rest, Verdict(False, None, "denied by the test"))
                return used
            self.held = False
            self.effects.send(CLIENT, data[:used], fds)
            if word == "body":
                self.effects.passthrough(BACKEND, int(rest))
            self.effects.resume(CLIENT)
            return used
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
            case "take":  # with so many descriptors
                effects.send(BACKEND, data, int(rest.partition(" ")[0]))
            case "drop":
                effects.drop_fds(CLIENT, int(rest))
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
            case "last":  # a body, and no more
                effects.send(BACKEND, data)
                effects.passthrough(CLIENT, int(rest))
                effects.half_close(BACKEND)
            case "shut-client":
                effects.half_close(CLIENT)
            case "pause":
                effects.send(BACKEND, data)
                effects.pause(CLIENT)
            case "timer":
                effects.timer(float(rest))
            case "await":
                effects.timer(float(rest), BACKEND)
            case "shut":
                effects.half_close(BACKEND)
            case "rules":
                allowed = self.rules.judge(rest).allowed
                effects.send(CLIENT, f"{allowed}\n".encode())
            case "end":
                effects.send(CLIENT, b"bye\n")
                effects.end("malformed", rest)
            case "quit":
                effects.end("closed", rest)
            case "go-on":  # ends, and then does all that has no effect any more
                effects.end("malformed", rest)
                effects.send(CLIENT, b"and another thing\n")
                effects.audit("denied", rest, Verdict(False, None, "denied by the test"))
                effects.timer(0.1)
                effects.half_close(CLIENT)
            case "keep":
                self.kept.append(data[:1])
            case "fault":
                raise IndexError(rest)
        return used

    def eof(self, source: int) -> None:
        self.fail("eof")
        self.effects.end("closed")

    def answered(self, answer: Sequence[int | str]) -> None:
        raise AssertionError

    def timed_out(self) -> None:
        self.fail("timed_out")
        self.effects.send(CLIENT, b"time\n")
        self.effects.end("timeout")

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        self.fail("new_rules")
        self.rules = rules


class Control:
    """What control does, for one loop: hands over connections, and hears what is told."""

    def __init__(self, sock: socket.socket, inlet: Inlet) -> None:
        self.sock = sock
        self.inlet = inlet
        sock.settimeout(SECONDS)
        self.closed: dict[int, tuple[str, str]] = {}
        self.counts: dict[int, tuple[int, int]] = {}  # bytes from client and backend
        self.requests: list[tuple[Any, ...]] = []
        self.number = 0
        self.ends: list[socket.socket] = []

    def send(self, message: Message, *fds: int) -> None:
        channel.send(self.sock, message, fds)

    def hear(self, until: Callable[[Message], bool]) -> None:
        while True:
            message = hear(self.inlet)
            assert message
            if isinstance(message, Closed):
                assert not any(row[0] in self.closed for row in message.rows)
                self.closed |= {int(row[0]): (str(row[3]), str(row[4])) for row in message.rows}
                self.counts |= {int(row[0]): (int(row[1]), int(row[2])) for row in message.rows}
            elif isinstance(message, Requests):
                self.requests += message.rows
            if until(message):
                return

    def configure(self, number: int, *more: dict[str, Any], **content: Any) -> None:
        """Bring a generation into force. proxy: options of its first proxy; ``more``: of others."""
        proxies = [{"protocol": "lines", **proxy} for proxy in (content.pop("proxy", {}), *more)]
        fd = memfd.write("test", generation(*proxies, **content))
        self.send(Generation(number), fd)
        os.close(fd)
        self.hear(lambda message: message == GenerationTaken(number))

    def link(
        self,
        rule_set: int = 0,
        number: int = 1,
        proxy: int = 0,
        buffer: int = 0,
        *,
        lines: bool = True,
        refuse_fds: bool = False,
        user: int | None = None,
    ) -> tuple[End, End]:
        """The ends that a client and a service have, and the latter is greeted. number: of the generation; proxy: its
        index; buffer: of the relay's sockets, in bytes; lines: that is its protocol; refuse_fds: by the kernel; user:
        whom it counts for, this one unless said.
        """
        client, relay_client = socket.socketpair()
        backend, relay_backend = socket.socketpair()
        self.number += 1
        with relay_client, relay_backend:
            for sock in (relay_client, relay_backend):
                if refuse_fds:
                    foreign.refuse_all(sock)
                if buffer:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            whose = os.geteuid() if user is None else user
            row = (self.number, number, proxy, rule_set, os.geteuid(), whose)
            self.send(Connections((row,)), relay_client.fileno(), relay_backend.fileno())
        self.ends += (client, backend)
        for end in (client, backend):
            end.settimeout(SECONDS)
        self.hear(lambda message: message == ConnectionsTaken(1))
        assert not lines or backend.recv(6) == b"hello\n"
        return client, backend

    def go_on(self) -> None:
        """The loop is alive, and has done what it was told."""
        self.send(Ping(self.number))
        self.hear(lambda message: message == Pong(self.number))

    def outcome(self, number: int = 1) -> tuple[str, str]:
        while number not in self.closed:
            self.hear(lambda message: isinstance(message, Closed))
        return self.closed[number]


def watch_clear(monkeypatch: pytest.MonkeyPatch, faults: list[BaseException]) -> None:
    """Look, before each use of it, whether a side that says that it is clear is so: what is not goes into faults."""
    pump, send = InspectedSide.pump, inspected.InspectedLink.send

    def look(side: InspectedSide) -> None:
        if side.clear and not side._is_clear():
            faults.append(AssertionError(f"not clear: {side.link.number}, {side.index}"))

    def looking_pump(side: InspectedSide) -> None:
        look(side)
        pump(side)

    def looking_send(link: inspected.InspectedLink, to: int, *what: Any) -> None:
        look(link.sides[to].other)
        send(link, to, *what)

    monkeypatch.setattr(InspectedSide, "pump", looking_pump)
    monkeypatch.setattr(inspected.InspectedLink, "send", looking_send)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A loop in a thread. In the end nothing may have gone wrong in it, and every descriptor must be closed."""
    monkeypatch.setattr(inspected, "inspector_of", lambda _: LineInspector)
    monkeypatch.setattr(rules, "rules_of", lambda _: LineRules)
    gc.collect()  # of what earlier tests have left
    before = open_files()
    ours, theirs = channel.pair()
    read, write = os.pipe()
    carriers = master.start(pool.SLOTS)
    carriers.wait_ready()
    faults: list[BaseException] = []
    watch_clear(monkeypatch, faults)

    def run() -> None:
        made = loop.Loop(theirs, Outlet(write), carriers)
        try:
            made.run()
        except BaseException as error:
            faults.append(error)
        finally:
            made.pipes.close()
            theirs.close()
            os.close(write)
            carriers.close()

    thread = threading.Thread(target=run)
    thread.start()
    control = Control(ours, Inlet(read, RELAY_TO_CONTROL))
    try:
        yield control
    finally:
        with contextlib.suppress(OSError):
            channel.send(ours, Stop())
        thread.join(SECONDS)
        control.inlet.close()
        for end in (ours, *control.ends):
            end.close()
        assert not faults
        assert not thread.is_alive()
    gc.collect()  # a loop and its links know each other: only so is its epoll closed
    assert open_files() == before


@contextmanager
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A loop that has a generation with one proxy, rules a, b and c, set 0 of which is a and b; and ample credit."""
    with running(monkeypatch) as control:
        rows = [["a", False, None], ["b", False, None], ["c", False, None]]
        control.configure(1, proxy={"rules": rows}, sets=[[0, [0, 1]]])
        control.send(Credits(100))
        yield control


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def read(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := sock.recv(length - len(data))):
        data += more
    return data


def send_fd(sock: socket.socket, data: bytes, count: int = 1) -> None:
    with open(os.devnull, "rb") as null:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null.fileno()] * count))])
