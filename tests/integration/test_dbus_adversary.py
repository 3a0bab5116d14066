"""Bytes that past proxies and buses were broken by, on a raw connection: the bus's own answer, and sockguard's.

Each case says what dbus-daemon does. Through sockguard the connection has to end where the bus would end it, and what
could be read in two ways ends there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.dbus import BUS, BUS_PATH, ECHO, OBJECT, SECRET
from tests.support.dbus_stage import GUARDED, People, Stage, Way, people, stages
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    ERROR,
    ERROR_NAME,
    INTERFACE,
    MEMBER,
    NO_REPLY,
    PATH,
    REPLY_SERIAL,
    RETURN,
    SENDER,
    SIGNAL,
    SIGNATURE,
    UNIX_FDS,
    Closed,
    Field,
    Wire,
    call,
    error_of,
    message,
    to_bus,
    value,
)
from tests.support.identities import open_folder

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
PARTS: Final = (Field(PATH, OBJECT), Field(MEMBER, "Echo"), Field(DESTINATION, ECHO), Field(INTERFACE, ECHO))

MALFORMED: Final = {
    "serial 0": message(CALL, 0, PARTS),
    "two destinations": message(CALL, 3, [*PARTS, Field(DESTINATION, SECRET)]),
    "two destinations, the other way round": message(CALL, 3, [Field(DESTINATION, SECRET), *PARTS]),
    "two interfaces": message(CALL, 3, [*PARTS, Field(INTERFACE, SECRET)]),
    "a path that is a string": message(CALL, 3, [Field(PATH, OBJECT, "s"), *PARTS[1:]]),
    "a member that is a signature": message(CALL, 3, [PARTS[0], Field(MEMBER, "s", "g"), *PARTS[2:]]),
    "a NUL in a member": message(CALL, 3, [PARTS[0], Field(MEMBER, "Ec\0ho"), *PARTS[2:]]),
    "a NUL in a destination": message(CALL, 3, [*PARTS[:2], Field(DESTINATION, f"{ECHO}\0x"), PARTS[3]]),
    "a string without its NUL": message(CALL, 3, [*PARTS[:3], Field(INTERFACE, b"\x03\0\0\0a.bX")]),
    "a path with an empty part": message(CALL, 3, [Field(PATH, "/org//example"), *PARTS[1:]]),
    "a path that ends in a slash": message(CALL, 3, [Field(PATH, "/org/"), *PARTS[1:]]),
    "a member with a dot": message(CALL, 3, [PARTS[0], Field(MEMBER, "E.cho"), *PARTS[2:]]),
    "an interface of one part": message(CALL, 3, [*PARTS[:3], Field(INTERFACE, "org")]),
    "a destination of one part": message(CALL, 3, [*PARTS[:2], Field(DESTINATION, "org"), PARTS[3]]),
    "text that is no UTF-8": message(CALL, 3, [PARTS[0], Field(MEMBER, "E\udcffcho"), *PARTS[2:]]),
    "type 0": message(0, 3, PARTS),
    "version 2": message(CALL, 3, PARTS, version=2),
    "version 0": message(CALL, 3, PARTS, version=0),
    "no member": message(CALL, 3, [PARTS[0], *PARTS[2:]]),
    "no path": message(CALL, 3, PARTS[1:]),
    "a signal without an interface": message(SIGNAL, 3, PARTS[:2]),
    "a return to nothing": message(RETURN, 3, [Field(DESTINATION, ECHO)]),
    "a reply to serial 0": message(RETURN, 3, [Field(DESTINATION, ECHO), Field(REPLY_SERIAL, 0)]),
    "an error without a name": message(ERROR, 3, [Field(DESTINATION, ECHO), Field(REPLY_SERIAL, 9)]),
    "an error with a bad name": message(
        ERROR, 3, [Field(DESTINATION, ECHO), Field(REPLY_SERIAL, 9), Field(ERROR_NAME, "no")]
    ),
    "more descriptors than came": message(CALL, 3, [*PARTS, Field(UNIX_FDS, 1)]),
    "field 0": message(CALL, 3, [*PARTS, Field(0, "x", "s")]),
    "a body longer than any": message(CALL, 3, PARTS, body_length=0x7FFFFFF0),
    "a body of 128 MiB": message(CALL, 3, PARTS, body_length=1 << 27),
    "a body without a signature": message(CALL, 3, PARTS, b"\1\0\0\0"),
    "a signature that is none": message(CALL, 3, [*PARTS, Field(SIGNATURE, "(")]),
    "a path of the local interface": message(
        SIGNAL, 3, [Field(PATH, "/org/freedesktop/DBus/Local"), Field(MEMBER, "Disconnected"), PARTS[3]]
    ),
    "the local interface": message(
        SIGNAL, 3, [PARTS[0], Field(MEMBER, "Disconnected"), Field(INTERFACE, "org.freedesktop.DBus.Local")]
    ),
    "an order that is neither": b"x" + message(CALL, 3, PARTS)[1:],
    # CVE-2022-42010 and its siblings: brackets, lengths and swapped orders that a length check alone lets by.
    "brackets that cross": message(CALL, 3, [*PARTS, Field(SIGNATURE, "a({)}")]),
    "an array of header fields too long": message(CALL, 3, PARTS)[:12] + b"\xff\xff\xff\x7f" + b"x" * 200,
    "padding that is not zero": message(CALL, 3, PARTS).replace(b"\3\1s\0\4\0\0\0Echo\0\0", b"\3\1s\0\4\0\0\0Echo\0x"),
}

TAKEN: Final = {
    "a type of the future": message(9, 3, PARTS),
    "a field of the future": message(CALL, 3, [*PARTS, Field(77, "x", "s")]),
    "a sender that it is not": message(CALL, 3, [*PARTS, Field(SENDER, BUS)]),
    "a call that says it is a reply": message(CALL, 3, [*PARTS, Field(REPLY_SERIAL, 1)]),
    "a return that nobody asked for": message(RETURN, 3, [Field(DESTINATION, ECHO), Field(REPLY_SERIAL, 9)]),
}


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who) as made:
        yield made


@pytest.fixture
def direct(ways: dict[Way, Stage]) -> Stage:
    return ways["direct"]


@pytest.fixture(params=GUARDED)
def guarded(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


def ends(place: Stage, name: str, data: bytes) -> bool:
    """Whether the connection ends at these bytes."""
    with Wire(place.path, place.uid(name)) as wire:
        try:
            wire.send(data)
        except Closed:
            return True
        return wire.ended()


@pytest.mark.parametrize("case", MALFORMED)
def test_the_bus_ends_at(direct: Stage, case: str) -> None:
    """What the next test expects of sockguard, dbus-daemon does."""
    assert ends(direct, "admin", MALFORMED[case])


@pytest.mark.parametrize("case", TAKEN)
def test_the_bus_takes(direct: Stage, case: str) -> None:
    assert not ends(direct, "admin", TAKEN[case])


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_ends(guarded: Stage, case: str) -> None:
    """For one who may do anything as for others, and nothing of it reaches the bus."""
    assert ends(guarded, "admin", MALFORMED[case])
    assert ends(guarded, "reader", MALFORMED[case])


def test_reader_is_not_let_by(guarded: Stage) -> None:
    """Ways round a rule that looks at the destination: without an interface, as a reply, as another sender."""
    before = guarded.calls()
    reveal = [Field(PATH, OBJECT), Field(MEMBER, "Reveal"), Field(DESTINATION, SECRET), Field(SIGNATURE, "s")]
    body = value("s", "stolen", "<")
    wire = guarded.wire("reader")
    for serial, more in enumerate(
        ((), (Field(SENDER, BUS),), (Field(REPLY_SERIAL, 1),), (Field(77, "x", "s"),)), start=10
    ):
        wire.send(message(CALL, serial, [*reveal, *more], body))
        assert error_of(wire.answer(serial)) == DENIED
    wire.send(message(CALL, 20, reveal, body, flags=NO_REPLY))
    wire.send(message(RETURN, 21, [Field(DESTINATION, SECRET), Field(REPLY_SERIAL, 1)]))
    wire.send(to_bus(22, "GetId"))
    wire.answer(22)
    assert guarded.calls() == before


EAVESDROPPING: Final = (
    "eavesdrop=true",
    "eavesdrop='true'",
    " eavesdrop =true",
    "eavesdrop = 'true'",
    "type='signal',eavesdrop\t=\t'true'",
    "type='signal', \n eavesdrop='tr''ue'",
    "eavesdrop='false',eavesdrop='true'",
    "type='signal',\teavesdrop=tr\\'ue",
)


@pytest.mark.parametrize("rule", EAVESDROPPING)
def test_eavesdropping_is_refused(guarded: Stage, rule: str) -> None:
    """CVE-2026-34080: however it is written. The bus would allow root's connection to do it."""
    wire = guarded.wire("reader")
    wire.send(to_bus(5, "AddMatch", rule))
    assert error_of(wire.answer(5)) in {DENIED, "org.freedesktop.DBus.Error.MatchRuleInvalid"}


@pytest.mark.parametrize("member", ["BecomeMonitor", "UpdateActivationEnvironment", "ReloadConfig"])
@pytest.mark.parametrize("path", [BUS_PATH, "/", "/org/example"])
@pytest.mark.parametrize("interface", [None, BUS, "org.freedesktop.DBus.Monitoring"])
def test_what_only_a_rule_gives(guarded: Stage, member: str, path: str, interface: str | None) -> None:
    """By whatever path and interface: dbus-daemon looks at neither for some of them."""
    wire = guarded.wire("reader")
    wire.send(call(5, BUS, member, path=path, interface=interface))
    assert error_of(wire.answer(5)) == DENIED


# ── the authentication ──


def first_line(place: Stage, sent: bytes) -> bytes:
    """What is answered first to these bytes; nothing when the connection ends."""
    with Wire(place.path, place.uid("reader"), hello=False) as wire:
        wire.sock.sendall(sent)
        try:
            return wire.line()
        except (Closed, ConnectionResetError):
            return b""


def test_authentication_by_another_name_is_rejected(guarded: Stage) -> None:
    """Only the kernel's uid, or none, is taken."""
    own = str(guarded.uid("reader")).encode().hex().encode()
    for argument in (b" " + own, b""):
        assert first_line(guarded, b"\0AUTH EXTERNAL" + argument + b"\r\n").startswith(b"OK ") == bool(argument)
    for argument in (b"30", b"ff", b"726f6f74", b" 30", b"3", b"zz", b"\x00", own + b"30", own + b" " + own):
        assert not first_line(guarded, b"\0AUTH EXTERNAL " + argument + b"\r\nBEGIN\r\n").startswith(b"OK"), argument
    for mechanism in (b"ANONYMOUS", b"DBUS_COOKIE_SHA1 30", b"KERBEROS_V4", b"external 30"):
        assert b"OK" not in first_line(guarded, b"\0AUTH " + mechanism + b"\r\n")


def test_authentication_ends_what_is_no_authentication(guarded: Stage) -> None:
    """No first NUL, BEGIN before OK, lines without an end: the connection ends and nothing reaches the bus."""
    for sent in (b"AUTH EXTERNAL\r\n", b"\0BEGIN\r\n" + to_bus(1, "Hello"), b"\0" + b"A" * 40_000):
        assert b"OK" not in first_line(guarded, sent)
