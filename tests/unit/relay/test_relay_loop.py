"""A relay and control: what it takes, what ends it, and what it tells."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sockguard.privsep import channel, memfd
from sockguard.privsep.messages import Close, Closed, Connections, Fault, Generation, Stop
from tests.unit.relay.conftest import End, RelayUnderTest


def fault_of(relay: RelayUnderTest) -> str:
    """What the relay says before it ends by a fault."""
    message = relay.receive_but_ends()
    assert isinstance(message, Fault), message
    assert relay.receive() is None
    assert relay.wait() == 1
    return message.text


def test_capacity_follows_the_limit_of_open_files(relay: RelayUnderTest) -> None:
    """Hello tells how many connections fit: two descriptors each, and spare ones."""
    hard = int(struct.unpack("q", struct.pack("q", os.sysconf("SC_OPEN_MAX")))[0])
    assert 0 < relay.capacity <= hard


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b'["hello", 1]',
        b'["stop", 1]',
        b'["close", [[1]]]',
        b'["close", [["1", "revoked"]]]',
        b'["close", [1]]',
        b'["generation", 1]',
        b'["connections", [[1, 1, 0, 0]]]',
    ],
)
def test_what_is_not_on_the_list_ends_it(relay: RelayUnderTest, data: bytes) -> None:
    """A relay that gets what it does not know does not guess: it says so and ends, with its connections."""
    relay.configure(1, {})
    _, client, backend = relay.link()
    relay.channel.send(data)
    assert fault_of(relay)
    with client, backend:
        assert client.recv(1) == b""
        assert backend.recv(1) == b""


@pytest.mark.parametrize("row", [(1, 2, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 5, 0, 0), ("1", 1, 0, 0, 0), (1, 1, 0, 0)])
def test_a_connection_that_cannot_be_ends_it(relay: RelayUnderTest, row: tuple[int | str, ...]) -> None:
    """Another generation than the one in force, no such proxy, another shape: a fault, never served by a guess."""
    relay.configure(1, {})
    pairs = [socket.socketpair() for _ in range(2)]
    relay.send(Connections((row,)), pairs[0][1].fileno(), pairs[1][1].fileno())
    for _, theirs in pairs:
        theirs.close()
    assert fault_of(relay)
    for ours, _ in pairs:
        assert ours.recv(1) == b""
        ours.close()


def test_a_connection_before_any_generation_ends_it(relay: RelayUnderTest) -> None:
    """Nothing is served before the options are known."""
    ours, theirs = socket.socketpair()
    relay.send(Connections(((1, 0, 0, 0, 0),)), theirs.fileno(), theirs.fileno())
    assert fault_of(relay)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_generation_that_cannot_be_read_ends_it(relay: RelayUnderTest, sealed: bool) -> None:
    """No JSON, or not sealed: a fault."""
    fd = memfd.write("x", b"no json") if sealed else os.memfd_create("x")
    if not sealed:
        os.write(fd, json.dumps({"proxies": [], "rules": []}).encode())
    relay.send(Generation(1), fd)
    os.close(fd)
    assert fault_of(relay)


def test_a_new_generation_leaves_old_links_alone(relay: RelayUnderTest) -> None:
    """Links go on; new ones are of the new generation, with its options."""
    relay.configure(1, {})
    old, client, backend = relay.link(1)
    relay.configure(2, {"fds": "refuse"})
    new, client2, backend2 = relay.link(2)
    with client, backend, client2, backend2:
        client.sendall(b"x")
        assert backend.recv(10) == b"x"
        socket.send_fds(client2, [b"x"], [0])
        assert relay.end_of(new) == (0, 0, "fds_refused")
        client.close()
        assert relay.end_of(old) == (1, 0, "closed")


@pytest.mark.parametrize("outcome", ["revoked", "drain_timeout"])
def test_close(relay: RelayUnderTest, outcome: str) -> None:
    """Control ends a connection with an outcome; both peers see it; a second close of it does nothing."""
    relay.configure(1, {})
    number, client, backend = relay.link()
    other, client2, backend2 = relay.link()
    with client, backend, client2, backend2:
        client.sendall(b"12345")
        assert backend.recv(10) == b"12345"
        relay.send(Close(((number, outcome), (99, "revoked"))))
        assert relay.end_of(number) == (5, 0, outcome)
        assert backend.recv(1) == b""
        assert client.recv(1) == b""
        relay.send(Close(((number, outcome),)))
        client2.sendall(b"on")
        assert backend2.recv(10) == b"on"
        client2.close()
        assert relay.end_of(other) == (2, 0, "closed")


def test_stop(relay: RelayUnderTest) -> None:
    """It tells the end of every connection, and then ends itself with status 0."""
    relay.configure(1, {})
    links = [relay.link() for _ in range(1200)]  # more than one message of ends
    relay.send(Stop())
    told: set[int] = set()
    while (message := relay.receive()) is not None:
        assert isinstance(message, Closed)
        for row in message.rows:
            assert row[3] == "stopped"
            told.add(int(row[0]))
    assert told == {number for number, _, _ in links}
    assert relay.wait() == 0
    for _, client, backend in links:
        assert client.recv(1) == backend.recv(1) == b""
        client.close()
        backend.close()


def test_the_end_of_control_is_its_end(relay: RelayUnderTest) -> None:
    """When control has gone, so has every connection: none lives on unaccounted."""
    relay.configure(1, {})
    _, client, backend = relay.link()
    relay.channel.close()
    assert relay.wait() == 0
    with client, backend:
        assert client.recv(1) == backend.recv(1) == b""


def test_a_control_that_does_not_read_loses_nothing(relay: RelayUnderTest) -> None:
    """Ends wait in the relay while the channel is full, and all are told in the end."""
    relay.configure(1, {})
    count = 3000
    for _ in range(count // 100):
        links = [relay.link() for _ in range(100)]
        for _, client, backend in links:
            client.close()
            backend.close()
    for number in range(1, count + 1):
        assert relay.end_of(number)[2] in ("closed", "client_reset", "backend_reset")


def test_idle_timeout(relay: RelayUnderTest) -> None:
    """An idle connection ends, however busy another one of the same relay is; one without a timeout does not."""
    relay.configure(1, {"idle_timeout": 0.6}, {})
    idle, client, backend = relay.link(proxy=0)
    busy, client2, backend2 = relay.link(proxy=1)
    client.setblocking(False)
    with client, backend, client2, backend2:
        rounds = 0
        while True:
            client2.sendall(b"x")
            assert backend2.recv(1) == b"x"
            rounds += 1
            try:
                assert client.recv(1) == b""
                break
            except BlockingIOError:
                continue
        assert rounds > 1
        assert relay.end_of(idle) == (0, 0, "idle_timeout")
        client2.close()
        assert relay.end_of(busy) == (rounds, 0, "closed")


def moves(sender: End, receiver: End) -> bool:
    """Does a byte get through? Not, where the connection has ended."""
    try:
        sender.sendall(b"x")
        return receiver.recv(1) == b"x"
    except (BrokenPipeError, ConnectionResetError):
        return False


def test_traffic_either_way_puts_the_idle_timeout_off(relay: RelayUnderTest) -> None:
    """A connection on which anything moves, in one direction only, is not idle: it outlives one that is."""
    seconds = 0.6
    relay.configure(1, {"idle_timeout": seconds})
    for _ in range(20):
        last, silence = time.monotonic(), 0.0
        links = [relay.link() for _ in range(3)]
        (_, client, backend), (_, client2, backend2), (idle, client3, _) = links
        client3.setblocking(False)
        moved = True
        while moved and idle not in relay.ended:
            moved = moves(client, backend) and moves(backend2, client2)
            silence, last = max(silence, time.monotonic() - last), time.monotonic()
            try:
                assert client3.recv(1) == b""
                relay.end_of(idle)
            except BlockingIOError:
                continue
        for _, *both in links:
            for end in both:
                end.close()
        if moved:
            return
        assert silence >= seconds  # this process stood still, and so they were idle: once more
    pytest.fail("too slow, 20 times")


def test_signals_of_a_terminal_do_not_end_it(relay: RelayUnderTest, wait_until: Callable[..., None]) -> None:
    """Ctrl-C and SIGTERM reach the whole group; a drain is control's to lead."""
    relay.configure(1, {})
    number, client, backend = relay.link()
    for signal_number in (1, 2, 15):
        os.kill(relay.pid, signal_number)
    with client, backend:
        client.sendall(b"x")
        assert backend.recv(1) == b"x"
        backend.close()
        assert relay.end_of(number)[2] == "closed"


def test_it_holds_nothing_but_its_channel(relay: RelayUnderTest) -> None:
    """No capability, no way to gain one, no core, not dumpable; standard output is /dev/null."""
    relay.configure(1, {})
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{relay.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Name"] == "sockguard-relay"
    assert status["NoNewPrivs"] == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0
    channel.send(relay.channel, Stop())
    assert relay.wait() == 0
