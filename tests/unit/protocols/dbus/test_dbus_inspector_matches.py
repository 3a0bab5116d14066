"""Match rules of the client beside our own, and what it hears of owners by them."""

from __future__ import annotations

import pytest

from sockguard.protocols.dbus import bus_calls
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.wire import NO_REPLY_EXPECTED
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    LIMITS,
    PATH,
    PIECES,
    SECRET,
    STRANGER,
    Scene,
    rules,
)

TO_APP = [{"destination": APP}]
MATCH_NOT_FOUND = "org.freedesktop.DBus.Error.MatchRuleNotFound"
CHANGES = f"type='signal',sender='{BUS}',path='{PATH}',interface='{BUS}',member='NameOwnerChanged'"
OURS = f"{CHANGES},arg0='{APP}'"
pytestmark = pytest.mark.parametrize("piece", PIECES)


@pytest.mark.parametrize("rule", ["eavesdrop=true", " eavesdrop ='true'", "type='signal', eavesdrop='tr''ue'"])
def test_eavesdropping(piece: int, rule: str) -> None:
    """CVE-2026-34080: however it is written. One who may do anything may do this."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.ask("AddMatch", rule)
    assert scene.said() == [DENIED]
    assert scene.reached() == []
    scene = Scene(rules(None), piece=piece)
    scene.ask("AddMatch", rule)
    assert scene.said() == [""]
    scene = Scene(rules(TO_APP), piece=piece, enforce=False)
    scene.ask("AddMatch", rule)
    assert scene.said() == [""]
    assert scene.told() == [f"would_deny call {BUS} {PATH} {BUS}.AddMatch eavesdrop=true"]


def test_changes_of_owners(piece: int) -> None:
    """Only of names that may be seen, and only if asked for: our own match brings them anyway."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.owner_changes(APP, ":1.55")
    scene.bus.owner_changes(SECRET, ":1.66")
    assert scene.got() == []
    scene.ask("AddMatch", CHANGES)
    scene.got()
    scene.bus.owner_changes(SECRET, "")
    scene.bus.owner_changes(STRANGER, STRANGER)
    scene.bus.owner_changes(APP, "")
    scene.bus.signal("NameOwnerChanged", ":1.55", ":1.55", "")
    scene.bus.signal("NameOwnerChanged", ":1.66", ":1.66", "")
    assert [got.values for got in scene.got()] == [[APP, ":1.55", ""], [":1.55", ":1.55", ""]]
    scene.ask("RemoveMatch", CHANGES)
    scene.got()
    scene.bus.owner_changes(APP, ":1.55")
    assert scene.got() == []


def test_owning_is_not_sticky(piece: int) -> None:
    scene = Scene(rules(TO_APP), piece=piece)
    scene.call(APP_OWNER)
    scene.bus.owner_changes(APP, STRANGER)
    scene.call(APP_OWNER)
    scene.call(STRANGER)
    assert [got.fields.destination for got in scene.bus.seen] == [APP_OWNER, STRANGER]
    assert scene.said() == [DENIED]


@pytest.mark.parametrize("more", ["", ",eavesdrop='false'", ",eavesdrop=true"])
def test_our_matches_stay(piece: int, more: str) -> None:
    """The client cannot take back a match of ours, so as to have us believe in an owner that is none any more."""
    scene = Scene(rules(TO_APP), piece=piece, enforce="true" not in more)
    assert scene.bus.matches == [OURS]
    scene.ask("RemoveMatch", OURS + more)
    assert scene.said() == [MATCH_NOT_FOUND]
    scene.bus.errors["AddMatch"] = LIMITS
    for member, flags in (("AddMatch", 0), ("RemoveMatch", NO_REPLY_EXPECTED), ("RemoveMatch", 0)):
        scene.ask(member, OURS + more, flags=flags)
    assert scene.said() == ["", MATCH_NOT_FOUND]
    assert scene.bus.matches == [OURS]
    assert scene.reached() == []


def test_matches_of_the_client(piece: int) -> None:
    """Go to the bus; one that the bus refuses is none."""
    scene = Scene(rules(TO_APP), piece=piece)
    for member in ("AddMatch", "AddMatch", "RemoveMatch", "RemoveMatch", "RemoveMatch"):
        scene.ask(member, "type='signal',interface='org.example.App'")
        scene.ask(member, CHANGES)
    assert scene.said() == [""] * 8 + [MATCH_NOT_FOUND] * 2
    assert scene.bus.matches == [OURS]
    scene.bus.errors["AddMatch"] = LIMITS
    scene.ask("AddMatch", CHANGES)
    scene.got()
    scene.bus.owner_changes(APP, "")
    assert scene.got() == []


def test_a_bound_on_subscriptions(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_calls, "MAX_SUBSCRIPTIONS", 1)
    scene = Scene(rules(TO_APP), piece=piece)
    for rule in (CHANGES, CHANGES, "member='NameOwnerChanged'", "member='Other'"):
        scene.ask("AddMatch", rule)
    assert scene.said() == ["", "", LIMITS, ""]
