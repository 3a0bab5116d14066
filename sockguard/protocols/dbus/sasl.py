"""The phase before the first message, on both sides: we are the server of the client and a client of the bus.

D-Bus specification, Authentication Protocol. Only EXTERNAL, for only the kernel's word on who has connected counts.
Lines are taken by their exact grammar, one space between words: nothing that one side says reaches the other, so no
two readers of a line can differ (CVE-2018-6560 was a proxy that read white space in AUTH as its bus did not).
"""

from __future__ import annotations

import re
from typing import Final

from sockguard.protocols.dbus.signature import Malformed

MAX_AUTH: Final = 16 * 1024
"""Bytes that one side may send in this phase; dbus-daemon's limit too (dbus-auth.c)."""

MAX_REJECTED: Final = 6
"""Times that a client is rejected before it is given up; as dbus-daemon does."""

_REJECTED: Final = b"REJECTED EXTERNAL\r\n"
_line: Final = re.compile(rb"[ -~]*").fullmatch
_guid: Final = re.compile(rb"OK ([0-9A-Fa-f]{32})").fullmatch


class Refused(ValueError):
    """The bus does not let us in, or answers what it should not. The text may hold the bus's words, made printable."""


class ServerSide:
    """Faces the client. uid: of the client, by the kernel; forward_fds: whether passing fds may be agreed at all.

    asks_fds  the client asks for passing fds, and waits for the bus's answer to the same
    fds       whether it was agreed with the client to pass fds
    """

    __slots__ = (
        "_asked",
        "_authenticated",
        "_forward_fds",
        "_greeted",
        "_guid",
        "_may_agree",
        "_rejected",
        "_taken",
        "_uid",
        "asks_fds",
        "fds",
    )

    def __init__(self, uid: int, forward_fds: bool) -> None:
        self._uid = str(uid).encode().hex().encode()
        self._forward_fds = forward_fds
        self._guid = ""
        self._may_agree: bool | None = None if forward_fds else False
        self.fds = self.asks_fds = False
        self._greeted = False
        self._asked = False  # EXTERNAL without an argument: the client owes us DATA
        self._authenticated = False
        self._rejected = 0
        self._taken = 0

    def ready(self, guid: str, fds: bool | None) -> None:
        """The bus has answered: its GUID, and whether it agreed to pass fds if it was asked. What was held can be fed
        again.
        """
        self._guid = guid
        if self._forward_fds:
            self._may_agree = fds

    def feed(self, data: bytes) -> tuple[int, bytes, bool]:
        """Take the lines at the start of all that has come and was not used.

        Return how many bytes are used, what to send to the client, and whether it has said BEGIN: what is not used
        then belongs to messages. A line that needs the bus's answer is not used before ``ready`` has told it, nor any
        behind it. Raises Malformed, which ends the connection.
        """
        reply = bytearray()
        at = 0
        if not self._greeted and data:
            if data[0]:
                raise Malformed("does not begin with a NUL byte")
            self._greeted = True
            at = 1
        room = MAX_AUTH - self._taken
        begun = False
        while not begun:
            stop = data.find(b"\r\n", at, room)
            if stop < 0:
                if len(data) >= room:
                    raise Malformed("authentication takes too many bytes")
                break
            line = data[at:stop]
            if not _line(line):
                raise Malformed("a control character in a line")
            if line == b"BEGIN":
                if not self._authenticated:
                    raise Malformed("BEGIN before it was authenticated")
                begun = True
            else:
                answer = self._answer(line)
                if answer is None:
                    break
                reply += answer
            at = stop + 2
        self._taken += at
        return at, bytes(reply), begun

    def _answer(self, line: bytes) -> bytes | None:
        """The answer to a line other than BEGIN; None when it has to wait for ``ready``."""
        command, _, rest = line.partition(b" ")
        if command == b"ERROR" or line == b"CANCEL":
            if line == b"CANCEL" and not (self._asked or self._authenticated):
                return b"ERROR\r\n"
            return self._reject()
        if self._authenticated:
            if line != b"NEGOTIATE_UNIX_FD":
                return b"ERROR\r\n"
            self.asks_fds = self._may_agree is None
            if self._may_agree is None:
                return None
            self.fds = self._may_agree
            return b"AGREE_UNIX_FD\r\n" if self.fds else b"ERROR\r\n"
        if self._asked:
            # An empty answer is written with a space behind DATA by GLib, without one by systemd.
            return self._identify(rest) if command == b"DATA" else b"ERROR\r\n"
        if command != b"AUTH":
            return b"ERROR\r\n"
        mechanism, space, identity = rest.partition(b" ")
        if mechanism != b"EXTERNAL" or (space and not identity):
            return self._reject()
        if not space:
            self._asked = True
            return b"DATA\r\n"
        return self._identify(identity)

    def _identify(self, identity: bytes) -> bytes | None:
        """identity: hex of the decimal uid; empty for whom the kernel names."""
        if identity and identity.lower() != self._uid:
            return self._reject()
        if not self._guid:
            return None
        self._asked = False
        self._authenticated = True
        return f"OK {self._guid}\r\n".encode()

    def _reject(self) -> bytes:
        self._asked = self._authenticated = self.fds = False
        self._rejected += 1
        if self._rejected >= MAX_REJECTED:
            raise Malformed("rejected too often")
        return _REJECTED


class ClientSide:
    """Faces the bus. uid: that the bus sees.

    done   the bus has let us in and has answered all: BEGIN may be sent
    guid   of the bus, 32 hexadecimal digits; "" before it has said so
    fds    whether it agreed to pass fds; None before it has said so
    """

    __slots__ = ("_taken", "_uid", "done", "fds", "guid")

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._taken = 0
        self.done = False
        self.guid = ""
        self.fds: bool | None = None

    def greeting(self) -> bytes:
        """What to send first; all else has to wait until it is ``done``."""
        identity = str(self._uid).encode().hex()
        return f"\0AUTH EXTERNAL {identity}\r\n".encode()

    def negotiate(self) -> bytes:
        """What to send once the client asks for passing fds. Not before: what the bus agreed on with us, it sends."""
        self.done = False
        return b"NEGOTIATE_UNIX_FD\r\n"

    def feed(self, data: bytes) -> int:
        """Take the lines at the start of all that has come and was not used; return how many bytes are used.

        Raises Refused: for whatever is no answer to what was sent, and for anything that comes behind the answers.
        """
        at = 0
        room = MAX_AUTH - self._taken
        while not self.done:
            stop = data.find(b"\r\n", at, room)
            if stop < 0:
                if len(data) >= room:
                    raise Refused("the bus sends no end of a line")
                break
            self._take(data[at:stop])
            at = stop + 2
        if self.done and at < len(data):
            raise Refused("the bus sent more than it was asked for")
        self._taken += at
        return at

    def _take(self, line: bytes) -> None:
        if not self.guid:
            ok = _guid(line)
            if ok is None:
                raise Refused(f"the bus answered AUTH with {_printable(line)}")
            self.guid = ok[1].decode()
        elif line == b"AGREE_UNIX_FD":
            self.fds = True
        elif line == b"ERROR" or line.startswith(b"ERROR "):
            self.fds = False
        else:
            raise Refused(f"the bus answered NEGOTIATE_UNIX_FD with {_printable(line)}")
        self.done = True


def _printable(line: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in line[:200])
    return f'"{text}"'
