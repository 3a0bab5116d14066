"""An inspected connection within the real cage: whatever it does is among the system calls that a relay may make."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from sockguard.privsep import channel
from sockguard.privsep.messages import RELAY_TO_CONTROL, Credits, Hello, Stop
from sockguard.privsep.pipe import Inlet
from tests.unit.relay.conftest import hear
from tests.unit.relay.lines import SECONDS, Control, read, send_fd

RELAY: Final = """
import sys
from sockguard.carriers import master, pool
carriers = master.start(pool.SLOTS)
from sockguard.relay import inspected, process, rules
from tests.unit.relay.lines import LineInspector, LineRules
inspected.inspector_of = lambda _: LineInspector
rules.rules_of = lambda _: LineRules
sys.exit(process.main(["-", ""], carriers))
"""
"""A relay that knows the test's protocol besides; all else of it is as ever."""


@pytest.fixture
def control() -> Iterator[Control]:
    ours, theirs = channel.pair()
    read, write = os.pipe()
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs.fileno(), write)]
    dups = "".join(f"os.dup2({fd}, {number}, inheritable=True)\n" for number, fd in enumerate(given, 3))
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os\n{dups}{RELAY}"], pass_fds=given, stdin=subprocess.DEVNULL
    )
    theirs.close()
    channel.close_all([write, *given])
    control = Control(ours, Inlet(read, RELAY_TO_CONTROL))
    try:
        hello = hear(control.inlet)
        assert isinstance(hello, Hello), hello
        assert "seccomp" in hello.cage
        control.configure(1, sets=[[0, []]])
        control.send(Credits(100))
        yield control
    finally:
        with contextlib.suppress(OSError):
            channel.send(ours, Stop())
        status = process.wait(SECONDS)
        control.inlet.close()
        for end in (ours, *control.ends):
            end.close()
    assert status == 0


def test_each_way_through_it(control: Control) -> None:
    """Back-pressure, fds in flight, half-closes, tunnels, timers, faults, resets."""
    client, backend = control.link(buffer=4608)
    client.sendall(b"flood 100000\n")
    assert read(client, 100_000) == b"x" * 100_000
    backend.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:  # more than may be in flight, so that the relay asks what was taken
            send_fd(backend, b"say\n", 10)
            sent += 1
    control.go_on()
    got = b""
    while len(got) < 4 * sent:
        data, fds, _, _ = socket.recv_fds(client, 1 << 16, 253)
        channel.close_all(fds)
        got += data
    client.sendall(b"tunnel\n")
    client.shutdown(socket.SHUT_WR)
    backend.settimeout(SECONDS)
    assert read(backend, 8) == b"tunnel\n"
    backend.close()
    assert control.outcome(1) == ("closed", "")

    client, _ = control.link()
    client.sendall(b"timer 0.1\n")
    assert read(client, 6) == b"time\n"
    assert control.outcome(2) == ("timeout", "")

    client, _ = control.link()
    client.sendall(b"fault here\n")
    outcome, why = control.outcome(3)
    assert outcome == "failed"
    assert why.startswith("IndexError: here, at lines.py:")

    for first in (0, 1):
        ends = control.link()
        ends[0].sendall(b"pass 1\ndeny 1\n")
        assert ends[first].recv(1)
        ends[first].close()
        assert control.outcome(4 + first)[0] == ("client_reset", "backend_reset")[first]

    client, _ = control.link()
    for data in (b"pass", b" on\n"):
        send_fd(client, data, 253)
    assert control.outcome(6)[0] == "failed"
