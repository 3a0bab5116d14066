"""Names on a bus behind sockguard: who may own them, who may see them, what is started for them; and a reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.dbus import BUS, BUS_PATH, ECHO, ON_DEMAND, OTHER, SECRET, service
from tests.support.dbus_stage import APP, GUARDED, People, Stage, Way, people, stage, stages
from tests.support.dbus_wire import (
    INTERFACE,
    MEMBER,
    PATH,
    SENDER,
    SIGNAL,
    Field,
    Wire,
    call,
    error_of,
    message,
    request_name,
    to_bus,
)
from tests.support.identities import open_folder
from tests.support.reloading import sockguard

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
UNKNOWN: Final = "org.freedesktop.DBus.Error.ServiceUnknown"
THIRD: Final = "org.example.Third"
CHANGES: Final = f"type='signal',sender='{BUS}',member='NameOwnerChanged'"
PRIMARY_OWNER: Final = 1  # RequestName, dbus specification, Message Bus Messages


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who) as made:
        yield made


@pytest.fixture(params=GUARDED)
def guarded(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


def owner_of(place: Stage, name: str) -> str:
    """The unique name, asked for behind the guard."""
    with Wire(place.bus.path) as wire:
        wire.send(to_bus(2, "GetNameOwner", name))
        return str(wire.answer(2).body[0])


def next_change(wire: Wire) -> tuple[str, str, str]:
    """The next NameOwnerChanged: name, old owner, new owner. Other messages are passed over."""
    while True:
        told = wire.receive()
        if told.header.fields.get(MEMBER) == "NameOwnerChanged":
            name, old, new = told.body
            return name, old, new


# ── who is meant by a name ──


def test_owning_is_not_sticky(guarded: Stage) -> None:
    """Its unique name means the owner as long as it owns, and nobody afterwards."""
    unique = owner_of(guarded, ECHO)
    wire = guarded.wire("reader")
    wire.send(to_bus(2, "AddMatch", CHANGES))
    wire.answer(2)
    wire.send(call(3, unique, "Echo", text="by its unique name"))
    assert wire.answer(3).body == ("by its unique name",)
    with Wire(guarded.bus.path) as behind:
        behind.send(call(3, SECRET, "Release", text=ECHO))
        behind.answer(3)
        try:
            assert next_change(wire) == (ECHO, unique, "")
            before = guarded_calls(behind)
            wire.send(call(4, unique, "Echo", text="no longer"))
            assert error_of(wire.answer(4)) == DENIED
            wire.send(call(5, ECHO, "Echo", text="no longer"))
            assert error_of(wire.answer(5)) == UNKNOWN
            assert guarded_calls(behind) == before
        finally:
            behind.send(call(6, SECRET, "Own", text=ECHO))
            behind.answer(6)
        assert next_change(wire) == (ECHO, "", unique)
    wire.send(call(7, unique, "Echo", text="again"))
    assert wire.answer(7).body == ("again",)


def guarded_calls(behind: Wire) -> list[str]:
    """What has come to the service, asked for by its other name."""
    behind.send(call(99, SECRET, "Calls"))
    return list(behind.answer(99).body[0])


def test_a_unique_name_of_another_is_denied(guarded: Stage) -> None:
    """And so is a second name of a service that the rules do not name."""
    wire = guarded.wire("reader")
    for serial, name in enumerate((owner_of(guarded, OTHER), OTHER, SECRET, ":1.99999"), start=2):
        wire.send(call(serial, name, "Echo", text="not to come"))
        assert error_of(wire.answer(serial)) == DENIED
    with Wire(guarded.bus.path) as behind:
        assert "Echo not to come" not in guarded_calls(behind)


# ── what is seen ──


def test_hidden_names_do_not_exist(guarded: Stage) -> None:
    """Whatever asks about a name says of a hidden one what it would say of one that nobody has."""
    wire = guarded.wire("reader")
    hidden = (SECRET, OTHER, owner_of(guarded, OTHER), ON_DEMAND)
    questions = ("GetNameOwner", "ListQueuedOwners", "GetConnectionUnixUser", "GetConnectionCredentials")
    serial = 10
    for name in hidden:
        for member in (*questions, "GetConnectionUnixProcessID", "GetConnectionSELinuxSecurityContext"):
            serial += 1
            wire.send(to_bus(serial, member, name))
            assert error_of(wire.answer(serial)) == NO_OWNER, (member, name)
        wire.send(to_bus(serial := serial + 1, "NameHasOwner", name))
        assert wire.answer(serial).body == (False,)
    for name in (ECHO, owner_of(guarded, ECHO), wire.name, BUS):
        wire.send(to_bus(serial := serial + 1, "NameHasOwner", name))
        assert wire.answer(serial).body == (True,)
        wire.send(to_bus(serial := serial + 1, "GetConnectionUnixUser", name))
        assert not error_of(wire.answer(serial)), name


def test_lists_have_what_may_be_seen(guarded: Stage) -> None:
    lists = {}
    for name in ("admin", "reader", "owner"):
        wire = guarded.wire(name)
        for serial, member in enumerate(("ListNames", "ListActivatableNames"), start=2):
            wire.send(to_bus(serial, member))
            lists[name, member] = set(wire.answer(serial).body[0])
        assert wire.name in lists[name, "ListNames"]
        lists[name, "ListNames"].remove(wire.name)
    assert {ECHO, SECRET, OTHER, BUS} <= lists["admin", "ListNames"]
    assert lists["admin", "ListActivatableNames"] == {BUS, ON_DEMAND}
    assert lists["reader", "ListNames"] == {BUS, ECHO, owner_of(guarded, ECHO)}
    assert lists["reader", "ListActivatableNames"] == {BUS}
    assert lists["owner", "ListNames"] == {BUS}


def test_changes_of_hidden_names_are_not_told(guarded: Stage) -> None:
    """Of a client that asked for all of them, reader hears ECHO's and admin every one, connections too."""
    wires = {name: guarded.wire(name) for name in ("reader", "admin")}
    for wire in wires.values():
        wire.send(to_bus(2, "AddMatch", CHANGES))
        wire.answer(2)
    with service(guarded.bus.address, THIRD), Wire(guarded.bus.path) as behind:
        for serial, member in enumerate(("Release", "Own"), start=3):
            behind.send(call(serial, SECRET, member, text=ECHO))
            behind.answer(serial)
    unique = owner_of(guarded, ECHO)
    assert next_change(wires["reader"]) == (ECHO, unique, "")
    assert next_change(wires["reader"]) == (ECHO, "", unique)
    told = [next_change(wires["admin"])[0] for _ in range(4)]
    assert told[0].startswith(":")
    assert told[1] == THIRD
    wires["reader"].send(to_bus(3, "GetId"))
    assert wires["reader"].receive().header.fields[5] == 3, "nothing came in between"


def test_signals_come_from_those_that_may_be_heard(guarded: Stage) -> None:
    """A match for all signals, and a signal sent to the client alone: what is OTHER's does not come."""
    wire = guarded.wire("reader")
    wire.send(to_bus(2, "AddMatch", "type='signal',interface='org.example.Echo'"))
    wire.answer(2)
    behind = guarded.backstage()
    assert behind.gdbus_call(OTHER, f"{ECHO}.Emit", "hidden").good
    assert behind.gdbus_call(OTHER, f"{ECHO}.EmitTo", wire.name, "hidden").good
    assert behind.gdbus_call(ECHO, f"{ECHO}.EmitTo", wire.name, "to one").good
    assert behind.gdbus_call(ECHO, f"{ECHO}.Emit", "to all").good
    unique = owner_of(guarded, ECHO)
    for text in ("to one", "to all"):
        heard = wire.receive()
        assert (heard.header.fields[SENDER], heard.body) == (unique, (text,))
    guarded.denied("receive ", "reader")


# ── owning ──


def test_own_is_exact(guarded: Stage) -> None:
    """dbus-broker, pull 462: `own` of one name took the names below it as well."""
    wire = guarded.wire("owner")
    names = (f"{APP}.Below", f"{APP}.Below.More", f"{APP}x", "org.example", "org.example.app", ECHO, ON_DEMAND)
    for serial, name in enumerate(names, start=10):
        wire.send(request_name(serial, name))
        assert error_of(wire.answer(serial)) == DENIED, name
        guarded.denied(f"own {name}", "owner")
    wire.send(request_name(2, APP))
    assert wire.answer(2).body == (PRIMARY_OWNER,)
    assert owner_of(guarded, APP) == wire.name
    wire.send(to_bus(3, "ReleaseName", APP))
    assert wire.answer(3).body == (1,)
    wire.send(to_bus(4, "ReleaseName", SECRET))
    assert error_of(wire.answer(4)) == DENIED


def test_signals_of_a_client(guarded: Stage) -> None:
    """Who owns a name may say something to all; who owns none, and may not call everyone, may not."""
    said = [Field(PATH, "/org/example"), Field(INTERFACE, ECHO), Field(MEMBER, "Spread")]
    owner, reader = guarded.wire("owner"), guarded.wire("reader")
    with Wire(guarded.bus.path) as behind:
        behind.send(to_bus(2, "AddMatch", "type='signal',member='Spread'"))
        behind.answer(2)
        reader.send(message(SIGNAL, 2, said))
        owner.send(message(SIGNAL, 2, said))
        for wire in (reader, owner):  # what was said before this is through, or is dropped
            wire.send(to_bus(3, "GetId"))
            wire.answer(3)
        owner.send(request_name(4, APP))
        owner.answer(4)
        owner.send(message(SIGNAL, 5, said))
        while (heard := behind.receive()).header.fields.get(MEMBER) != "Spread":
            pass
        assert heard.header.fields[SENDER] == owner.name
        behind.send(to_bus(3, "GetId"))
        assert behind.receive().header.fields[5] == 3, "one signal, no more"
    owner.send(to_bus(6, "ReleaseName", APP))
    owner.answer(6)


# ── activation ──


def test_a_denied_name_is_not_started(ways: dict[Way, Stage]) -> None:
    """dbus-broker, pull 462: started before the policy was asked. By no call, no signal, and not by its own request."""
    for way in GUARDED:
        for name in ("reader", "owner"):
            wire = ways[way].wire(name)
            wire.send(call(2, ON_DEMAND, "Echo", text="wake up"))
            assert error_of(wire.answer(2)) == DENIED
            wire.send(call(3, ON_DEMAND, "Ping", interface="org.freedesktop.DBus.Peer"))
            assert error_of(wire.answer(3)) == DENIED
            for serial, more in ((4, {}), (5, {"interface": None}), (6, {"path": "/"})):
                wire.send(start_service(serial, ON_DEMAND, **more))
                assert error_of(wire.answer(serial)) == DENIED
            signal = [Field(PATH, "/"), Field(INTERFACE, ECHO), Field(MEMBER, "Wake"), Field(6, ON_DEMAND)]
            wire.send(message(SIGNAL, 7, signal))
            wire.send(to_bus(8, "GetId"))
            wire.answer(8)
            assert starts(ways[way]) == 0
            assert not ways[way].bus.started.exists()
    for way in GUARDED:
        wire = ways[way].wire("admin")
        wire.send(call(2, ON_DEMAND, "Echo", text="wake up"))
        assert wire.answer(2).body == ("wake up",)
        assert ways[way].bus.started.exists()
        assert starts(ways[way]) == 1


def starts(place: Stage) -> int:
    """How many services the bus has started. It says so first, and answers then whoever asked it something later."""
    return (place.bus.path.parent / "log").read_text().count("Activating service")


def start_service(serial: int, name: str, *, interface: str | None = BUS, path: str = BUS_PATH) -> bytes:
    return request_name(serial, name, member="StartServiceByName", interface=interface, path=path)


# ── a reload ──


@pytest.mark.parametrize("way", GUARDED)
def test_reload_judges_what_is_owned_and_asked_next(folder: Path, who: People, way: Way) -> None:
    """A name that its owner may have no longer goes back, and it is told so; its connection goes on."""
    with stage(folder, who, way) as place:
        assert place.daemon is not None
        owner, reader = place.wire("owner"), place.wire("reader")
        owner.send(request_name(2, APP))
        assert owner.answer(2).body == (PRIMARY_OWNER,)
        reader.send(call(2, ECHO, "Echo", text="before"))
        assert reader.answer(2).body == ("before",)
        file = place.daemon.config
        file.write_text(
            file.read_text()
            .replace('{ own = "org.example.App" }', '{ own = "org.example.Nothing" }')
            .replace('{ destination = "org.example.Echo" }', '{ destination = "org.example.Other" }')
        )
        done = sockguard("reload", "--control", folder / "run" / "control.sock")
        assert done.returncode == 0, done.stderr
        while (lost := owner.receive()).header.fields.get(MEMBER) != "NameLost":
            pass
        assert (lost.header.fields[SENDER], lost.body) == (BUS, (APP,))
        assert "false" in place.backstage().gdbus_call(BUS, f"{BUS}.NameHasOwner", APP, path=BUS_PATH).out
        owner.send(request_name(3, APP))
        assert error_of(owner.answer(3)) == DENIED
        place.denied(f"own {APP}", "owner")
        for serial, name, refused in ((3, ECHO, True), (4, OTHER, False)):
            reader.send(call(serial, name, "Echo", text="after"))
            assert (error_of(reader.answer(serial)) == DENIED) == refused
