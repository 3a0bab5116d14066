"""What the service manager is told: datagrams of whole assignments, in which no text can begin another one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockguard.privsep import notification
from sockguard.privsep.notification import MAX_STATUS


@pytest.fixture
def manager(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        yield sock


def told(manager: socket.socket) -> list[str]:
    """The assignments of the next datagram."""
    return manager.recv(65536).decode().split("\n")


def test_states(manager: socket.socket) -> None:
    notification.tell("ready", "Guarding 2 sockets")
    assert told(manager) == ["READY=1", "STATUS=Guarding 2 sockets"]
    notification.tell("stopping", "")
    assert told(manager) == ["STOPPING=1"]
    notification.tell("reloading", "")
    reloading, moment = told(manager)
    assert reloading == "RELOADING=1"
    assert moment.removeprefix("MONOTONIC_USEC=").isdecimal()
    notification.tell("", "as before")
    assert told(manager) == ["STATUS=as before"]
    notification.tell("", "")
    with pytest.raises(BlockingIOError):
        manager.recv(1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0", "\x85", "\u2028", "\x1b[2J"])
def test_a_status_is_one_line(manager: socket.socket, end: str) -> None:
    """Whatever characters stand in it, it begins no other assignment."""
    notification.tell("", f"well{end}WATCHDOG=trigger")
    (status,) = told(manager)
    assert status.isprintable()
    assert status.startswith("STATUS=well ")


def test_a_status_is_bounded_and_utf_8(manager: socket.socket) -> None:
    notification.tell("", "é" * 100_000)
    assert told(manager) == ["STATUS=" + "é" * (MAX_STATUS - 1) + "…"]
    notification.tell("", "é" * MAX_STATUS)
    assert told(manager) == ["STATUS=" + "é" * MAX_STATUS]
    notification.tell("", "a surrogate \udcff")
    assert told(manager) == ["STATUS=a surrogate  "]


def test_sockets_and_the_watchdog(manager: socket.socket) -> None:
    reader, writer = os.pipe()
    notification.store("sockguard/p", reader)
    data, fds, _, _ = socket.recv_fds(manager, 100, 2)
    assert data == b"FDSTORE=1\nFDNAME=sockguard/p"
    assert len(fds) == 1
    for fd in (reader, writer, *fds):
        os.close(fd)
    notification.forget("sockguard/p")
    assert told(manager) == ["FDSTOREREMOVE=1", "FDNAME=sockguard/p"]
    notification.feed_watchdog()
    assert told(manager) == ["WATCHDOG=1"]


def test_nobody_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service manager, one that is gone, or an address of another kind: nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notification.tell("ready", "x")
    for address in (str(folder / "none"), "@none", "vsock:2:1"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notification.tell("ready", "x")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_whose_watchdog(environ: dict[str, str], seconds: float | None) -> None:
    """The variables are for one process, and are gone afterwards."""
    assert notification.watchdog_seconds(environ) == seconds
    assert environ == {}
