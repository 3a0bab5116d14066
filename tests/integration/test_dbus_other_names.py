"""A deny by the name of a destination is about whoever owns that name, by whichever of its names it is called."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.support.daemon import running
from tests.support.dbus import ECHO, OTHER, SECRET, SERVICE, Bus, dbus_broker, dbus_daemon, service
from tests.support.dbus_stage import People, Stage, people
from tests.support.dbus_wire import (
    DESTINATION,
    INTERFACE,
    MEMBER,
    NO_AUTO_START,
    NO_REPLY,
    PATH,
    SIGNAL,
    Field,
    Wire,
    call,
    error_of,
    message,
    request_name,
    to_bus,
)
from tests.support.identities import PYTHON, open_folder, wait_started
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
UNKNOWN: Final = "org.freedesktop.DBus.Error.ServiceUnknown"
LATE: Final = "org.example.Late"
ALIAS: Final = "org.example.Alias"
STARTED: Final = "org.example.Started"
"""A name that the bus starts a service for, which takes LATE_STARTED a while after it."""
LATE_STARTED: Final = "org.example.LateStarted"
BROKEN: Final = "org.example.Broken"
"""A name that the bus starts a service for, which fails."""

RULES: Final = """
[proxy.client]
listen = "{folder}/client"
backend = "{backend}"
protocol = "dbus"
identity = "client"
allow_root_identity = true
[[proxy.client.allow]]
users = ["*"]
[[proxy.client.deny]]
name = "names"
users = [{admin}]
dbus = [
  {{ destination = ["org.example.Echo", "org.example.Late", "org.example.LateStarted"] }},
  {{ receive = "org.example.Echo" }},
]
[[proxy.client.deny]]
name = "narrow"
users = [{reader}]
dbus = [{{ destination = "org.example.Echo", path = "/org/example", interface = "org.example.Secret" }}]
"""
BUSES: Final = {"dbus-daemon": dbus_daemon, "dbus-broker": dbus_broker}
Kind = Literal["dbus-daemon", "dbus-broker"]


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@contextlib.contextmanager
def staged(kind: Kind, folder: Path, who: People) -> Iterator[Stage]:
    private = private_folder(folder, 0) / "bus"
    services = private.parent / "services"
    services.mkdir()
    started = f"{PYTHON} -I {SERVICE} unix:path={private} {STARTED} {LATE_STARTED} --slowly"
    for name, program in ((STARTED, started), (BROKEN, "/bin/false")):
        (services / f"{name}.service").write_text(f"[D-BUS Service]\nName={name}\nExec={program}\n")
    with BUSES[kind](private) as bus, service(bus.address, ECHO, SECRET), service(bus.address, OTHER):
        file = folder / "sockguard.toml"
        file.write_text(RULES.format(folder=folder, backend=private, admin=who.admin.uid, reader=who.reader.uid))
        with running(file, folder / "client") as daemon:
            wait_started(daemon)
            place = Stage(folder, bus, who, folder / "client", daemon, "client")
            yield place
            place.close()


@pytest.fixture(scope="module", params=BUSES)
def place(request: pytest.FixtureRequest, who: People) -> Iterator[Stage]:
    with open_folder() as folder, staged(request.param, folder, who) as made:
        yield made


def calls_of(bus: Bus, name: str) -> list[str]:
    """What has come to the service of that name."""
    with Wire(bus.path) as behind:
        behind.send(call(2, name, "Calls"))
        return list(behind.answer(2).body[0])


def owner_of(bus: Bus, name: str) -> str:
    with Wire(bus.path) as behind:
        behind.send(to_bus(2, "GetNameOwner", name))
        return str(behind.answer(2).body[0])


def passed(wire: Wire, serial: int, name: str, **more: object) -> bool:
    """Whether a call with text came through; else it must have been denied."""
    wire.send(call(serial, name, "Echo", text=f"text {serial}", **more))  # type: ignore[arg-type]
    answer = wire.answer(serial)
    assert error_of(answer) in ("", DENIED)
    return not error_of(answer)


def in_step(wire: Wire) -> None:
    """What the bus said before this has reached the guard, too."""
    wire.send(to_bus(0x6666, "GetId"))
    wire.answer(0x6666)


def test_every_name_of_the_owner(place: Stage) -> None:
    """Calls that want no answer and signals to it, too; each is told. Others are called as ever."""
    unique = owner_of(place.bus, ECHO)
    wire = place.wire("admin")
    for serial, name in enumerate((ECHO, unique, SECRET), start=2):
        assert not passed(wire, serial, name)
    for name in (ECHO, SECRET):
        place.denied(f"call {name} /org/example org.example.Echo.Echo", "admin")
    wire.send(call(8, SECRET, "Echo", text="no answer", flags=NO_REPLY))
    wire.send(call(9, SECRET, "Echo", text="no interface", interface=None, order=">"))
    assert error_of(wire.answer(9)) == DENIED
    poke = [Field(PATH, "/"), Field(INTERFACE, ECHO), Field(MEMBER, "Poke"), Field(DESTINATION, SECRET)]
    wire.send(message(SIGNAL, 10, poke))
    place.denied(f"call {SECRET} / org.example.Echo.Poke", "admin")
    assert passed(wire, 11, OTHER)
    assert passed(place.wire("owner"), 11, SECRET)
    assert not {f"Echo text {serial}" for serial in range(2, 5)} & set(calls_of(place.bus, ECHO))
    assert not {"Echo no answer", "Echo no interface"} & set(calls_of(place.bus, ECHO))


def test_what_narrows_the_deny(place: Stage) -> None:
    """It is passed by no other name; nor by leaving the interface out, with which a service finds the member."""
    wire = place.wire("reader")
    assert passed(wire, 2, SECRET)
    for serial, interface in ((3, "org.example.Secret"), (4, None)):
        wire.send(call(serial, SECRET, "Reveal", text="x", interface=interface))
        assert error_of(wire.answer(serial)) == DENIED
    wire.send(call(5, OTHER, "Reveal", text="x", interface=None))
    assert wire.answer(5).body == ("the secret of x",)


def test_names_that_the_owner_takes_later(place: Stage) -> None:
    """The deny is about it for as long as it owns that name, and known by names that it has taken since."""
    wire = place.wire("admin")
    assert passed(wire, 2, OTHER)
    with Wire(place.bus.path) as behind:
        for serial, (member, name) in enumerate((("Own", LATE), ("Own", ALIAS)), start=2):
            behind.send(call(serial, OTHER, member, text=name))
            assert not error_of(behind.answer(serial))
        in_step(wire)
        for serial, name in enumerate((OTHER, ALIAS, LATE, owner_of(place.bus, OTHER)), start=3):
            assert not passed(wire, serial, name)
        behind.send(call(8, OTHER, "Release", text=LATE))
        assert not error_of(behind.answer(8))
        in_step(wire)
        for serial, name in enumerate((OTHER, ALIAS, owner_of(place.bus, OTHER)), start=9):
            assert passed(wire, serial, name)
        behind.send(call(9, OTHER, "Release", text=ALIAS))
        behind.answer(9)


def test_a_name_that_moves_to_the_owner(place: Stage) -> None:
    """Known as that of somebody else, then taken over by the peer that the deny is about; and given back."""
    wire = place.wire("admin")
    with Wire(place.bus.path) as behind:
        serial = 2
        for new, old, expected in ((OTHER, None, True), (SECRET, OTHER, False), (OTHER, SECRET, True)):
            for member, name in (("Release", old), ("Own", new)):
                if name is not None:
                    behind.send(call(serial := serial + 1, name, member, text=ALIAS))
                    assert not error_of(behind.answer(serial))
            in_step(wire)
            assert passed(wire, serial, ALIAS) == expected
        behind.send(call(50, OTHER, "Release", text=ALIAS))
        behind.answer(50)


def test_who_waits_for_a_name_does_not_own_it(place: Stage) -> None:
    wire = place.wire("admin")
    with Wire(place.bus.path) as first, Wire(place.bus.path) as second:
        first.send(request_name(2, LATE))
        assert first.answer(2).body == (1,)
        for serial, name, answer in ((2, ALIAS, 1), (3, LATE, 2)):  # primary owner, in queue
            second.send(request_name(serial, name))
            assert second.answer(serial).body == (answer,)
        wire.send(call(3, ALIAS, "Echo", text="x", flags=NO_REPLY))
        while second.receive().header.fields.get(MEMBER) != "Echo":
            pass
        first.send(to_bus(3, "ReleaseName", LATE))
        first.answer(3)
        in_step(wire)
        assert not passed(wire, 4, ALIAS)
        first.send(call(5, ALIAS, "Echo", text="x"))
        while (got := second.receive()).header.fields.get(MEMBER) != "Echo":
            pass
        assert got.header.fields[7] == first.name, "nothing came from the client in between"


def test_a_name_that_changes_its_owner_under_way(place: Stage) -> None:
    """A client that owns a name by another connection gives it up just as a call to it is judged; next in its queue is
    the peer that the deny is about. The call does not come to that one.
    """
    assert place.daemon is not None
    wire = place.wire("admin")
    with Wire(place.bus.path) as mine, Wire(place.bus.path) as denied:
        for peer, serial, name, answer in ((mine, 2, ALIAS, 1), (denied, 2, LATE, 1), (denied, 3, ALIAS, 2)):
            peer.send(request_name(serial, name))
            assert peer.answer(serial).body == (answer,)
        wire.send(call(2, ALIAS, "Known", flags=NO_REPLY))
        in_step(wire)
        relays = place.daemon.pids()["sockguard-relay"]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            if number == signal.SIGCONT:
                wire.send(call(3, ALIAS, "Late", flags=NO_REPLY))
                mine.send(to_bus(3, "ReleaseName", ALIAS))
                assert mine.answer(3).body == (1,)
            for pid in relays:
                os.kill(pid, number)
        in_step(wire)
        assert not passed(wire, 4, ALIAS)
        for peer in (mine, denied):
            peer.send(call(9, peer.name, "Last", flags=NO_REPLY))
        assert calls_to(mine) == ["Late"]
        assert calls_to(denied) == []


def calls_to(peer: Wire) -> list[str]:
    """The members that it was called by, up to "Last"."""
    found = []
    while (member := peer.receive().header.fields.get(MEMBER)) != "Last":
        if member == "Late":
            found.append(member)
    return found


def test_a_peer_with_very_many_names(place: Stage) -> None:
    """More than are kept and followed for one client: each is asked for again, and the deny holds by each."""
    names = [f"org.example.Many{index}" for index in range(300)]
    wire = place.wire("admin")
    with Wire(place.bus.path) as many:
        for serial, name in enumerate((*names, LATE), start=2):
            many.send(request_name(serial, name))
            assert many.answer(serial).body == (1,)
        for serial, name in enumerate((*names, *names[:3]), start=2):
            assert not passed(wire, serial, name)
    assert passed(wire, 900, OTHER)


def test_signals_of_every_name(place: Stage) -> None:
    """A deny of `receive` is about the sender, which a message names by its unique name alone."""
    wire = place.wire("admin")
    for serial, sender in enumerate((SECRET, ECHO, OTHER), start=2):
        wire.send(to_bus(serial, "AddMatch", f"type='signal',sender='{sender}'"))
        wire.answer(serial)
    with Wire(place.bus.path) as behind:
        for serial, (name, member) in enumerate(((SECRET, "Emit"), (SECRET, "Leak"), (OTHER, "Emit")), start=2):
            behind.send(call(serial, name, member, text=f"from {name}"))
            behind.answer(serial)
    while (got := wire.receive()).header.fields.get(MEMBER) not in ("Said", "Leaked"):
        pass
    assert got.body == (f"from {OTHER}",)


def test_names_that_nobody_owns(place: Stage) -> None:
    """The bus's own error comes back, as where nothing is denied by name."""
    errors = []
    for name in ("admin", "owner"):
        wire = place.wire(name)
        for serial, (to, flags) in enumerate(
            (("org.example.Nobody", 0), ("org.example.Nobody", NO_AUTO_START), (":1.99999", 0)), start=2
        ):
            wire.send(call(serial, to, "Echo", text="x", flags=flags))
            answer = wire.answer(serial)
            errors.append((error_of(answer), answer.body))
    assert errors[:3] == errors[3:]


# ── services that are started ──


@pytest.fixture
def daemon_bus(folder: Path, who: People) -> Iterator[Stage]:
    with staged("dbus-daemon", folder, who) as made:
        yield made


@pytest.mark.parametrize("several", [False, True], ids=["one call", "several calls"])
def test_a_service_that_is_started(daemon_bus: Stage, several: bool) -> None:
    """The bus would hand the call over as soon as the service has its first name, which nothing denies."""
    wire = daemon_bus.wire("admin")
    serials = range(2, 5 if several else 3)
    for serial in serials:
        wire.send(call(serial, STARTED, "Echo", text=f"text {serial}"))
    wire.send(call(9, OTHER, "Echo", text="behind it"))
    for serial in serials:
        assert error_of(wire.answer(serial)) == DENIED
    assert wire.answer(9).body == ("behind it",)
    daemon_bus.denied(f"call {STARTED} ", "admin")
    assert calls_of(daemon_bus.bus, STARTED) == []


def test_a_service_that_is_started_by_who_may(daemon_bus: Stage) -> None:
    wire = daemon_bus.wire("reader")
    wire.send(call(2, STARTED, "Reveal", text="x", interface=None))
    assert wire.answer(2).body == ("the secret of x",)


def test_a_service_that_does_not_start(daemon_bus: Stage) -> None:
    """The same error as from the bus, and the connection goes on."""
    told = []
    for name in ("admin", "owner"):
        wire = daemon_bus.wire(name)
        for serial in (2, 3):
            wire.send(call(serial, BROKEN, "Echo", text="x"))
            answer = wire.answer(serial)
            told.append((error_of(answer), answer.body))
        assert passed(wire, 4, OTHER)
    assert told[:2] == told[2:]
    assert told[0][0].startswith("org.freedesktop.DBus.Error.Spawn")
