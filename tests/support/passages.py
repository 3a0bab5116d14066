"""Connections through one daemon, with a proxy for each protocol; a test holds both of their ends."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.daemon import Daemon
from tests.support.dbus import dbus_daemon
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    INTERFACE,
    MEMBER,
    NO_REPLY,
    PATH,
    REPLY_SERIAL,
    RETURN,
    SIGNATURE,
    Field,
    Wire,
    call,
    message,
    request_name,
    to_bus,
)
from tests.support.http_services import OK
from tests.support.http_stage import HEAD, ask, until
from tests.support.identities import open_folder
from tests.support.open_to_all import open_to_all
from tests.support.servers import private_folder

SECONDS: Final = 60.0
"""No read of a test waits longer."""

MEGABYTE: Final = 1 << 20
LONG: Final = 3 * MEGABYTE + 1
ARRAY: Final = 300_000
"""Bytes in the body of a message on the bus."""

STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
KINDS: Final = {"stream": STREAM, "refusing": STREAM, "seqpacket": SEQPACKET, "http": STREAM}
"""Proxies whose service is a socket of the test's, and the type of that."""

KEYS: Final = {
    "stream": "",
    "refusing": 'fds = "refuse"',
    "seqpacket": 'protocol = "seqpacket"',
    "http": 'protocol = "http"',
    "dbus": 'protocol = "dbus"',
}
"""Every proxy, and its keys in the file."""

TO_SERVICE, TO_CLIENT = "to-service", "to-client"
NAME: Final = "org.example.Passage"
"""Of the service on the bus."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One way through a connection.

    sender    is to send ``sent``, in which ``meant`` is what arrives
    receive   gives what has arrived, once it is as long as that
    go_on     has each end hear from the other once more
    """

    sender: socket.socket
    sent: bytes
    meant: bytes
    receive: Callable[[], bytes]
    go_on: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """The daemon, which listens on folder/NAME for each proxy; ``services``: listeners by the name of the proxy."""

    folder: Path
    daemon: Daemon
    services: dict[str, socket.socket]

    @contextlib.contextmanager
    def passage(self, proxy: str, direction: str) -> Iterator[Passage]:
        """One way through a new connection, which must end well by the guard's word."""
        with ExitStack() as made:
            if proxy == "dbus":
                ends = made.enter_context(self.wires())
                yield _call(*ends) if direction == TO_SERVICE else _reply(*ends)
            elif proxy == "http":
                head = ("POST /up", f"Content-Length: {LONG}") if direction == TO_SERVICE else ("GET /down",)
                client, service = made.enter_context(self.ends(proxy, *head))
                yield _upload(client, service) if direction == TO_SERVICE else _download(client, service)
            else:
                client, service = made.enter_context(self.ends(proxy))
                yield _plain(client, service) if direction == TO_SERVICE else _plain(service, client)

    @contextlib.contextmanager
    def ends(self, proxy: str, request: str = "", *fields: str) -> Iterator[tuple[socket.socket, socket.socket]]:
        """The client's end of a new connection, and the service's; it must end well by the guard's word.

        request, fields: what the client asks over HTTP before the service's end is waited for.
        """
        with self._ending_well(1), socket.socket(socket.AF_UNIX, KINDS[proxy]) as client:
            client.settimeout(SECONDS)
            client.connect(str(self.folder / proxy))
            if request:
                ask(client, request, *fields)
            with self.services[proxy].accept()[0] as service:
                service.settimeout(SECONDS)
                yield client, service

    @contextlib.contextmanager
    def wires(self) -> Iterator[tuple[Wire, Wire]]:
        """A client on the bus, and a service that owns NAME, each through the guard; both must end well."""
        path = self.folder / "dbus"
        with self._ending_well(2), Wire(path) as client, Wire(path) as service:
            service.send(request_name(2, NAME))
            service.answer(2)
            yield client, service

    @contextlib.contextmanager
    def _ending_well(self, count: int) -> Iterator[None]:
        """Within, so many connections are made; after it, the guard has told of the end of each, "closed"."""
        last = max((event["connection"] for event in self.daemon.events("connection_admitted")), default=0)
        yield
        for number in range(last + 1, last + 1 + count):
            assert self._outcome(number) == "closed"

    def _outcome(self, number: int) -> str:
        closed = self.daemon.wait_for("connection_closed", lambda event: event["connection"] == number)
        return str(closed["outcome"])


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """The daemon in front of a real bus, and of listeners of the test's own."""
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        private = private_folder(folder, 0)
        made.enter_context(dbus_daemon(private / "bus"))
        services = {}
        for name, kind in KINDS.items():
            services[name] = made.enter_context(socket.socket(socket.AF_UNIX, kind))
            services[name].settimeout(SECONDS)
            services[name].bind(str(private / name))
            (private / name).chmod(0o666)
            services[name].listen()
        backends = {name: private / ("bus" if name == "dbus" else name) for name in KEYS}
        proxies = {name: (backends[name], keys) for name, keys in KEYS.items()}
        yield Stage(folder, made.enter_context(open_to_all(folder, proxies)), services)


def read(sock: socket.socket, length: int) -> bytes:
    """That many bytes, or fewer if they end before; of records, whole ones."""
    parts, missing = [], length
    while missing and (data := sock.recv(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _hear(sender: socket.socket, receiver: socket.socket) -> None:
    sender.sendall(b"go on")
    assert receiver.recv(LONG) == b"go on"


def _plain(sender: socket.socket, receiver: socket.socket) -> Passage:
    def go_on() -> None:
        _hear(sender, receiver)
        _hear(receiver, sender)

    data = os.urandom(LONG)
    return Passage(sender, data, data, lambda: read(receiver, LONG), go_on)


def _once_more(client: socket.socket, service: socket.socket) -> None:
    """A whole request and its answer."""
    ask(client, "GET /more")
    assert until(service, b"\r\n\r\n").startswith(b"GET /more ")
    service.sendall(OK)
    assert until(client, b"ok\n").startswith(HEAD)


def _body(sock: socket.socket) -> bytes:
    """What follows the head, LONG bytes."""
    _, _, body = until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")
    return body + read(sock, LONG - len(body))


def _upload(client: socket.socket, service: socket.socket) -> Passage:
    def go_on() -> None:
        service.sendall(OK)
        assert until(client, b"ok\n").startswith(HEAD)
        _once_more(client, service)

    data = os.urandom(LONG)
    return Passage(client, data, data, lambda: _body(service), go_on)


def _download(client: socket.socket, service: socket.socket) -> Passage:
    until(service, b"\r\n\r\n")
    service.sendall(HEAD + f"Content-Length: {LONG}\r\n\r\n".encode())
    data = os.urandom(LONG)
    return Passage(service, data, data, lambda: _body(client), lambda: _once_more(client, service))


def _array(data: bytes) -> bytes:
    """An array of bytes, D-Bus specification, Marshalling."""
    return struct.pack("<I", len(data)) + data


def _go_on_bus(*wires: Wire) -> Callable[[], None]:
    def go_on() -> None:
        for wire in wires:
            wire.send(to_bus(1000, "GetId"))
            wire.answer(1000)

    return go_on


def _call(client: Wire, service: Wire) -> Passage:
    """A method call with a long body."""

    def receive() -> bytes:
        while (found := service.receive()).header.fields.get(MEMBER) != "Take":
            pass
        return bytes(found.body[0])

    data = os.urandom(ARRAY)
    fields = [Field(PATH, "/"), Field(INTERFACE, NAME), Field(MEMBER, "Take"), Field(DESTINATION, NAME)]
    sent = message(CALL, 3, [*fields, Field(SIGNATURE, "ay")], _array(data), flags=NO_REPLY)
    return Passage(client.sock, sent, data, receive, _go_on_bus(client, service))


def _reply(client: Wire, service: Wire) -> Passage:
    """The reply to a call, with a long body."""
    client.send(call(3, NAME, "Give", interface=NAME))
    while (found := service.receive()).header.fields.get(MEMBER) != "Give":
        pass
    data = os.urandom(ARRAY)
    fields = [Field(REPLY_SERIAL, found.header.serial), Field(DESTINATION, client.name), Field(SIGNATURE, "ay")]
    sent = message(RETURN, 3, fields, _array(data))
    return Passage(service.sock, sent, data, lambda: bytes(client.answer(3).body[0]), _go_on_bus(client, service))
