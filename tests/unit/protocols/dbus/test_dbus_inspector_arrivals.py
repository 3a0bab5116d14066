"""What comes to the client from other peers, and what another peer can do to its connection."""

from __future__ import annotations

import pytest

from sockguard.protocols.dbus import traffic, wire
from sockguard.protocols.dbus.body import pack
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.wire import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL
from tests.unit.protocols.dbus.making import message, number, text, variant
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    ME,
    PIECES,
    SECRET_OWNER,
    STRANGER,
    Scene,
    arriving,
    rules,
)

FROM_APP = [{"receive": APP}]
pytestmark = pytest.mark.parametrize("piece", PIECES)


def test_signals(piece: int) -> None:
    """Of those that may be heard, to all or to the client alone; others are told of once of their like."""
    scene = Scene(rules(FROM_APP), piece=piece)
    for destination in (None, ME):
        for sender in (APP_OWNER, SECRET_OWNER, STRANGER):
            scene.play.backend(arriving(SIGNAL, destination, sender))
    assert [got.fields.sender for got in scene.got()] == [APP_OWNER] * 2
    assert scene.told() == [f"denied receive - /org/example/App {APP}.Changed"]
    scene.bus.owner_changes(APP, STRANGER)
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    scene.play.backend(arriving(SIGNAL, None, STRANGER))
    assert [got.fields.sender for got in scene.got()] == [STRANGER]


def test_calls(piece: int) -> None:
    """One that may be received is answered by the client, by the serial that the caller gave; others by us."""
    scene = Scene(rules(FROM_APP), piece=piece)
    scene.play.backend(arriving(METHOD_CALL, ME, STRANGER, serial=71))
    scene.play.backend(arriving(METHOD_CALL, ME, STRANGER, serial=72, flags=NO_REPLY_EXPECTED))
    scene.play.backend(arriving(METHOD_CALL, ME, APP_OWNER, serial=73))
    scene.bus.serve()
    (refused,) = scene.bus.seen
    assert (refused.says, refused.reply_to, refused.fields.destination) == (DENIED, 71, STRANGER)
    (call,) = scene.got()
    scene.answer(call, STRANGER)
    scene.answer(call)
    scene.answer(call)
    assert [(got.reply_to, got.fields.destination) for got in scene.bus.seen[1:]] == [(73, APP_OWNER)]
    assert scene.told()[1:] == [f"denied reply {STRANGER}", f"denied reply {APP_OWNER}"]


def test_a_call_that_wants_no_answer_has_none(piece: int) -> None:
    scene = Scene(rules(FROM_APP), piece=piece)
    scene.play.backend(arriving(METHOD_CALL, ME, APP_OWNER, flags=NO_REPLY_EXPECTED))
    (call,) = scene.got()
    scene.answer(call)
    assert scene.reached() == []


def test_who_came_may_be_asked_about(piece: int) -> None:
    """Until it has gone."""
    scene = Scene(rules(FROM_APP), piece=piece)
    scene.bus.owner_changes(APP, STRANGER)
    scene.play.backend(arriving(METHOD_CALL, ME, STRANGER))
    scene.bus.owner_changes(APP, "")
    for gone in (False, True):
        if gone:
            scene.bus.signal("NameOwnerChanged", STRANGER, STRANGER, "")
        scene.ask("GetConnectionUnixUser", STRANGER)
        assert (scene.reached() == ["GetConnectionUnixUser"]) != gone


def test_a_caller_may_be_asked_about(piece: int) -> None:
    """Whoever calls a name that the client owns; nobody who was turned away."""
    scene = Scene(rules([{"own": APP}]), piece=piece, owners={})
    scene.bus.signal("NameAcquired", APP, destination=ME)
    scene.play.backend(arriving(METHOD_CALL, APP, STRANGER))
    scene.play.backend(arriving(SIGNAL, ME, SECRET_OWNER))
    for unique in (STRANGER, SECRET_OWNER):
        scene.ask("GetConnectionCredentials", unique)
    assert [got.values for got in scene.bus.seen] == [[STRANGER]]


def test_reply_serial_on_an_arrival_changes_nothing(piece: int) -> None:
    """Not even with the serial of a call that waits, by the peer that was called."""
    scene = Scene(rules([{"destination": APP}]), piece=piece)
    serial = scene.call()
    called = scene.last("Do")
    for kind in (METHOD_CALL, SIGNAL):
        scene.play.backend(arriving(kind, ME, APP_OWNER, reply_to=called.serial))
    assert scene.got() == []
    scene.bus.reply(called, sender=APP_OWNER)
    assert [got.reply_to for got in scene.got()] == [serial]


def test_a_bound_on_what_is_told(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MAX_TOLD", 2)
    scene = Scene(rules(FROM_APP), piece=piece)
    for member in ("A", "B", "A", "C", "D"):
        scene.play.backend(arriving(SIGNAL, None, STRANGER, member))
    assert len(scene.told()) == 2
    assert scene.got() == []


def test_a_bound_on_arrived_calls(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten; the client may yet answer the others."""
    monkeypatch.setattr(traffic, "MAX_PENDING", 2)
    scene = Scene(rules(FROM_APP), piece=piece)
    for serial in (71, 72, 73):
        scene.play.backend(arriving(METHOD_CALL, ME, APP_OWNER, serial=serial))
    for call in scene.got():
        scene.answer(call)
    assert [got.reply_to for got in scene.bus.seen] == [72, 73]


def test_a_peer_pushes_out_no_other_ones_call(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls it makes that are not answered."""
    monkeypatch.setattr(traffic, "MAX_PENDING", 6)
    scene = Scene(rules(FROM_APP), piece=piece, owners={APP: APP_OWNER})
    scene.play.backend(arriving(METHOD_CALL, ME, APP_OWNER, serial=70))
    (first,) = scene.got()
    scene.bus.owner_changes(APP, STRANGER)
    for serial in range(71, 91):
        scene.play.backend(arriving(METHOD_CALL, ME, STRANGER, serial=serial))
    last = scene.got()[-1]
    for call in (first, last):
        scene.answer(call)
    assert [(got.reply_to, got.fields.destination) for got in scene.bus.seen] == [(70, APP_OWNER), (90, STRANGER)]


def test_serials_wrap_around(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None under which a call waits for the client's answer."""
    monkeypatch.setattr(traffic, "_LAST_SERIAL", 20)
    scene = Scene(rules(FROM_APP), piece=piece)
    scene.play.backend(arriving(METHOD_CALL, ME, APP_OWNER, serial=71))
    (call,) = scene.got()
    for _ in range(60):
        scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    serials = [got.serial for got in scene.got()]
    free = [*range(1, call.serial), *range(call.serial + 1, 21)]
    assert serials == [*range(call.serial + 1, 21), *free * 3][:60]


def test_permissive_lets_arrivals_in(piece: int) -> None:
    scene = Scene(rules(FROM_APP), piece=piece, enforce=False)
    for _ in range(2):
        scene.play.backend(arriving(SIGNAL, None, STRANGER))
    assert scene.said() == ["Changed"] * 2
    assert scene.told() == [f"would_deny receive - /org/example/App {APP}.Changed"]


# ── messages to others ──


def test_overheard(piece: int) -> None:
    """A client that may do anything may eavesdrop; what it overhears is no answer to a call of its own."""
    scene = Scene(rules(None), piece=piece)
    serial = scene.call(APP_OWNER)
    called = scene.last("Do")
    scene.play.backend(arriving(METHOD_RETURN, STRANGER, APP_OWNER, reply_to=called.serial))
    scene.play.backend(arriving(METHOD_CALL, STRANGER, APP_OWNER, serial=80))
    scene.play.backend(wire.method_return(81, called.serial, STRANGER, BUS, "", b""))
    assert [got.reply_to for got in scene.got()] == [called.serial, 0, called.serial]
    scene.bus.reply(called, sender=APP_OWNER)
    assert [got.reply_to for got in scene.got()] == [serial]


def test_overheard_names_are_not_its_own(piece: int) -> None:
    """What the bus tells another of its names gives the client no rights when other rules hold."""
    scene = Scene(rules(None), piece=piece)
    scene.bus.signal("NameAcquired", "org.example.Other", destination=STRANGER)
    scene.renew(rules(FROM_APP))
    assert "ReleaseName" not in scene.reached()
    scene.send(wire.signal(scene.next(), "/", APP, "Spread", "", b""))
    assert scene.reached() == []


def test_overheard_no_more(piece: int) -> None:
    """Its match is still there when other rules hold: nothing of others comes, and no other is answered by us."""
    scene = Scene(rules(None), piece=piece)
    scene.ask("AddMatch", "eavesdrop=true")
    scene.got()
    scene.renew(rules([{"own": APP}, {"receive": APP}, {"destination": APP}]))
    scene.bus.signal("NameAcquired", APP, destination=ME)
    scene.got()
    scene.reached()
    for kind in (METHOD_CALL, SIGNAL, METHOD_RETURN):
        scene.play.backend(arriving(kind, STRANGER, APP_OWNER, reply_to=9))
    scene.bus.signal("NameAcquired", "org.example.Other", destination=STRANGER)
    scene.bus.serve()
    assert scene.got() == []
    assert scene.reached() == []
    scene.play.backend(arriving(METHOD_CALL, APP, STRANGER))
    assert scene.said() == ["Changed"]


# ── what cannot be read ──


UNREADABLE = {
    "a header that is too long": message(
        4, [text(1, "o", b"/" + b"x" * 20_000), text(2, "s", b"a.b"), text(3, "s", b"C")], body=b""
    ),
    "a type of the future": message(9, [text(6, "s", ME.encode())], body=b""),
    "an unknown field that is too long": message(
        4,
        [text(1, "o", b"/"), text(2, "s", b"a.b"), text(3, "s", b"C"), variant(77, b"s", b"\0\x10\0\0" + b"x" * 4097)],
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_another_peer_cannot_end_it(piece: int, case: str) -> None:
    """The bus takes what we do not: such a message is skipped as a whole, and told once."""
    scene = Scene(rules(FROM_APP), piece=piece)
    good = arriving(SIGNAL, None, APP_OWNER)
    scene.play.backend(good + UNREADABLE[case] + good + UNREADABLE[case] + good)
    assert scene.said() == ["Changed"] * 3
    assert scene.told() == ["denied a message"]


@pytest.mark.parametrize("behind", [b"", arriving(SIGNAL, None, APP_OWNER)])
def test_fds_of_what_cannot_be_read(piece: int, behind: bytes) -> None:
    """Are closed with it; those of the message behind it stay with that."""
    scene = Scene(rules(FROM_APP), piece=piece, fds=True)
    long = message(4, [number(9, 1), text(1, "o", b"/" + b"x" * 20_000), text(2, "s", b"a.b"), text(3, "s", b"C")])
    scene.play.backend(long, ["a"])
    if behind:
        scene.play.backend(behind)
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER, fds=1), ["b"])
    assert scene.play.dropped == ["a"]
    assert scene.play.fds_to_client == ["b"]


def test_fds_behind_what_cannot_be_read(piece: int) -> None:
    """In one reading: its last bytes bring the fds, so they are the last message's."""
    scene = Scene(rules(FROM_APP), piece=0, fds=True)
    long = UNREADABLE["a header that is too long"]
    scene.play.backend(long + arriving(SIGNAL, None, APP_OWNER, fds=1), ["b"])
    assert (scene.play.dropped, scene.play.fds_to_client) == ([], ["b"])
    held = message(4, [number(9, 1), text(1, "o", b"/" + b"x" * 20_000), text(2, "s", b"a.b"), text(3, "s", b"C")])
    scene.play.backend(held[:10], ["c"])
    scene.play.backend(held[10:] + arriving(SIGNAL, None, APP_OWNER, fds=1), ["d"])
    assert (scene.play.dropped, scene.play.fds_to_client) == (["c"], ["b", "d"])


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 16,
        message(4, [], version=2),
        message(4, [], body_length=1 << 27),
        wire.signal(9, "/", BUS, "NameOwnerChanged", "s", pack("s", [APP]), BUS),
        wire.signal(9, "/", BUS, "NameAcquired", "u", b"\1\0\0\0", BUS, ME),
    ],
)
def test_a_bus_that_is_none(piece: int, data: bytes) -> None:
    """Where the next message begins cannot be known, or the bus itself says what it cannot say."""
    scene = Scene(rules(None), piece=piece)
    scene.play.backend(data)
    assert scene.play.outcome == "backend_malformed"
