"""Descriptors in D-Bus messages whose close waits for as long as their maker likes: nobody else's call waits for it.

The attacker may use the bus; it passes sockets that linger (tests/support/lingering.py) or files that hang (fuse.py),
with messages that are never complete, that are denied, and that are let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import Daemon
from tests.support.dbus import SECRET
from tests.support.dbus_stage import People, Stage, people, stage
from tests.support.dbus_wire import UNIX_FDS, Closed, Field, Wire, call, error_of, to_bus
from tests.support.foreign import ATTACKER, FRIEND, PROTOCOLS, place
from tests.support.fuse import Hanging, hanging
from tests.support.identities import open_folder
from tests.support.lingering import Lingering, lingering
from tests.support.stand_in_bus import stand_in_bus

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
ONE_RELAY: Final = "\n[daemon]\nrelays = 1\n"

TRIES: Final = 10
"""More descriptors than hang before a user's next one is refused."""


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture
def bus(who: People) -> Iterator[Stage]:
    """A real bus, behind one relay."""
    with open_folder() as folder, stage(folder, who, "client", more=ONE_RELAY) as made:
        yield made


@contextmanager
def weapon(name: str, folder: Path, uid: int) -> Iterator[Callable[[Wire, bytes], None]]:
    """Sends bytes over a connection, with a descriptor of that kind."""
    kind: AbstractContextManager[Lingering | Hanging] = lingering() if name == "lingering" else hanging(folder, uid)
    with kind as made:
        yield lambda wire, data: made.send(wire.sock, data)


def answers(*wires: Wire) -> None:
    """The bus answers each of them."""
    for wire in wires:
        wire.send(to_bus(1000, "GetId"))
        wire.answer(1000)


def outcomes(daemon: Daemon, uid: int, count: int) -> list[str]:
    """How the connections of that user ended, once so many have."""
    found: list[str] = []

    def has_come(_: object) -> bool:
        found[:] = [event["outcome"] for event in daemon.events("connection_closed") if event["uid"] == uid]
        return len(found) == count

    daemon.wait_for("connection_closed", has_come)
    return found


def pass_until_refused(wire: Wire, send: Callable[[Wire, bytes], None], name: str, expected: str) -> int:
    """Send one message after the other, each with a descriptor, until the connection ends. How many were answered,
    each with that error, or without one."""
    try:
        for serial in range(10, 10 + TRIES):
            data = call(serial, name, "Take", interface=name, more=[Field(UNIX_FDS, 1)])
            try:
                send(wire, data)
            except (BrokenPipeError, ConnectionResetError):
                return serial - 10
            assert error_of(wire.answer(serial)) == expected
    except Closed:
        return serial - 10
    raise AssertionError(f"{TRIES} messages with descriptors were answered")


def test_half_a_message_and_then_garbage(bus: Stage) -> None:
    """Half a message brings one; then the protocol is broken. Only these connections end, and as ``malformed``."""
    assert bus.daemon is not None
    relays = bus.daemon.pids()["sockguard-relay"]
    friends = [bus.wire("admin") for _ in range(4)]
    answers(*friends)
    with weapon("lingering", bus.folder, bus.uid("reader")) as send:
        attackers = [bus.wire("reader") for _ in range(4)]
        for wire in attackers:
            send(wire, b"l\1\0\1" + bytes(8))
        answers(*friends)
        for wire in attackers:
            wire.send(b"\xff" * 64)
        assert outcomes(bus.daemon, bus.uid("reader"), 4) == ["malformed"] * 4
        answers(*friends, bus.wire("admin"))
        assert bus.daemon.pids()["sockguard-relay"] == relays
        assert not bus.daemon.events("relay_restarted")


@pytest.mark.parametrize("name", ["lingering", "hanging"])
def test_a_denied_message(bus: Stage, name: str) -> None:
    """What a denied call brings is closed. It is answered all the same, and so are others; who goes on to bring more is
    cut off, with an outcome of its own."""
    assert bus.daemon is not None
    relays = bus.daemon.pids()["sockguard-relay"]
    friend, attacker = bus.wire("admin"), bus.wire("reader")
    with weapon(name, bus.folder, bus.uid("reader")) as send:
        assert 0 < pass_until_refused(attacker, send, SECRET, DENIED) < TRIES
        assert outcomes(bus.daemon, bus.uid("reader"), 1) == ["fds_stuck"]
        answers(friend, bus.wire("reader"), bus.wire("admin"))
        assert bus.daemon.pids()["sockguard-relay"] == relays
        assert not bus.daemon.events("relay_restarted")


def test_a_message_that_is_let_through() -> None:
    """What a call brings that may be made is passed on, and then closed by whoever carried it."""
    with place({**PROTOCOLS, "bus": 'protocol = "dbus"\nbackend = "FOLDER/bus.private"'}) as guard, ExitStack() as made:
        made.enter_context(stand_in_bus(guard.folder / "bus.private"))
        send = made.enter_context(weapon("hanging", guard.folder, ATTACKER))
        friend, attacker = (made.enter_context(Wire(guard.folder / "bus", uid)) for uid in (FRIEND, ATTACKER))
        relay = guard.relay()
        assert 0 < pass_until_refused(attacker, send, "org.example.Name", "") < TRIES
        assert outcomes(guard.daemon, ATTACKER, 1) == ["fds_stuck"]
        answers(friend, *(made.enter_context(Wire(guard.folder / "bus", uid)) for uid in (FRIEND, ATTACKER)))
        assert guard.relay() == relay
        assert not guard.daemon.events("relay_restarted")
