"""The parsers of D-Bus."""

from __future__ import annotations

from typing import Final

from sockguard.protocols.dbus import body, match_rule, wire
from sockguard.protocols.dbus.following import PATH
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.sasl import ClientSide, Refused, ServerSide
from sockguard.protocols.dbus.signature import Malformed, valid_signature
from tests.fuzz.target import Target
from tests.unit.protocols.dbus.scripted import APP, APP_OWNER, ME, Scene, rules

_MESSAGES: Final = (
    wire.method_call(5, "/org/example", "org.example.Thing", "Do", "org.example.Service", "s", b"\2\0\0\0hi\0"),
    wire.method_return(6, 5, ":1.2", ":1.1", "", b""),
    wire.error(7, 5, "org.example.Error", "no", ":1.2", "org.freedesktop.DBus"),
    wire.signal(8, "/", "org.example.Thing", "Done", "u", b"\1\0\0\0", ":1.1"),
)
_known: Final = wire.Headers(bound=64)


def _header(data: bytes) -> None:
    """One reader that remembers all that came before, and a new one: they must agree."""
    results: list[object] = []
    for headers in (_known, wire.Headers()):
        try:
            read = headers.read(memoryview(data), 0)
        except Malformed as error:
            results.append(str(error))
        else:
            results.append(read and (*(getattr(read[0], name) for name in read[0].__slots__), *read[1:]))
    assert results[0] == results[1], results
    if results[0] is not None and not isinstance(results[0], str):
        wire.sizes(data)


def _body(data: bytes) -> None:
    """A byte order, a signature, a NUL, a body; what is read is written as the same bytes."""
    signature, _, content = data[1:].partition(b"\0")
    endian = "<" if data[:1] == b"l" else ">"
    text = signature.decode("latin-1")
    values = body.read(text, content, endian)
    assert endian == ">" or body.pack(text, values) == content


def _server(data: bytes) -> None:
    """At once and byte by byte: the same replies, and the same begun."""
    whole, pieces = ServerSide(1000, True), ServerSide(1000, True)
    whole.ready("0" * 32, True)
    pieces.ready("0" * 32, True)
    waiting, replies, begun = b"", b"", False
    try:
        expected = whole.feed(data)
    except Malformed:
        expected = None
    try:
        for byte in data:
            waiting += bytes((byte,))
            used, reply, begun = pieces.feed(waiting)
            waiting = waiting[used:]
            replies += reply
            if begun:
                break
    except Malformed:
        assert expected is None
        raise
    assert expected is not None
    assert expected[1:] == (replies, begun)


def _client(data: bytes) -> None:
    """Answers of a bus, the first by itself."""
    side = ClientSide(1000)
    first, end, rest = data.partition(b"\n")
    side.feed(first + end)
    if side.done:
        side.negotiate()
        side.feed(rest)


def _inspector(data: bytes) -> None:
    """What a client sends behind Hello, one part whole and one byte by byte: the same reaches the bus, and nothing that
    is not allowed; nothing but the connection's end comes of what cannot be read.
    """
    reached = []
    for piece in (0, 1):
        scene = Scene(rules([{"destination": APP}, {"own": "org.example.Own"}]), piece=piece)
        scene.send(data)
        assert scene.play.outcome in (None, "malformed", "limit")
        called = [got.fields for got in scene.bus.seen if got.fields.kind == wire.METHOD_CALL]
        assert all(fields.destination in (APP, APP_OWNER, ME, BUS) for fields in called)
        reached.append(scene.reached())
    assert reached[0] == reached[1]


TARGETS: Final = {
    "dbus-header": Target(_header, (Malformed,), _MESSAGES),
    "dbus-body": Target(_body, (Malformed,), (b"ls\0\2\0\0\0hi\0", b"lasu\0\0\0\0\0\1\0\0\0", b"Bog\0\0\0\0\1/\0\0\0")),
    "dbus-signature": Target(valid_signature, (), (b"a{sv}", b"(a(ii)v)", b"aa")),
    "dbus-match-rule": Target(
        lambda data: match_rule.parse(data.decode("utf-8", "surrogateescape")),
        (Malformed,),
        (b"type='signal',arg0path='/a/',eavesdrop='true'", rb"arg0='a\',arg1=\''b'", b" member = x"),
    ),
    "dbus-server": Target(
        _server,
        (Malformed,),
        (
            b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\1",
            b"\0AUTH EXTERNAL\r\nDATA\r\nCANCEL\r\nAUTH\r\n",
        ),
    ),
    "dbus-inspector": Target(
        _inspector,
        (Malformed,),  # of the bus in the scene, which reads bodies too
        (
            wire.method_call(5, "/org/example", "org.example.Thing", "Do", APP, "s", b"\2\0\0\0hi\0") + _MESSAGES[0],
            wire.method_call(6, PATH, BUS, "AddMatch", BUS, "s", b"\x0d\0\0\0type='signal'\0") + _MESSAGES[3],
            wire.method_call(7, PATH, BUS, "RequestName", BUS, "su", b"\7\0\0\0org.App\0\0\0\0\0"),
        ),
    ),
    "dbus-client": Target(
        _client,
        (Refused,),
        (b"OK " + b"0" * 32 + b"\r\nAGREE_UNIX_FD\r\n", b"REJECTED x\r\n"),
    ),
}
