"""An inspector between a client that a test speaks for and a bus that follows a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sockguard.protocols.base import Json, RequestRule
from sockguard.protocols.dbus import body, wire
from sockguard.protocols.dbus.body import Value
from sockguard.protocols.dbus.inspector import DbusInspector
from sockguard.protocols.dbus.judge import DbusRules
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.rules import read_what
from sockguard.protocols.dbus.wire import Fields
from tests.unit.protocols.dbus.making import message, number, text
from tests.unit.protocols.playbook import Play

PIECES = (0, 1, 7)
"""Sizes of the pieces in which bytes are shown; 0: whole."""

PATH = "/org/freedesktop/DBus"
ME = ":1.7"
APP, APP_OWNER = "org.example.App", ":1.5"
SECRET, SECRET_OWNER = "org.example.Secret", ":1.6"
STRANGER = ":1.9"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"
LIMITS = "org.freedesktop.DBus.Error.LimitsExceeded"

Entries = Sequence[Mapping[str, object]]


def rules(allow: Entries | None = (), deny: Entries = ()) -> DbusRules:
    """One allow rule "a", everything when None; and a deny rule "d" where there are entries for it."""
    made = []
    if deny:
        made.append(RequestRule("d", True, read_what("dbus", list(deny), deny=True)))
    if allow is None:
        made.append(RequestRule("a", False, None))
    elif allow:
        what: list[Json] = read_what("dbus", list(allow), deny=False)
        made.append(RequestRule("a", False, what))
    return DbusRules(made)


class Got(NamedTuple):
    """A message that came out. values: the body where it is of simple types."""

    fields: Fields
    serial: int
    reply_to: int
    values: list[Value]

    @property
    def says(self) -> str:
        """The member, or the name of the error, or "" for a plain answer."""
        return self.fields.member or self.fields.error_name or ""


def parsed(data: bytes) -> list[Got]:
    """Whole messages."""
    found = []
    at = 0
    while at < len(data):
        length = wire.sizes(data[at : at + 16])[1]
        message = wire.read_message(data[at : at + length])
        fields = message.fields
        values = body.read(fields.signature, data[at + fields.length : at + length], fields.endian)
        found.append(Got(fields, message.serial, message.reply_serial, values))
        at += length
    return found


def arriving(
    kind: int,
    destination: str | None,
    sender: str,
    member: str = "Changed",
    *,
    serial: int = 70,
    reply_to: int = 0,
    flags: int = 0,
    fds: int = 0,
) -> bytes:
    """A message from another peer, as the bus passes it on."""
    fields = [text(7, "s", sender.encode())]
    if kind in (wire.METHOD_CALL, wire.SIGNAL):
        fields += [text(1, "o", b"/org/example/App"), text(2, "s", APP.encode()), text(3, "s", member.encode())]
    if destination is not None:
        fields.append(text(6, "s", destination.encode()))
    if reply_to:
        fields.append(number(5, reply_to))
    if fds:
        fields.append(number(9, fds))
    return message(kind, fields, serial=serial, flags=flags)


class Bus:
    """Stands for dbus-daemon, so that every byte can come by itself and an answer can be kept back or be an error.

    Real buses are in tests/integration. It knows owners of names and match rules, counts equal rules together as the
    real ones do, and sends what a test has it send. silent: members that it leaves unanswered.
    """

    def __init__(self, play: Play, owners: Mapping[str, str]) -> None:
        self.play = play
        self.owners = dict(owners)
        self.seen: list[Got] = []
        self.matches: list[str] = []
        self.silent: set[str] = set()
        self.errors: dict[str, str] = {}  # by member, or by member and first argument
        self.serial = 0
        self._taken = len(play.to_backend)

    def serve(self) -> None:
        """Take and answer what has come."""
        while self.play.outcome is None:
            data = self.play.to_backend[self._taken :]
            whole = 0
            while whole + 16 <= len(data) and whole + wire.sizes(data[whole : whole + 16])[1] <= len(data):
                whole += wire.sizes(data[whole : whole + 16])[1]
            if not whole:
                return
            self._taken += whole
            for got in parsed(data[:whole]):
                self.seen.append(got)
                if got.fields.destination == BUS and got.fields.kind == wire.METHOD_CALL:
                    self._answer(got)

    def _answer(self, got: Got) -> None:
        member = got.fields.member or ""
        if member in self.silent or self.play.outcome is not None:
            return
        first = str(got.values[0]) if got.values else ""
        error = self.errors.get(f"{member} {first}") or self.errors.get(member)
        if member == "RemoveMatch" and not error:
            if first in self.matches:
                self.matches.remove(first)
            else:
                error = "org.freedesktop.DBus.Error.MatchRuleNotFound"
        if member == "GetNameOwner" and first not in self.owners and not error:
            error = NO_OWNER
        if got.fields.flags & wire.NO_REPLY_EXPECTED:
            return
        if error:
            self.fail(got, error)
        elif member == "Hello":
            self.reply(got, "s", [ME])
        elif member == "AddMatch":
            self.matches.append(first)
            self.reply(got)
        elif member == "GetNameOwner":
            self.reply(got, "s", [self.owners[first]])
        elif member in ("ListNames", "ListActivatableNames"):
            self.reply(got, "as", [[BUS, ME, *self.owners, *sorted(set(self.owners.values()))]])
        elif member in ("RequestName", "ReleaseName", "StartServiceByName"):
            self.reply(got, "u", [1])
        elif member == "NameHasOwner":
            self.reply(got, "b", [first in self.owners])
        else:
            self.reply(got)

    def next(self) -> int:
        self.serial += 1
        return self.serial

    def reply(self, to: Got, signature: str = "", values: Sequence[Value] = (), sender: str = BUS) -> None:
        packed = body.pack(signature, values)
        self.play.backend(wire.method_return(self.next(), to.serial, ME, sender, signature, packed))

    def fail(self, to: Got, name: str, sender: str = BUS) -> None:
        self.play.backend(wire.error(self.next(), to.serial, name, "no", ME, sender))

    def signal(self, member: str, *values: str, destination: str | None = None) -> None:
        """Of the bus itself; all arguments are strings."""
        signature = "s" * len(values)
        data = body.pack(signature, values)
        self.play.backend(wire.signal(self.next(), PATH, BUS, member, signature, data, BUS, destination))

    def owner_changes(self, name: str, new: str) -> None:
        """Say so, whoever has asked for it."""
        old = self.owners.pop(name, "")
        if new:
            self.owners[name] = new
        self.signal("NameOwnerChanged", name, old, new)


class Scene:
    """A client that has been through Hello, unless ``hello`` says otherwise."""

    def __init__(
        self,
        given: DbusRules,
        *,
        piece: int = 0,
        enforce: bool = True,
        tell_allowed: bool = False,
        fds: bool = False,
        client_fds: bool | None = None,
        hello: bool = True,
        owners: Mapping[str, str] | None = None,
        made_by: type[DbusInspector] = DbusInspector,
    ) -> None:
        self.play = Play(made_by, given, piece=piece, enforce=enforce, tell_allowed=tell_allowed, forward_fds=fds)
        self.play.backend(b"OK " + b"a" * 32 + b"\r\n")
        negotiate = b"NEGOTIATE_UNIX_FD\r\n" if (fds if client_fds is None else client_fds) else b""
        self.play.client(b"\0AUTH EXTERNAL 31303030\r\n" + negotiate + b"BEGIN\r\n")
        if self.play.to_backend.endswith(b"NEGOTIATE_UNIX_FD\r\n"):
            self.play.backend(b"AGREE_UNIX_FD\r\n")
        known = {APP: APP_OWNER, SECRET: SECRET_OWNER} if owners is None else owners
        self.bus = Bus(self.play, known)
        self.serial = 0
        self._taken = len(self.play.to_client)
        if hello:
            self.ask("Hello")
            assert self.got()[0].values == [ME]
            self.bus.seen.clear()

    # What the client does

    def next(self) -> int:
        self.serial += 1
        return self.serial

    def send(self, data: bytes, fds: Sequence[str] = ()) -> None:
        self.play.client(data, fds)
        self.bus.serve()

    def call(
        self,
        destination: str | None = APP,
        member: str = "Do",
        *,
        path: str = "/org/example/App",
        interface: str | None = APP,
        signature: str = "",
        values: Sequence[Value] = (),
        flags: int = 0,
    ) -> int:
        """Give the serial."""
        serial = self.next()
        packed = body.pack(signature, values)
        self.send(wire.method_call(serial, path, interface, member, destination, signature, packed, flags))
        return serial

    def ask(self, member: str, *values: Value, interface: str | None = BUS, flags: int = 0) -> int:
        """A call to the bus itself."""
        signature = "".join("u" if isinstance(value, int) else "s" for value in values)
        return self.call(BUS, member, path=PATH, interface=interface, signature=signature, values=values, flags=flags)

    def answer(self, to: Got, destination: str | None = None) -> None:
        """The client answers a call that came to it."""
        self.send(wire.method_return(self.next(), to.serial, destination or to.fields.sender, None, "", b""))

    # What came of it

    def got(self) -> list[Got]:
        """What has come to the client since this was last asked."""
        data = self.play.to_client[self._taken :]
        self._taken += len(data)
        return parsed(data)

    def said(self) -> list[str]:
        return [got.says for got in self.got()]

    def reached(self) -> list[str]:
        """Members (or kinds, of replies) that came to the bus since this was last asked."""
        seen = [got.says for got in self.bus.seen]
        self.bus.seen.clear()
        return seen

    def told(self) -> list[str]:
        """Kind and request of each event since this was last asked."""
        found = [f"{audit.kind} {audit.request}" for audit in self.play.audits]
        self.play.audits.clear()
        return found

    def last(self, member: str) -> Got:
        """The last message of that name that came to the bus."""
        return [got for got in self.bus.seen if got.says == member][-1]

    def renew(self, given: DbusRules, *, enforce: bool = True) -> None:
        self.play.inspector.new_rules(given, enforce=enforce, tell_allowed=False)
        self.bus.serve()
