"""``protocol = "seqpacket"`` from end to end: records arrive as they were sent, and the socket types have to fit."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockguard.privsep.channel import close_all
from tests.support.daemon import Daemon, running
from tests.support.identities import open_folder
from tests.support.services import echo, serving

SEQPACKET = socket.SOCK_SEQPACKET
LONG = 1 << 22

CONFIG = """
[daemon]
relays = 1
[proxy.records]
listen = "{folder}/records"
backend = "{folder}/private"
protocol = "seqpacket"
allow = [{{ users = ["*"] }}]
[proxy.no-fds]
listen = "{folder}/no-fds"
backend = "{folder}/private"
protocol = "seqpacket"
fds = "refuse"
allow = [{{ users = ["*"] }}]
[proxy.misfit]
listen = "{folder}/misfit"
backend = "{folder}/stream"
protocol = "seqpacket"
connect_timeout = "1s"
allow = [{{ users = ["*"] }}]
"""


def serve(sock: socket.socket) -> None:
    """Send back each record with its fds, the empty ones too; "bye" asks for a close, "leave" for one with a record
    unread (it waits for that record)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONG)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # tells an empty record from the end
    while True:
        data, ancillary, _, _ = sock.recvmsg(LONG, socket.CMSG_SPACE(1100))
        if not ancillary:
            return
        rights = [one for one in ancillary if one[1] == socket.SCM_RIGHTS]
        sock.sendmsg([data], rights)
        for _, _, fds in rights:
            close_all(memoryview(fds).cast("i"))
        if data == b"bye":
            return
        if data == b"leave":
            sock.recv(1, socket.MSG_PEEK)
            return


class Case:
    """The daemon, its sockets' folder, and the number of the connection that was made last."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.number = 0

    def connect(self, proxy: str) -> socket.socket:
        """A connection that is known by its number: what is still told of one before it is not mistaken for it."""
        sock = socket.socket(socket.AF_UNIX, SEQPACKET)
        sock.settimeout(20)
        sock.connect(str(self.folder / proxy))
        admitted = self.daemon.wait_for("connection_admitted", lambda event: event["connection"] > self.number)
        self.number = admitted["connection"]
        return sock

    def closed(self) -> dict[str, Any]:
        """The end of the connection that was made last."""
        return self.daemon.wait_for("connection_closed", lambda event: event["connection"] == self.number)


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    with open_folder() as folder:
        config = folder / "sockguard.toml"
        config.write_text(CONFIG.format(folder=folder))
        with (
            serving(folder / "private", serve, kind=SEQPACKET),
            serving(folder / "stream", echo),
            running(config, *[folder / name for name in ("records", "no-fds", "misfit")]) as daemon,
        ):
            yield Case(daemon, folder)


def test_records_keep_their_boundaries(case: Case) -> None:
    """Of any length, none is joined, cut or lost, both ways; the event counts the bytes; each end has its own time."""
    sizes = [0, 1, 0, 2, 4096, 65_535, 65_536, 65_537, 200_000]
    with case.connect("records") as client:
        for size in sizes:
            data = os.urandom(size)
            client.send(data)
            assert client.recv(LONG) == data
        for size in sizes[:6]:  # as they queue up
            client.send(b"x" * size)
        client.shutdown(socket.SHUT_WR)
        assert [len(client.recv(LONG)) for _ in range(6)] == sizes[:6]
        assert client.recv(LONG) == b""
    total = sum(sizes) + sum(sizes[:6])
    event = case.closed()
    assert (event["bytes_from_client"], event["bytes_from_backend"], event["outcome"]) == (total, total, "closed")


def test_records_larger_than_a_buffer_at_first(case: Case) -> None:
    """A client and a service that raised their SO_SNDBUF are followed."""
    with case.connect("records") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONG)
        size = min(client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 64, 2_000_000)
        data = os.urandom(1000) * (size // 1000)
        client.send(data)
        assert client.recv(LONG) == data


def test_fds_come_with_their_record_and_back(case: Case) -> None:
    """Also with an empty record; what was passed is what arrives."""
    reader, writer = os.pipe()
    with case.connect("records") as client:
        for data, count in ((b"", 1), (b"x" * 70_000, 3), (b"", 0), (b"y", 253)):
            socket.send_fds(client, [data], [writer] * count)
            got, fds, flags, _ = socket.recv_fds(client, LONG, 253)
            assert (got, len(fds), flags & socket.MSG_CTRUNC) == (data, count, 0)
            assert {os.fstat(fd).st_ino for fd in fds} <= {os.fstat(writer).st_ino}
            close_all(fds)
    assert case.closed()["outcome"] == "closed"
    os.close(writer)
    assert os.read(reader, 1) == b""  # the end of the pipe: no copy of the other end is left anywhere
    os.close(reader)


def test_refused_fds(case: Case) -> None:
    """With fds = "refuse" no fd gets through: the kernel refuses it (Linux 6.16), else the connection ends."""
    with case.connect("no-fds") as client:
        client.send(b"plain")
        assert client.recv(100) == b"plain"
        try:
            socket.send_fds(client, [b""], [0])
        except PermissionError:
            return
        assert client.recv(100) == b""
        assert case.closed()["outcome"] == "fds_refused"


def test_the_service_closes(case: Case) -> None:
    """What it had sent arrives, then the end; a close with records unread is an outcome of its own."""
    with case.connect("records") as client:
        client.send(b"bye")
        assert client.recv(100) == b"bye"
        assert client.recv(100) == b""
        assert case.closed()["outcome"] == "closed"
    with case.connect("records") as client:
        client.send(b"leave")
        assert client.recv(100) == b"leave"
        client.send(b"unread")
        assert case.closed()["outcome"] == "backend_reset"
        assert client.recv(100) == b""


def test_socket_types_have_to_fit(case: Case) -> None:
    """A stream client cannot connect to records, and a service of streams behind a proxy of records is unavailable."""
    with socket.socket(socket.AF_UNIX) as stream, pytest.raises(OSError, match="wrong type"):
        stream.connect(str(case.folder / "records"))
    with case.connect("misfit") as client:
        assert client.recv(100) == b""
    event = case.closed()
    assert event["outcome"] == "backend_unavailable"
    assert "wrong type" in event["reason"]


ONE = """
[proxy.one]
listen = "{listen}"
backend = "{folder}/private"
protocol = "{protocol}"
allow = [{{ users = ["*"] }}]
"""


def refused(folder: Path, listen: str, protocol: str, **how: Any) -> str:
    """What the daemon says that must not start with this listen and protocol."""
    config = folder / "sockguard.toml"
    config.write_text(ONE.format(folder=folder, listen=listen, protocol=protocol))
    daemon = Daemon(config, **how)
    try:
        assert daemon.process.wait(20) == 1
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.stop()
    return daemon.stderr()


@pytest.mark.parametrize(("kind", "protocol"), [(SEQPACKET, "stream"), (socket.SOCK_STREAM, "seqpacket")])
def test_a_live_listener_of_the_other_type_keeps_its_path(folder: Path, kind: int, protocol: str) -> None:
    """Whoever listens there goes on, though connecting to find out ends in EPROTOTYPE."""
    path = folder / "public"
    with socket.socket(socket.AF_UNIX, kind) as live, socket.socket(socket.AF_UNIX, kind) as client:
        live.bind(str(path))
        live.listen()
        assert f"proxy.one.listen: {path}: another process listens there" in refused(folder, str(path), protocol)
        client.connect(str(path))


@pytest.mark.parametrize(
    ("kind", "protocol", "unit"),
    [(SEQPACKET, "stream", "ListenStream="), (socket.SOCK_STREAM, "seqpacket", "ListenSequentialPacket=")],
)
def test_an_adopted_socket_has_to_be_of_the_type(folder: Path, kind: int, protocol: str, unit: str) -> None:
    """A socket of systemd's that does not fit is refused at the start, with the line of the unit that would."""
    start = folder / "start"
    with socket.socket(socket.AF_UNIX, kind) as passed:
        passed.bind(str(folder / "public"))
        passed.listen()
        passed.set_inheritable(True)
        number = passed.fileno()
        start.write_text(
            "#!/bin/bash -e\nexport LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web\n"
            f'exec {sys.executable} "$@" 3<&{number}\n'
        )
        start.chmod(0o755)
        said = refused(folder, "fd:web", protocol, executable=str(start), pass_fds=[number])
    assert f"proxy.one.listen: fd:web: not a UNIX socket of this proxy's type: use {unit}" in said
