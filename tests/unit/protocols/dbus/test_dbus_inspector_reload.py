"""What the client may do is what the newest rules say, as soon as it is known what they ask about."""

from __future__ import annotations

import pytest

from sockguard.protocols.base import BACKEND
from sockguard.protocols.dbus import following, owners, wire
from sockguard.protocols.dbus.body import pack
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.wire import NO_REPLY_EXPECTED, SIGNAL
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    ME,
    PIECES,
    SECRET,
    SECRET_OWNER,
    STRANGER,
    Scene,
    arriving,
    rules,
)

TO_APP = [{"destination": APP}]
TO_SECRET = [{"destination": SECRET}]
pytestmark = pytest.mark.parametrize("piece", PIECES)


def test_other_names(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece)
    scene.renew(rules(TO_SECRET))
    for destination in (APP, APP_OWNER, SECRET, SECRET_OWNER):
        scene.call(destination)
    assert scene.said() == [DENIED] * 2
    assert [got.fields.destination for got in scene.bus.seen[-2:]] == [SECRET, SECRET_OWNER]


def test_calls_wait_until_it_is_known(piece: int) -> None:
    """No verdict on half a picture; a second change while the first is under way counts."""
    scene = Scene(rules(None), piece=piece)
    scene.bus.silent = {"GetNameOwner"}
    scene.renew(rules(None, [{"destination": SECRET}]))
    scene.call(SECRET_OWNER)
    scene.renew(rules(None, [{"destination": SECRET}, {"destination": APP}]))
    scene.call(APP_OWNER)
    assert "Do" not in scene.reached()
    assert scene.play.clock == 30.0
    scene.play.inspector.new_rules(rules(None, [{"destination": APP}]), enforce=True, tell_allowed=False)
    scene.bus.serve()
    scene.bus.silent = set()
    for serial, name in unanswered(scene):
        data = pack("s", [scene.bus.owners[name]])
        scene.play.backend(wire.method_return(scene.bus.next(), serial, ME, BUS, "s", data))
    scene.bus.serve()
    assert scene.said() == [DENIED]
    assert [got.fields.destination for got in scene.bus.seen if got.says == "Do"] == [SECRET_OWNER]
    assert scene.play.clock == 0


def unanswered(scene: Scene) -> list[tuple[int, str]]:
    """Our questions for owners that are unanswered."""
    asked = scene.play.inspector._traffic.following.asked  # type: ignore[attr-defined]
    return [(serial, name) for serial, (member, name) in asked.items() if member == "GetNameOwner"]


def test_arrivals_while_it_is_not_known(piece: int) -> None:
    """The rules from before hold for them, so that none slips through whose sender is not known yet."""
    scene = Scene(rules(None, [{"receive": SECRET}]), piece=piece)
    scene.bus.silent = {"GetNameOwner"}
    scene.renew(rules(None, [{"receive": APP}]))
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    scene.play.backend(arriving(SIGNAL, None, SECRET_OWNER))
    assert [got.fields.sender for got in scene.got()] == [APP_OWNER]
    scene.bus.owner_changes(APP, STRANGER)
    scene.bus.owner_changes(SECRET, APP_OWNER)
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER, "Other"))
    assert scene.said() == []
    for serial, _ in unanswered(scene):
        data = pack("s", [STRANGER])
        scene.play.backend(wire.method_return(scene.bus.next(), serial, ME, BUS, "s", data))
    scene.play.backend(arriving(SIGNAL, None, STRANGER))
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    assert [got.fields.sender for got in scene.got()] == [APP_OWNER]


def test_before_hello_is_answered(piece: int) -> None:
    """The rules that come in between are those that hold."""
    scene = Scene(rules(None), piece=piece, hello=False)
    scene.renew(rules(TO_APP))
    scene.ask("Hello")
    scene.call(SECRET)
    assert scene.said() == ["", DENIED]


def test_from_everything_and_back(piece: int) -> None:
    """What was asked for while all was allowed is known: names, matches of owners."""
    scene = Scene(rules(None), piece=piece)
    scene.ask("RequestName", "org.example.Mine", 0)
    scene.bus.signal("NameAcquired", "org.example.Mine", destination=ME)
    changes = f"sender='{BUS}',member='NameOwnerChanged'"
    scene.ask("AddMatch", changes)
    scene.got()
    scene.renew(rules(TO_APP))
    assert scene.reached()[-1] == "ReleaseName"
    assert scene.told() == ["denied own org.example.Mine"]
    scene.bus.owner_changes(SECRET, "")
    scene.bus.owner_changes(APP, "")
    assert [got.values for got in scene.got()] == [[APP, APP_OWNER, ""]]
    scene.renew(rules(None))
    scene.call(SECRET)
    scene.bus.owner_changes(SECRET, SECRET_OWNER)
    assert [got.values for got in scene.got()] == [[SECRET, "", SECRET_OWNER]]
    assert "Do" in scene.reached()


def test_names_are_given_back(piece: int) -> None:
    """Those that it has and those that it waits for; not while permissive; not those that it may keep."""
    mine = [{"own": "org.example.*"}]
    scene = Scene(rules(mine), piece=piece)
    for name in (APP, SECRET):
        scene.ask("RequestName", name, 0)
    scene.bus.signal("NameAcquired", "org.example.Given", destination=ME)
    scene.reached()
    scene.renew(rules(), enforce=False)
    assert scene.reached() == []
    scene.renew(rules([{"own": APP}]))
    released = [got.values[0] for got in scene.bus.seen if got.says == "ReleaseName"]
    assert released == ["org.example.Given", SECRET]
    scene.renew(rules([{"own": APP}, {"own": SECRET}]))
    scene.bus.seen.clear()
    scene.renew(rules())
    assert [got.values[0] for got in scene.bus.seen if got.says == "ReleaseName"][-1] == APP


def test_owners_are_forgotten_with_the_rules(piece: int) -> None:
    """Who was the owner while nobody followed is none later, though the bus lists no such name to ask for."""
    family = rules([{"destination": "org.example.*"}])
    scene = Scene(family, piece=piece)
    scene.renew(rules([{"destination": "com.example.App"}]))
    scene.bus.owner_changes(APP, "")
    scene.renew(family)
    scene.call(APP_OWNER)
    assert scene.said() == [DENIED]


def test_permissive_and_back(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece)
    for enforce in (False, True):
        scene.renew(rules(TO_APP), enforce=enforce)
        scene.reached()
        scene.call(SECRET)
        assert (scene.reached() == ["Do"]) != enforce


# ── what is asked ──


def test_many_names_are_listed_first(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns, and more names than are asked for one by one: only those that there are."""
    scene = Scene(rules([{"destination": "org.example.*"}]), piece=piece, hello=False)
    scene.ask("Hello")
    assert scene.reached() == ["Hello", "AddMatch", "ListNames", "GetNameOwner", "GetNameOwner"]
    monkeypatch.setattr(following, "MAX_ASKED_SINGLY", 2)
    scene = Scene(rules([{"destination": [APP, "org.example.A", "org.example.B"]}]), piece=piece, hello=False)
    scene.ask("Hello")
    assert scene.reached() == ["Hello", *["AddMatch"] * 3, "ListNames", "GetNameOwner"]
    scene.call(APP_OWNER)
    assert scene.reached() == ["Do"]


def test_a_bound_on_matches(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the rules change: in the end one match for all changes."""
    monkeypatch.setattr(following, "MAX_MATCHES_EVER", 3)
    scene = Scene(rules(TO_APP), piece=piece)
    for number in range(6):
        scene.renew(rules([{"destination": f"org.example.N{number}"}]))
    assert len(scene.bus.matches) == 4
    assert scene.bus.matches[-1] == owners.EVERY_CHANGE


@pytest.mark.parametrize(
    ("member", "outcome"),
    [("AddMatch", "limit"), ("ListNames", "backend_malformed"), ("GetNameOwner", "backend_malformed")],
)
def test_questions_that_fail(piece: int, member: str, outcome: str) -> None:
    """Then nothing can be known of owners, and the connection cannot go on."""
    scene = Scene(rules([{"destination": "org.example.*"}]), piece=piece, hello=False)
    scene.bus.errors[member] = "org.freedesktop.DBus.Error.AccessDenied"
    scene.ask("Hello")
    assert scene.play.outcome == outcome


def test_too_many_owners(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "MAX_OWNERS", 1)
    scene = Scene(rules(TO_APP), piece=piece)
    assert scene.play.outcome is None
    scene.renew(rules([*TO_APP, *TO_SECRET]))
    assert scene.play.outcome == "limit"


def test_amid_a_message(piece: int) -> None:
    """Our questions wait until the client's message is whole; and it is not held up by them."""
    scene = Scene(rules(TO_APP), piece=piece)
    call = wire.method_call(scene.next(), "/", APP, "Do", APP, "s", pack("s", ["x" * 300]), NO_REPLY_EXPECTED)
    scene.play.client(call[:200])
    scene.renew(rules(TO_SECRET))
    scene.send(call[200:])
    assert scene.reached()[0] == "Do"
    scene.call(APP)
    scene.call(SECRET)
    assert scene.said() == [DENIED]


def test_amid_a_message_no_more_comes_than_the_new_rules_allow(piece: int) -> None:
    """A client that stops there puts off our questions, and gains nothing by it. What both rules allow comes."""
    heard = [{"receive": APP}, {"receive": SECRET}, {"destination": APP}]
    scene = Scene(rules(heard), piece=piece)
    call = wire.method_call(scene.next(), "/", APP, "Do", APP, "s", pack("s", ["x" * 300]), NO_REPLY_EXPECTED)
    scene.play.client(call[:200])
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    assert scene.said() == ["Changed"]
    scene.renew(rules([{"receive": SECRET}]))
    assert scene.reached() == []
    scene.play.backend(arriving(SIGNAL, None, APP_OWNER))
    scene.play.backend(arriving(SIGNAL, None, SECRET_OWNER))
    assert [got.fields.sender for got in scene.got()] == [SECRET_OWNER]


def test_the_time_for_the_bus_to_answer_is_the_buss(piece: int) -> None:
    """None passes while the client does not read what the bus has said before its answers."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.silent = {"GetNameOwner"}
    scene.renew(rules(TO_SECRET))
    assert (scene.play.clock, scene.play.awaited) == (30.0, BACKEND)
    scene.play.time_passes()
    assert scene.play.outcome == "timeout"
