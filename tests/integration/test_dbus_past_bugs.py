"""What broke other proxies and buses, by its number.

Elsewhere: eavesdropping (CVE-2026-34080) in test_dbus_adversary.py; `own` that took names below, and activation before
the policy (dbus-broker, pull 462), in test_dbus_names.py; a connection that its own descriptor keeps open
(CVE-2014-3637) in unit/relay/test_inspected.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.dbus import ECHO, OBJECT, SECRET
from tests.support.dbus_stage import People, Stage, Way, files_when_idle, people, stages
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    MEMBER,
    PATH,
    SIGNATURE,
    UNIX_FDS,
    Closed,
    Field,
    Wire,
    call,
    error_of,
    message,
    request_name,
    to_bus,
    value,
)
from tests.support.identities import open_folder, wait_until
from tests.support.passing import Tracer, open_files
from tests.support.reloading import sockguard

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
PARTS: Final = (Field(PATH, OBJECT), Field(MEMBER, "Echo"), Field(DESTINATION, ECHO))


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who, options="max_connections_per_user = 50") as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def idle(ways: dict[Way, Stage]) -> dict[int, int]:
    return files_when_idle(ways["proxy"])


@pytest.fixture
def guarded(ways: dict[Way, Stage]) -> Stage:
    """One of the two proxies: what is here does not depend on whom the bus sees."""
    return ways["client"]


def served(place: Stage) -> None:
    """Another client is, as ever."""
    with Wire(place.path, place.uid("reader")) as wire:
        wire.send(call(2, ECHO, "Echo", text="as ever"))
        assert wire.answer(2).body == ("as ever",)


BEGINNINGS: Final = (
    *(b"BEGIN \r\n", b"BEGIN\t\r\n", b" BEGIN\r\n", b"BEGIN x\r\n", b"BEGIN\n", b"BEGIN\r", b"begin\r\n"),
    *(b"BEGIN\0\r\n", b"NEGOTIATE_UNIX_FD \r\nBEGIN\r\n", b"DATA\r\nBEGIN  \r\n", b"CANCEL\r\nBEGIN\r\n"),
)


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_cve_2018_6560(guarded: Stage, begin: bytes) -> None:
    """White space about BEGIN: xdg-dbus-proxy took what followed for authentication still, the bus for messages."""
    text = f"smuggled {begin!r}"
    with Wire(guarded.path, guarded.uid("reader"), hello=False) as wire:
        wire.sock.sendall(b"\0AUTH EXTERNAL " + str(wire.uid).encode().hex().encode() + b"\r\n")
        assert wire.line().startswith(b"OK ")
        with contextlib.suppress(BrokenPipeError):
            wire.sock.sendall(begin + to_bus(1, "Hello") + call(2, SECRET, "Echo", text=text))
            wire.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while wire.sock.recv(65536):
                pass
    assert f"Echo {text}" not in guarded.calls()


def test_cve_2020_12049(guarded: Stage, idle: dict[int, int]) -> None:
    """As many descriptors as the kernel passes at once, with a byte or a message: none is left over, on any way out."""
    assert guarded.daemon is not None
    daemon = guarded.daemon
    tracer = Tracer()
    for data in (b"l", message(CALL, 2, PARTS), message(CALL, 2, [*PARTS, Field(UNIX_FDS, 253)])):
        for _ in range(3):
            with Wire(guarded.path, guarded.uid("reader")) as wire:
                wire.send(data, [tracer.reader] * 253)
    tracer.finish()
    wait_until(lambda: open_files(daemon) == idle, "all descriptors are closed again")
    served(guarded)


@pytest.mark.parametrize("count", [17, 64, 253])
def test_cve_2014_3635(guarded: Stage, count: int) -> None:
    """One descriptor more than a message may have, and many: the end of that connection alone."""
    tracer = Tracer()
    with Wire(guarded.path, guarded.uid("reader")) as wire:
        wire.send(message(CALL, 2, [*PARTS, Field(UNIX_FDS, count)]), [tracer.reader] * count)
        assert wire.ended()
    tracer.finish()
    served(guarded)


def test_cve_2014_3636(guarded: Stage) -> None:
    """Descriptors that come piece by piece with a message that is never whole: they are bounded, and given back."""
    tracer = Tracer()
    data = message(CALL, 2, [*PARTS, Field(UNIX_FDS, 16)])
    held = []
    for _ in range(40):
        wire = Wire(guarded.path, guarded.uid("owner"))
        held.append(wire)
        with contextlib.suppress(Closed):
            for at in range(0, 80, 5):
                wire.send(data[at : at + 5], [tracer.reader] * 5)
    served(guarded)
    for wire in held:
        wire.close()
    tracer.finish()
    served(guarded)


def test_cve_2014_3638(guarded: Stage) -> None:
    """Calls that nobody answers are counted: too many are refused, and others are served meanwhile."""
    with Wire(guarded.bus.path) as silent, Wire(guarded.path, guarded.uid("admin")) as caller:
        silent.send(request_name(2, "org.example.Silent"))
        silent.answer(2)
        for start in range(2, 9002, 100):
            caller.send(b"".join(call(n, "org.example.Silent", "Wait") for n in range(start, start + 100)))
        served(guarded)
        assert error_of(caller.answer(9001)) == "org.freedesktop.DBus.Error.LimitsExceeded"


def test_cve_2014_3639(guarded: Stage) -> None:
    """Connections that never authenticate use up their own user's share, no other's.

    A share below 64: dbus-daemon itself takes nobody in while so many have not said Hello (max_incomplete_connections).
    """
    assert guarded.daemon is not None
    with contextlib.ExitStack() as held:
        for _ in range(100):
            wire = held.enter_context(Wire(guarded.path, guarded.uid("owner"), hello=False))
            with contextlib.suppress(BrokenPipeError):
                wire.sock.send(b"\0AUTH")
        event = guarded.daemon.wait_for("connection_denied", lambda event: event["uid"] == guarded.uid("owner"))
        assert event["cause"] == "limit"
        served(guarded)


def outcome(place: Stage, data: bytes, fds: int) -> str:
    """What comes of a call of admin's: "ended", the name of an error, or "answered"."""
    files = [os.memfd_create("file") for _ in range(fds)]
    try:
        with Wire(place.path, place.uid("admin")) as wire:
            wire.send(data, files)
            return error_of(wire.answer(2)) or "answered"
    except Closed:
        return "ended"
    finally:
        for fd in files:
            os.close(fd)


CVE_2022: Final = {
    "CVE-2022-42010, brackets that cross": (
        message(CALL, 2, [*PARTS, Field(SIGNATURE, "a({ss)}")], value("u", 0, "<") + bytes(4)),
        0,
    ),
    "CVE-2022-42010, a bracket too few": (message(CALL, 2, [*PARTS, Field(SIGNATURE, "a(s")], value("u", 0, "<")), 0),
    "CVE-2022-42011, an array of halves": (
        message(CALL, 2, [*PARTS, Field(SIGNATURE, "au")], value("u", 6, "<") + bytes(6)),
        0,
    ),
    "CVE-2022-42012, a file of the other byte order": (
        message(CALL, 2, [*PARTS, Field(SIGNATURE, "h"), Field(UNIX_FDS, 1)], value("u", 0x01000000, ">"), order=">"),
        1,
    ),
    "CVE-2022-42012, a file that is not there": (
        message(CALL, 2, [*PARTS, Field(SIGNATURE, "ah")], value("u", 4, ">") + value("u", 7, ">"), order=">"),
        0,
    ),
}


@pytest.mark.parametrize("case", CVE_2022)
def test_cve_2022_42010_42011_42012(ways: dict[Way, Stage], case: str) -> None:
    """What comes of it is what comes of it on the bus itself, which goes on."""
    data, fds = CVE_2022[case]
    direct = outcome(ways["direct"], data, fds)
    assert outcome(ways["client"], data, fds) == direct
    served(ways["client"])


def test_dbus_broker_462_a_user_that_is_not_there(tmp_path: Path) -> None:
    """A policy for a user whom nobody knows was one for everybody. Here the whole file is refused."""
    file = tmp_path / "sockguard.toml"
    file.write_text(
        f'[proxy.bus]\nlisten = "{tmp_path}/a"\nbackend = "{tmp_path}/b"\nprotocol = "dbus"\n'
        'allow = [{ users = ["nobody-of-that-name"], dbus = [{ own = "org.example.App" }] }]\n'
    )
    done = sockguard("check", "--config", file)
    assert done.returncode == 2
    assert "nobody-of-that-name" in done.stderr
