"""Calls of the client and their answers: judged, numbered anew, and answered exactly once."""

from __future__ import annotations

import pytest

from sockguard.protocols.base import BACKEND, CLIENT
from sockguard.protocols.dbus import traffic, wire
from sockguard.protocols.dbus.body import pack
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.wire import NO_REPLY_EXPECTED
from tests.unit.protocols.dbus.making import message, number, text
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    LIMITS,
    ME,
    PATH,
    PIECES,
    SECRET,
    SECRET_OWNER,
    STRANGER,
    Scene,
    rules,
)

TO_APP = [{"destination": APP}]
pytestmark = pytest.mark.parametrize("piece", PIECES)


def test_call_and_reply(piece: int) -> None:
    """The client's serial comes back with the reply, whatever the bus saw."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.serial = 99
    serial = scene.call(signature="s", values=["hello"])
    call = scene.last("Do")
    assert call.serial != serial
    assert call.values == ["hello"]
    assert scene.play.inspector.busy
    scene.bus.reply(call, "s", ["hi"], APP_OWNER)
    (reply,) = scene.got()
    assert (reply.reply_to, reply.values, reply.fields.sender) == (serial, ["hi"], APP_OWNER)
    assert not scene.play.inspector.busy
    assert scene.told() == []


def test_unique_name_is_its_owner(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece)
    scene.call(APP_OWNER)
    scene.call(STRANGER)
    scene.call(SECRET_OWNER)
    assert scene.reached() == ["Do"]
    assert scene.said() == [DENIED] * 2


def test_denied_call(piece: int) -> None:
    """As the bus would answer; its body and what is behind it are unharmed."""
    scene = Scene(rules(TO_APP), piece=piece)
    serial = scene.next()
    denied = wire.method_call(serial, "/", SECRET, "Reveal", SECRET, "s", pack("s", ["x" * 5000]))
    passing = wire.method_call(scene.next(), "/", APP, "Do", APP, "", b"")
    scene.send(denied + passing + b"l\1")
    (error,) = scene.got()
    assert (error.says, error.reply_to, error.fields.sender, error.fields.destination) == (DENIED, serial, BUS, ME)
    assert error.fields.flags == NO_REPLY_EXPECTED
    assert scene.reached() == ["Do"]
    assert scene.told() == [f"denied call {SECRET} / {SECRET}.Reveal"]
    assert scene.play.unread(CLIENT) == 2


def test_denied_without_an_answer(piece: int) -> None:
    """A call that wants none, and a signal: dropped and told."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.call(SECRET, flags=NO_REPLY_EXPECTED)
    scene.send(wire.signal(scene.next(), "/", APP, "Spread", "", b"", destination=SECRET))
    assert scene.said() == []
    assert scene.reached() == []
    assert len(scene.told()) == 2


def test_call_without_an_interface(piece: int) -> None:
    """A rule for an interface is not escaped by leaving it out, nor a deny by the same."""
    scene = Scene(rules([{"destination": APP, "interface": APP}]), piece=piece)
    scene.call(interface=None)
    assert scene.said() == [DENIED]
    scene = Scene(rules(None, [{"destination": APP, "interface": APP}]), piece=piece)
    scene.call(interface=None)
    scene.call(interface="org.example.Other")
    assert scene.said() == [DENIED]
    assert scene.reached() == ["Do"]


def test_call_without_a_destination(piece: int) -> None:
    """dbus-daemon gives it to whoever has a match for it: refused, to one who may do anything as well."""
    for given in (rules(TO_APP), rules(None)):
        scene = Scene(given, piece=piece)
        scene.call(None, "Ping", interface="org.freedesktop.DBus.Peer")
        assert scene.said() == [DENIED]
        assert scene.reached() == []
        assert scene.told() == ["denied call - /org/example/App org.freedesktop.DBus.Peer.Ping"]


def test_reply_serial_on_a_call_changes_nothing(piece: int) -> None:
    """Judged by its type: what says that it is a reply, and is none, does not pass as one."""
    scene = Scene(rules(TO_APP), piece=piece)
    fields = [text(1, "o", b"/"), text(3, "s", b"Do"), text(6, "s", SECRET.encode()), number(5, 1)]
    scene.send(message(1, fields, serial=scene.next()))
    assert scene.said() == [DENIED]
    assert scene.reached() == []


def test_big_endian(piece: int) -> None:
    """Read, numbered and answered as the other."""
    scene = Scene(rules(TO_APP), piece=piece)
    for name in (APP, SECRET):
        fields = [text(1, "o", b"/", ">"), text(3, "s", b"Do", ">"), text(6, "s", name.encode(), ">")]
        scene.send(message(1, fields, ">", serial=77))
    call = scene.last("Do")
    fields = [number(5, call.serial, ">"), text(6, "s", ME.encode(), ">"), text(7, "s", APP_OWNER.encode(), ">")]
    scene.play.backend(message(2, fields, ">", serial=500))
    denied, reply = scene.got()
    assert (denied.says, denied.reply_to) == (DENIED, 77)
    assert (reply.says, reply.reply_to, reply.fields.endian) == ("", 77, ">")


# ── whose replies pass ──


def test_replies_of_others_do_not_pass(piece: int) -> None:
    """By another peer, to no call, a second time: told once of each sender."""
    scene = Scene(rules(TO_APP), piece=piece)
    serial = scene.call()
    call = scene.last("Do")
    scene.bus.reply(call, sender=STRANGER)
    scene.bus.reply(call, sender=STRANGER)
    scene.bus.reply(call._replace(serial=call.serial + 50), sender=APP_OWNER)
    scene.play.backend(wire.method_return(9, call.serial, ME, None, "", b""))
    assert scene.got() == []
    scene.bus.reply(call, sender=APP_OWNER)
    scene.bus.reply(call, sender=APP_OWNER)
    assert [got.reply_to for got in scene.got()] == [serial]
    assert scene.told() == [f"denied reply {STRANGER}", f"denied reply {APP_OWNER}", "denied reply -"]


def test_replies_that_pass(piece: int) -> None:
    """Of the bus in the called one's stead; of who has come to own the name since; of whoever, where all is allowed."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.call()
    scene.bus.fail(scene.last("Do"), "org.freedesktop.DBus.Error.NoReply")
    scene.call()
    scene.bus.owner_changes(APP, ":1.55")
    scene.bus.reply(scene.last("Do"), sender=":1.55")
    assert [got.reply_to for got in scene.got()] == [2, 3]
    scene = Scene(rules(None), piece=piece)
    scene.call("org.example.Unknown")
    scene.bus.reply(scene.last("Do"), sender=STRANGER)
    scene.call(STRANGER)
    scene.bus.reply(scene.last("Do"), sender=":1.10")
    assert [got.reply_to for got in scene.got()] == [2]


def test_call_to_a_name_that_is_started_for_it(piece: int) -> None:
    """Nobody owned it when the call passed."""
    scene = Scene(rules(TO_APP), piece=piece, owners={})
    scene.call()
    scene.bus.reply(scene.last("Do"), sender=STRANGER)
    assert scene.got() == []
    scene.bus.owner_changes(APP, ":1.55")
    scene.bus.reply(scene.last("Do"), sender=":1.55")
    assert [got.reply_to for got in scene.got()] == [2]


def test_a_service_that_was_started_may_answer_when_it_has_given_up_its_name(piece: int) -> None:
    """As one that ends when it is idle does; who owned the name neither then nor now may not."""
    scene = Scene(rules(TO_APP), piece=piece, owners={})
    serial = scene.call()
    call = scene.last("Do")
    scene.bus.owner_changes(APP, ":1.55")
    scene.bus.owner_changes(APP, "")
    scene.got()
    scene.bus.reply(call, sender=STRANGER)
    assert scene.got() == []
    scene.bus.reply(call, sender=":1.55")
    assert [got.reply_to for got in scene.got()] == [serial]


# ── numbers ──


def test_serials_wrap_around(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last comes 1, and none under which something waits."""
    monkeypatch.setattr(traffic, "_LAST_SERIAL", 20)
    scene = Scene(rules(TO_APP), piece=piece)
    scene.call()
    waiting = scene.last("Do").serial
    seen = []
    for _ in range(60):
        scene.call(flags=NO_REPLY_EXPECTED)
        seen.append(scene.last("Do").serial)
    free = [*range(1, waiting), *range(waiting + 1, 21)]
    assert seen == [*range(waiting + 1, 21), *free * 3][:60]


def test_serials_towards_the_client_are_unique(piece: int) -> None:
    """Our own answers and the bus's messages share one count."""
    scene = Scene(rules(TO_APP), piece=piece)
    for _ in range(5):
        scene.call(SECRET)
        scene.ask("GetId")
        scene.call()
        scene.bus.reply(scene.last("Do"), sender=APP_OWNER)
    serials = [got.serial for got in scene.got()]
    assert len(set(serials)) == len(serials) == 15


def test_too_many_pending(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is refused, the connection goes on."""
    monkeypatch.setattr(traffic, "MAX_PENDING", 2)
    scene = Scene(rules(TO_APP), piece=piece)
    for _ in range(3):
        scene.call()
    assert scene.said() == [LIMITS]
    assert scene.reached() == ["Do"] * 2
    scene.call(flags=NO_REPLY_EXPECTED)
    assert scene.reached() == ["Do"]


# ── the ends ──


def test_malformed_ends_behind_what_was_good(piece: int) -> None:
    """What was sent before it has gone on, and nothing of it does; permissive or not."""
    for enforce in (True, False):
        scene = Scene(rules(TO_APP), piece=piece, enforce=enforce)
        good = wire.method_call(scene.next(), "/", APP, "Do", APP, "", b"")
        scene.play.client(good + message(1, [text(1, "o", b"/")], serial=3) + good)
        assert scene.play.outcome == "malformed"
        assert scene.play.to_backend.count(b"Do\0") == 1


def test_header_that_is_too_long(piece: int) -> None:
    scene = Scene(rules(None), piece=piece)
    scene.play.client(message(1, [text(1, "o", b"/" + b"x" * 20_000), text(3, "s", b"Do"), text(6, "s", b"a.b")]))
    assert scene.play.outcome == "malformed"


@pytest.mark.parametrize(
    "first",
    [
        wire.method_call(1, "/", APP, "Do", APP, "", b""),
        wire.method_call(1, PATH, BUS, "GetId", BUS, "", b""),
        wire.method_call(1, PATH, BUS, "Hello", None, "", b""),
        wire.method_call(1, PATH, BUS, "Hello", BUS, "", b"", NO_REPLY_EXPECTED),
        wire.signal(1, "/", APP, "Spread", "", b""),
        wire.method_return(1, 1, APP, None, "", b""),
    ],
)
def test_hello_comes_first(piece: int, first: bytes) -> None:
    scene = Scene(rules(None), piece=piece, hello=False)
    scene.send(first)
    assert scene.play.outcome == "malformed"
    assert scene.reached() == []


def test_second_hello(piece: int) -> None:
    """Goes to the bus, which refuses it; it is no start anew."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.errors["Hello"] = "org.freedesktop.DBus.Error.Failed"
    scene.ask("Hello")
    assert scene.said() == ["org.freedesktop.DBus.Error.Failed"]
    scene.bus.errors.clear()
    scene.bus.owners[APP] = STRANGER
    scene.ask("Hello")
    scene.call(STRANGER)
    assert scene.said() == ["", DENIED]


def test_hello_that_is_refused(piece: int) -> None:
    """The client is told in the bus's words, and may try again."""
    scene = Scene(rules(TO_APP), piece=piece, hello=False)
    scene.bus.errors["Hello"] = LIMITS
    scene.ask("Hello")
    assert scene.said() == [LIMITS]
    scene.bus.errors.clear()
    scene.ask("Hello")
    scene.call()
    assert [got.values for got in scene.got()] == [[ME]]
    assert scene.reached()[-1] == "Do"


def test_messages_wait_for_the_picture(piece: int) -> None:
    """What is sent behind Hello is judged when owners are known; nor does the client's end overtake it."""
    scene = Scene(rules(TO_APP), piece=piece, hello=False)
    scene.bus.silent = {"GetNameOwner"}
    hello = wire.method_call(1, PATH, BUS, "Hello", BUS, "", b"")
    rest = wire.method_call(2, "/", APP, "Do", APP_OWNER, "", b"", NO_REPLY_EXPECTED)
    scene.send(hello + rest)
    scene.play.client_ends()
    assert scene.reached() == ["Hello", "AddMatch", "GetNameOwner"]
    assert scene.play.clock == 30.0
    assert scene.play.outcome is None
    asked = wire.method_return(50, 3, ME, BUS, "s", pack("s", [APP_OWNER]))
    scene.play.backend(asked)
    assert scene.play.outcome == "closed"
    assert scene.play.to_backend.count(b"Do\0") == 1


def test_bus_that_does_not_answer(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece, hello=False)
    scene.bus.silent = {"GetNameOwner"}
    scene.ask("Hello")
    scene.play.time_passes()
    assert scene.play.outcome == "timeout"


def test_ends(piece: int) -> None:
    """Of either side: the connection's."""
    for end in ("client_ends", "backend_ends"):
        scene = Scene(rules(TO_APP), piece=piece)
        getattr(scene.play, end)()
        assert scene.play.outcome == "closed"
    scene = Scene(rules(TO_APP), piece=piece, hello=False)
    scene.bus.silent = {"Hello"}
    scene.ask("Hello")
    scene.play.backend_ends()
    assert scene.play.outcome == "closed"


def test_large_bodies_pass_unseen(piece: int) -> None:
    """A message beyond the chunk goes on without its body having been waited for."""
    scene = Scene(rules(TO_APP), piece=piece)
    data = wire.method_call(scene.next(), "/", APP, "Do", APP, "s", pack("s", ["x" * 5000]))
    scene.play.client(data[:200])
    assert scene.play.unread(CLIENT) == 0
    scene.play.client(data[200:])
    assert scene.play.unread(BACKEND) == 0
    scene.bus.serve()
    assert scene.last("Do").values == ["x" * 5000]
