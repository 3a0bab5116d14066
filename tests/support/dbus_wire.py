"""Messages as bytes, well formed or not, and a connection that sends them without asking what they are.

Reading is jeepney's: what a bus or a guard answers is well formed, and a test that meets something else fails.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from jeepney import Message, Parser  # type: ignore[import-untyped]

from tests.support.dbus import BUS, BUS_PATH

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
"""Message types, D-Bus specification, Message Format."""
NO_REPLY, NO_AUTO_START = 1, 2

PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL = 1, 2, 3, 4, 5
DESTINATION, SENDER, SIGNATURE, UNIX_FDS = 6, 7, 8, 9
"""Header fields, ibid."""

SIGNATURES: Final = {PATH: "o", REPLY_SERIAL: "u", SIGNATURE: "g", UNIX_FDS: "u"}
"""The type of a field; "s" where it does not stand here."""

SECONDS: Final = 20.0
MOST_FDS: Final = 253


class Field(NamedTuple):
    """A header field. ``signature``: None for the one that the specification gives it."""

    code: int
    value: str | int | bytes
    signature: str | None = None


def aligned(size: int, to: int) -> int:
    return -size % to


def value(signature: str, given: str | int | bytes, order: str) -> bytes:
    """Marshal one basic value. bytes are taken as they are."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, int):
        return struct.pack(order + {"y": "B", "b": "I", "u": "I", "h": "I", "i": "i", "t": "Q"}[signature], given)
    text = given.encode("utf-8", "surrogateescape")
    if signature == "g":
        return bytes([len(text)]) + text + b"\0"
    return struct.pack(order + "I", len(text)) + text + b"\0"


def fields_of(fields: Sequence[Field], order: str) -> bytes:
    """Marshal the array of header fields, without its length."""
    out = bytearray()
    for code, given, signature in fields:
        signature = signature or SIGNATURES.get(code, "s")
        out += bytes(aligned(len(out), 8))
        out += bytes([code, len(signature)]) + signature.encode() + b"\0"
        out += bytes(aligned(len(out), 1 if signature in "gy" else 8 if signature == "t" else 4))
        out += value(signature, given, order)
    return bytes(out)


def message(
    kind: int,
    serial: int,
    fields: Sequence[Field],
    body: bytes = b"",
    *,
    flags: int = 0,
    order: str = "<",
    version: int = 1,
    body_length: int | None = None,
) -> bytes:
    """A message of these parts. body_length: what the header says of it, if not the truth."""
    length = len(body) if body_length is None else body_length
    array = fields_of(fields, order)
    head = struct.pack(
        order + "cBBBIII", b"l" if order == "<" else b"B", kind, flags, version, length, serial, len(array)
    )
    return head + array + bytes(aligned(len(array), 8)) + body


def call(
    serial: int,
    name: str,
    member: str,
    *,
    interface: str | None = "org.example.Echo",
    path: str = "/org/example",
    text: str | None = None,
    more: Sequence[Field] = (),
    order: str = "<",
    flags: int = 0,
) -> bytes:
    """A method call with one string, or none, as its arguments."""
    fields = [Field(PATH, path), Field(MEMBER, member), Field(DESTINATION, name)]
    if interface is not None:
        fields.append(Field(INTERFACE, interface))
    body = b""
    if text is not None:
        fields.append(Field(SIGNATURE, "s"))
        body = value("s", text, order)
    return message(CALL, serial, [*fields, *more], body, order=order, flags=flags)


def to_bus(serial: int, member: str, text: str | None = None, **more: Any) -> bytes:
    """A call of the bus's own."""
    return call(serial, BUS, member, interface=BUS, path=BUS_PATH, text=text, **more)


def request_name(
    serial: int,
    name: str,
    *,
    member: str = "RequestName",
    interface: str | None = BUS,
    path: str = BUS_PATH,
    order: str = "<",
) -> bytes:
    """RequestName, or StartServiceByName, with no flags."""
    body = value("s", name, order)
    body += bytes(aligned(len(body), 4)) + value("u", 0, order)
    fields = [Field(PATH, path), Field(MEMBER, member), Field(DESTINATION, BUS), Field(SIGNATURE, "su")]
    if interface is not None:
        fields.append(Field(INTERFACE, interface))
    return message(CALL, serial, fields, body, order=order)


@contextlib.contextmanager
def becoming(uid: int) -> Iterator[None]:
    """Connect within as that user: SO_PEERCRED keeps what the effective ids were. The tests go on as root."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class Closed(Exception):
    """The other side has ended the connection."""


class Wire:
    """A connection to a bus, past authentication and Hello (unless ``hello`` is False: then nothing was sent yet)."""

    def __init__(self, path: Path, uid: int = 0, *, hello: bool = True) -> None:
        with becoming(uid):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(SECONDS)
            self.sock.connect(str(path))
        self.uid = uid
        self.name = ""
        self.fds: list[int] = []
        self._parser = Parser()
        if hello:
            self.authenticate()
            self.send(to_bus(1, "Hello"))
            self.name = str(self.answer(1).body[0])

    def authenticate(self) -> None:
        self.sock.sendall(b"\0AUTH EXTERNAL " + str(self.uid).encode().hex().encode() + b"\r\n")
        assert self.line().startswith(b"OK ")
        self.sock.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        assert self.line() == b"AGREE_UNIX_FD"
        self.sock.sendall(b"BEGIN\r\n")

    def line(self) -> bytes:
        """A line of the authentication protocol. Raises Closed."""
        found = b""
        while not found.endswith(b"\r\n"):
            byte = self.sock.recv(1)
            if not byte:
                raise Closed(found)
            found += byte
        return found[:-2]

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Raises Closed if nobody reads any more."""
        try:
            sent = socket.send_fds(self.sock, [data], fds) if fds else 0
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from None

    def receive(self, seconds: float = SECONDS) -> Message:
        """The next message; its descriptors are added to ``fds``. Raises Closed, or TimeoutError."""
        self.sock.settimeout(seconds)
        while True:
            found = self._parser.get_next_message()
            if found is not None:
                return found
            try:
                data, fds, flags, _ = socket.recv_fds(self.sock, 1 << 16, MOST_FDS)
            except ConnectionResetError as error:
                raise Closed(str(error)) from None
            assert not flags & socket.MSG_CTRUNC
            self.fds += fds
            if not data:
                raise Closed("end")
            # Descriptors stay with us: no test has jeepney look into a body for one.
            self._parser.add_data(data)

    def answer(self, serial: int, seconds: float = SECONDS) -> Message:
        """The reply to the call of that serial; what comes before it is passed over. Raises as ``receive``."""
        while True:
            found = self.receive(seconds)
            if found.header.fields.get(REPLY_SERIAL) == serial:
                return found

    def reply(self) -> Message:
        """The next reply to whatever call. Raises as ``receive``."""
        while True:
            found = self.receive()
            if REPLY_SERIAL in found.header.fields:
                return found

    def ended(self) -> bool:
        """True once the other side closes; False if it answers a ping instead."""
        try:
            self.send(to_bus(0x7777, "GetId"))
            self.answer(0x7777)
        except Closed:
            return True
        return False

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def error_of(found: Message) -> str:
    """The name of an error, or "" for any other message."""
    return str(found.header.fields.get(ERROR_NAME, ""))
