"""What stands in for a message bus where descriptors are passed whose close hangs: a real bus would hang in it itself.

It answers every call, with nothing, and takes no descriptor: what is read without room for one is not installed.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jeepney import Message, MessageFlag, MessageType, Parser  # type: ignore[import-untyped]

from tests.support.dbus import BUS
from tests.support.dbus_wire import MEMBER, MOST_FDS, REPLY_SERIAL, RETURN, SENDER, SIGNATURE, Field, message, value
from tests.support.services import serving

ANSWERS: Final = {"AUTH": f"OK {'0' * 32}", "NEGOTIATE_UNIX_FD": "AGREE_UNIX_FD"}
"""D-Bus specification, Authentication Protocol."""


def _authenticate(sock: socket.socket) -> None:
    line = b""
    while line != b"BEGIN\r\n":
        line = b""
        while not line.endswith(b"\r\n"):
            byte = sock.recv(1)
            if not byte:
                return
            line += byte.strip(b"\0")
        answer = ANSWERS.get(line.split()[0].decode())
        if answer:
            sock.sendall(answer.encode() + b"\r\n")


def _reply(serial: int, call: Message) -> bytes:
    fields = [Field(REPLY_SERIAL, call.header.serial), Field(SENDER, BUS)]
    if call.header.fields[MEMBER] != "Hello":
        return message(RETURN, serial, fields)
    return message(RETURN, serial, [*fields, Field(SIGNATURE, "s")], value("s", ":1.1", "<"))


def _serve(sock: socket.socket) -> None:
    _authenticate(sock)
    parser = Parser()
    serial = 0
    while data := sock.recv(1 << 16):
        parser.add_data(data)
        parser.fds = [-1] * MOST_FDS  # it wants as many as a header says, and nobody looks at one
        while (found := parser.get_next_message()) is not None:
            header = found.header
            if header.message_type == MessageType.method_call and not header.flags & MessageFlag.no_reply_expected:
                serial += 1
                sock.sendall(_reply(serial, found))


@contextlib.contextmanager
def stand_in_bus(path: Path) -> Iterator[None]:
    with serving(path, _serve):
        yield
