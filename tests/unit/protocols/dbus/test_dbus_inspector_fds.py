"""File descriptors: each with its message, and none left over."""

from __future__ import annotations

import pytest

from sockguard.protocols.dbus.body import pack
from tests.unit.protocols.dbus.making import message, number, text
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    ME,
    PIECES,
    SECRET,
    Scene,
    rules,
)

TO_APP = [{"destination": APP}]
pytestmark = pytest.mark.parametrize("piece", PIECES)


def with_fds(count: int, destination: str = APP, serial: int = 50, size: int = 0) -> bytes:
    fields = [text(1, "o", b"/"), text(3, "s", b"Do"), text(6, "s", destination.encode()), number(9, count)]
    if size:
        fields.append(text(8, "g", b"s"))
    return message(1, fields, serial=serial, body=pack("s", ["x" * size]) if size else b"")


def test_fds_go_with_their_message(piece: int) -> None:
    """To the bus with what is allowed; closed with what is not."""
    scene = Scene(rules(TO_APP), piece=piece, fds=True)
    scene.send(with_fds(2, size=3000), ["a", "b"])
    scene.send(with_fds(1, SECRET, size=3000), ["c"])
    scene.send(with_fds(1), ["d"])
    assert scene.play.fds_to_backend == ["a", "b", "d"]
    assert scene.play.dropped == ["c"]
    assert scene.said() == [DENIED]


def test_fds_that_do_not_fit(piece: int) -> None:
    """Fewer or more than the header says, or with a message that has none."""
    for data, fds in ((with_fds(2), ["a"]), (with_fds(1), ["a", "b"]), (with_fds(1), []), (with_fds(0), ["a"])):
        scene = Scene(rules(TO_APP), piece=piece, fds=True)
        scene.send(data, fds)
        assert scene.play.outcome == "malformed"


def test_fds_that_come_later_in_the_message(piece: int) -> None:
    """With any of its bytes (specification, Header Fields, UNIX_FDS)."""
    scene = Scene(rules(TO_APP), piece=piece, fds=True)
    data = with_fds(1, size=100)
    scene.send(data[:-20])
    assert scene.play.outcome is None
    scene.send(data[-20:], ["a"])
    assert scene.play.fds_to_backend == ["a"]
    assert scene.reached() == ["Do"]


def test_fds_that_were_not_agreed_on(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece, fds=True, client_fds=False)
    scene.send(with_fds(1), ["a"])
    assert scene.play.outcome == "malformed"
    assert scene.play.fds_to_backend == []


def test_fds_are_agreed_on_with_the_bus_when_the_client_asks_for_them(piece: int) -> None:
    """The bus sends them, even its own, to whom it has agreed on them with."""
    for forward, asks in ((True, True), (True, False), (False, True)):
        scene = Scene(rules(TO_APP), piece=piece, fds=forward, client_fds=asks)
        assert (b"NEGOTIATE_UNIX_FD" in scene.play.to_backend) == (forward and asks)
        assert (b"AGREE_UNIX_FD" in scene.play.to_client) == (forward and asks)


def test_fds_for_a_client_that_takes_none(piece: int) -> None:
    """Its library would end the connection: the bus is told, or the client, that it cannot be."""
    scene = Scene(rules([{"destination": APP}, {"receive": APP}]), piece=piece, fds=True, client_fds=False)
    serial = scene.call()
    reply_to = scene.last("Do").serial
    fields = [text(6, "s", ME.encode()), text(7, "s", APP_OWNER.encode()), number(9, 1)]
    scene.play.backend(message(2, [number(5, reply_to), *fields]), ["a"])
    scene.play.backend(message(1, [text(1, "o", b"/"), text(3, "s", b"Take"), *fields], serial=70), ["b"])
    scene.bus.serve()
    assert scene.play.dropped == ["a", "b"]
    assert scene.play.fds_to_client == []
    (error,) = scene.got()
    assert (error.says, error.reply_to) == ("org.freedesktop.DBus.Error.NotSupported", serial)
    refused = scene.bus.seen[-1]
    assert (refused.says, refused.reply_to) == ("org.freedesktop.DBus.Error.NotSupported", 70)
    assert refused.fields.destination == APP_OWNER
    assert len(scene.told()) == 2
