"""Calls to names that no rule is about, where a deny may be about their owner: what is asked, and what comes of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from sockguard.protocols.base import BACKEND, RequestRule
from sockguard.protocols.dbus import following, gate, owners, wire
from sockguard.protocols.dbus.body import pack
from sockguard.protocols.dbus.judge import DbusRules
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.rules import read_what
from sockguard.protocols.dbus.wire import NO_AUTO_START, NO_REPLY_EXPECTED, SIGNAL
from tests.unit.protocols.dbus.making import call_fields, message, number, text
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    LIMITS,
    ME,
    NO_OWNER,
    PIECES,
    SECRET,
    SECRET_OWNER,
    STRANGER,
    Scene,
    arriving,
    rules,
)

pytestmark = pytest.mark.parametrize("piece", PIECES)
ALIAS, NOBODY = "org.example.Alias", "org.example.Nobody"
OWNERS = {APP: APP_OWNER, SECRET: SECRET_OWNER, ALIAS: SECRET_OWNER}
NOT_SECRET = [{"destination": SECRET}]
ASKED = ["AddMatch", "GetNameOwner"]


def scene(piece: int, deny: list[dict[str, object]] | None = None, **more: object) -> Scene:
    owned: Mapping[str, str] = OWNERS
    made = Scene(rules(None, NOT_SECRET if deny is None else deny), piece=piece, owners=owned, **more)  # type: ignore[arg-type]
    made.reached()
    return made


def started(one: Scene, name: str, owner: str) -> None:
    """The bus says that the service is there. Our ping of it is left to the test."""
    one.bus.owner_changes(name, owner)
    one.bus.reply(one.last("StartServiceByName"), "u", [1])
    one.bus.serve()


def pong(one: Scene, sender: str) -> None:
    one.bus.reply(one.last("Ping"), sender=sender)
    one.bus.serve()


def test_a_name_is_asked_for_once(piece: int) -> None:
    one = scene(piece)
    for _ in range(2):
        one.call(APP)
        one.call(ALIAS)
    assert one.reached() == [*ASKED, "Do", *ASKED, "Do"]
    assert one.said() == [DENIED, DENIED]
    assert one.told() == [f"denied call {ALIAS} /org/example/App {APP}.Do"] * 2


def test_nothing_is_asked_where_it_changes_nothing(piece: int) -> None:
    """No deny by name; one that could not be about this call, or is about the bus; a call that is denied as it is."""
    here: list[list[dict[str, object]]] = [
        [],
        [{"member": "Other"}],
        [{"destination": SECRET, "member": "Other"}],
        [{"destination": SECRET, "interface": "org.example.Other", "path": "/org/example/App"}],
        [{"destination": BUS}],
        [{"destination": SECRET}, {"member": "Do"}],
        [{"own": SECRET}, {"receive": SECRET}],
    ]
    for deny in here:
        one = scene(piece, deny)
        one.call(ALIAS)
        assert set(one.reached()) <= {"Do"}
    allowed = Scene(rules([{"destination": APP}], NOT_SECRET), piece=piece, owners=OWNERS)
    allowed.reached()
    for name in (APP, ALIAS):
        allowed.call(name)
    assert allowed.reached() == ["Do"]


def test_what_comes_behind_waits_in_its_order(piece: int) -> None:
    one = scene(piece)
    one.bus.silent = {"GetNameOwner"}
    one.call(ALIAS)
    one.call(APP_OWNER)
    assert one.reached() == ASKED
    assert (one.play.clock, one.play.awaited) == (30.0, BACKEND)
    one.play.time_passes()
    assert one.play.outcome == "timeout"


def test_changes_are_followed(piece: int) -> None:
    """And they are not told to a client that has not asked for them."""
    one = scene(piece)
    one.call(ALIAS)
    for owner, denied in ((STRANGER, False), (SECRET_OWNER, True)):
        one.bus.owner_changes(ALIAS, owner)
        one.bus.seen.clear()
        one.call(ALIAS)
        assert (one.reached() == []) == denied
    one.bus.owner_changes(SECRET, STRANGER)
    one.call(ALIAS)
    assert one.reached() == ["Do"]
    assert one.said() == [DENIED, DENIED]


def test_a_signal_to_a_name(piece: int) -> None:
    one = scene(piece)
    one.send(wire.signal(one.next(), "/", APP, "Poke", "", b"", None, ALIAS))
    one.send(wire.signal(one.next(), "/", APP, "Poke", "", b"", None, APP))
    assert one.reached() == [*ASKED, *ASKED, "Poke"]
    assert one.told() == [f"denied call {ALIAS} / {APP}.Poke"]


def test_bounds(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many names of a client's choosing are kept, and so many match rules; what is forgotten is asked for again."""
    monkeypatch.setattr(gate, "MAX_WATCHED", 2)
    monkeypatch.setattr(following, "MAX_MATCHES_EVER", 4)
    one = scene(piece)
    names = [f"org.example.A{index}" for index in range(6)]
    one.bus.owners |= dict.fromkeys(names, SECRET_OWNER)
    for name in (*names, names[0]):
        one.call(name)
        assert len(one.play.inspector._traffic.gate.owners.owner) <= 3  # type: ignore[attr-defined]
    assert one.said() == [DENIED] * 7
    assert len(one.bus.matches) == 5
    assert one.bus.matches[-1] == owners.EVERY_CHANGE
    assert one.reached().count("GetNameOwner") == 7


def test_the_bus_takes_no_more_match_rules(piece: int) -> None:
    """The call is refused, and the connection goes on; later it may go better."""
    one = scene(piece)
    one.bus.errors["AddMatch"] = LIMITS
    one.call(ALIAS)
    one.call(APP, flags=NO_REPLY_EXPECTED)
    assert one.said() == [LIMITS]
    assert [told.split()[2] for told in one.told()] == [ALIAS, APP]
    del one.bus.errors["AddMatch"]
    one.call(APP)
    one.call(ALIAS)
    assert one.reached()[-3:] == ["Do", *ASKED]
    assert one.said() == [DENIED]


def test_new_rules_forget_names(piece: int) -> None:
    one = scene(piece)
    one.call(APP)
    one.renew(rules(None, [{"destination": NOBODY}]))
    one.reached()
    one.call(APP)
    assert one.reached() == ["GetNameOwner", "Do"], "the match is still there"
    one.renew(rules(None))
    one.call(SECRET)
    assert one.reached() == ["Do"]


def test_answers_come_from_whom_they_came_before(piece: int) -> None:
    """A call that has passed is answered by who was the owner then, though the name is asked for since."""
    one = scene(piece, [{"destination": SECRET, "member": "Other"}])
    one.call(ALIAS)
    call = one.last("Do")
    one.bus.owners[ALIAS] = STRANGER
    one.call(ALIAS, "Other")
    one.bus.owner_changes(ALIAS, APP_OWNER)
    one.bus.reply(call, sender=SECRET_OWNER)
    assert "" in one.said()


def test_a_call_goes_to_whom_it_was_judged_for(piece: int) -> None:
    """Not to whoever has the name when it arrives: to the unique name, with all else as it was."""
    one = scene(piece, fds=True)
    for endian, flags, size, fds in (("<", 0, 0, 0), (">", 4, 5000, 2), ("<", 1, 40, 1), ("<", 0, 3, 0)):
        fields = [
            *call_fields(endian)[:2], text(6, "s", APP.encode(), endian), text(8, "g", b"s", endian),
            number(9, fds, endian),
        ]  # fmt: skip
        content = struct.pack(f"{endian}I", size) + b"x" * size + b"\0"
        for _ in range(2):
            one.send(message(1, fields, endian, flags=flags, serial=9, body=content), ["a", "b"][:fds])
            got = one.bus.seen[-1]
            assert (got.fields.destination, got.fields.flags, got.fields.endian) == (APP_OWNER, flags, endian)
            assert (got.fields.unix_fds, got.values) == (fds, ["x" * size])
            if got.fields.wants_reply:
                one.bus.reply(got, sender=APP_OWNER)
    assert one.play.fds_to_backend == [*"ab", *"ab", "a", "a"]
    assert [(got.says, got.reply_to) for got in one.got()] == [("", 9)] * 6


def test_several_at_once(piece: int) -> None:
    """Some that go to an owner, some as they are, some not at all; the last with more to come."""
    one = scene(piece)
    one.call(APP)
    one.got()
    one.bus.seen.clear()
    calls = [
        wire.method_call(serial, "/", APP, f"M{serial}", to, "s", pack("s", ["x" * 100]), NO_REPLY_EXPECTED)
        for serial, to in enumerate((APP, APP_OWNER, SECRET, APP, APP, STRANGER, APP), start=50)
    ]
    data = b"".join(calls)
    one.send(data[:-50])
    one.send(data[-50:])
    assert [(got.says, got.fields.destination) for got in one.bus.seen] == [
        ("M50", APP_OWNER), ("M51", APP_OWNER), ("M53", APP_OWNER), ("M54", APP_OWNER), ("M55", STRANGER),
        ("M56", APP_OWNER),
    ]  # fmt: skip
    assert [got.values for got in one.bus.seen] == [["x" * 100]] * 6


def test_what_goes_as_it_is(piece: int) -> None:
    """Where nothing denies by name, where the deny could not be about the call, and by a permissive proxy."""
    for deny, more in (([], {}), ([{"destination": SECRET, "member": "Other"}], {}), (NOT_SECRET, {"enforce": False})):
        one = scene(piece, deny, **more)  # type: ignore[arg-type]
        for _ in range(2):
            one.call(APP)
            assert one.last("Do").fields.destination == APP


def test_bounds_of_headers(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are kept, and none that is long; each call goes where it should all the same."""
    monkeypatch.setattr(gate, "MAX_REMEMBERED", 3)
    one = scene(piece)
    kept = one.play.inspector._traffic.gate.meant  # type: ignore[attr-defined]
    for index in [*range(5), 0, 4]:
        for path in (f"/a{index}", "/" + "x" * 2000):
            one.call(APP, path=path)
            assert one.bus.seen[-1].fields.destination == APP_OWNER
        kept = one.play.inspector._traffic.gate.meant  # type: ignore[attr-defined]
        assert len(kept) <= 3
        assert all(fields.length < 1000 for fields in kept)


def test_a_name_that_was_forgotten_and_has_moved(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict on it is remembered."""
    monkeypatch.setattr(gate, "MAX_WATCHED", 1)
    one = scene(piece)
    one.call(APP)
    one.call(NOBODY, flags=NO_AUTO_START)
    one.bus.owner_changes(APP, SECRET_OWNER)
    one.call(APP)
    assert one.said() == [DENIED]


# ── services that are started ──


def test_a_service_is_started_first(piece: int) -> None:
    """And judged by the names that it has when it answers."""
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    started(one, NOBODY, STRANGER)
    assert [got.says for got in one.bus.seen] == [*ASKED, "StartServiceByName", "GetNameOwner", "Ping"]
    ping = one.last("Ping").fields
    assert (ping.destination, ping.flags) == (NOBODY, NO_AUTO_START)
    one.bus.owner_changes(SECRET, STRANGER)
    assert one.said() == []
    pong(one, STRANGER)
    assert one.said() == [DENIED]
    assert one.told() == [f"denied call {NOBODY} /org/example/App {APP}.Do"]
    assert one.play.clock == 0


def test_a_service_that_nothing_denies(piece: int) -> None:
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    started(one, NOBODY, STRANGER)
    pong(one, STRANGER)
    one.call(NOBODY)
    assert [got.says for got in one.bus.seen][-2:] == ["Do", "Do"]
    assert one.said() == []


def test_none_is_started_for_a_call_that_asks_for_none(piece: int) -> None:
    """Nor by a permissive proxy, unless it may not let it pass."""
    one = scene(piece)
    one.call(NOBODY, flags=NO_AUTO_START)
    assert one.reached() == [*ASKED, "Do"]
    one = scene(piece, enforce=False)
    one.call(NOBODY)
    assert one.reached() == [*ASKED, "Do"]
    what = read_what("dbus", NOT_SECRET, deny=True)
    doubtful = DbusRules([RequestRule("a", False, None), RequestRule("d", True, what, uncertain=True)])
    one = Scene(doubtful, piece=piece, enforce=False)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    assert one.reached()[-1] == "StartServiceByName"


def test_a_service_that_does_not_start(piece: int) -> None:
    """The client gets the bus's error; each call tries anew."""
    one = scene(piece)
    one.bus.errors["StartServiceByName"] = "org.freedesktop.DBus.Error.ServiceUnknown"
    for _ in range(2):
        one.call(NOBODY)
        (error,) = one.got()
        assert (error.says, error.reply_to, error.values) == (
            "org.freedesktop.DBus.Error.ServiceUnknown",
            one.serial,
            ["no"],
        )
    one.call(APP)
    assert one.reached() == [*ASKED, "StartServiceByName", "StartServiceByName", *ASKED, "Do"]
    assert one.told() == []


def test_a_service_that_is_gone_again(piece: int) -> None:
    """It is not started over and over."""
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    one.bus.reply(one.last("StartServiceByName"), "u", [1])
    one.bus.serve()
    one.bus.fail(one.last("Ping"), NO_OWNER)
    assert one.said() == [NO_OWNER]
    one.bus.owner_changes(NOBODY, STRANGER)
    one.call(NOBODY)
    assert one.bus.seen[-1].says == "Do"


def test_a_service_that_comes_and_goes(piece: int) -> None:
    """It is started whenever it is called and is not there."""
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    for _ in range(2):
        one.call(NOBODY)
        started(one, NOBODY, STRANGER)
        pong(one, STRANGER)
        assert one.bus.seen[-1].says == "Do"
        one.bus.owner_changes(NOBODY, "")
    assert one.reached().count("StartServiceByName") == 2
    assert one.said() == []


def test_a_service_that_takes_too_long(piece: int) -> None:
    """Only its call is denied. What is said of it afterwards is nothing to the client, and nothing to tell of."""
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    one.call(APP)
    one.play.time_passes()
    one.bus.serve()
    assert one.play.outcome is None
    assert one.said() == ["org.freedesktop.DBus.Error.TimedOut"]
    assert one.told() == [f"denied call {NOBODY} /org/example/App {APP}.Do"]
    assert one.bus.seen[-1].says == "Do"
    started(one, NOBODY, STRANGER)
    one.call(NOBODY)
    assert one.bus.seen[-1].says == "Do"
    assert (one.said(), one.told()) == ([], [])


def test_a_service_that_does_not_answer(piece: int) -> None:
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    started(one, NOBODY, SECRET_OWNER)
    assert one.play.clock == 30.0
    one.play.time_passes()
    one.bus.serve()
    assert one.said() == [DENIED]
    pong(one, SECRET_OWNER)
    assert one.said() == []
    assert len(one.told()) == 1


def test_new_rules_do_not_wait_for_a_service(piece: int) -> None:
    """They hold at once, for the call that waits as well."""
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    one.renew(rules(None, [{"destination": NOBODY}]))
    assert one.said() == [DENIED]
    one = scene(piece)
    one.bus.silent = {"StartServiceByName"}
    one.call(NOBODY)
    one.renew(rules(None))
    one.call(APP)
    assert [got.says for got in one.bus.seen][-2:] == ["Do", "Do"]
    assert one.play.clock == 0


# ── what comes to the client ──


def test_signals_are_judged_by_their_sender(piece: int) -> None:
    """Which says its unique name alone: nothing is asked, and a deny is about all that it sends."""
    one = scene(piece, [{"receive": SECRET}])
    one.play.backend(arriving(SIGNAL, None, SECRET_OWNER))
    one.play.backend(arriving(SIGNAL, ME, SECRET_OWNER))
    one.play.backend(arriving(SIGNAL, None, STRANGER))
    assert [got.fields.sender for got in one.got()] == [STRANGER]
    one.bus.owner_changes(SECRET, STRANGER)
    one.play.backend(arriving(SIGNAL, None, STRANGER))
    assert one.said() == []
