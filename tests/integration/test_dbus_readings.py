"""What a bus or a service takes in another way than it is written: a deny is about every reading of a message."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import running
from tests.support.dbus import BUS, BUS_PATH, ECHO, SECRET, dbus_broker, dbus_daemon, service
from tests.support.dbus_stage import People, Stage, people
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    INTERFACE,
    MEMBER,
    PATH,
    SIGNATURE,
    Closed,
    Field,
    call,
    error_of,
    message,
    to_bus,
    value,
)
from tests.support.identities import open_folder, wait_started
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
MONITORING: Final = "org.freedesktop.DBus.Monitoring"
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
users = [{admin}]
dbus = [
  {{ destination = "org.freedesktop.DBus", path = "/org/freedesktop/DBus", member = "ListNames" }},
  {{ destination = "org.freedesktop.DBus", path = "/org/freedesktop/**", member = "GetConnectionUnixUser" }},
  {{ destination = "org.example.Echo", interface = "org.example.Secret" }},
]
[[proxy.client.deny]]
name = "not to hear"
users = [0]
dbus = [{{ receive = "org.example.Echo", member = "Said" }}]
"""


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@contextlib.contextmanager
def staged(made_by: Callable[[Path], contextlib.AbstractContextManager[object]], who: People) -> Iterator[Stage]:
    with open_folder() as folder:
        private = private_folder(folder, 0) / "bus"
        with made_by(private) as bus, service(bus.address, ECHO, SECRET):  # type: ignore[attr-defined]
            file = folder / "sockguard.toml"
            file.write_text(RULES.format(folder=folder, backend=private, admin=who.admin.uid))
            with running(file, folder / "client") as daemon:
                wait_started(daemon)
                place = Stage(folder, bus, who, folder / "client", daemon, "client")  # type: ignore[arg-type]
                yield place
                place.close()


@pytest.fixture(scope="module", params=[dbus_daemon, dbus_broker])
def place(request: pytest.FixtureRequest, who: People) -> Iterator[Stage]:
    with staged(request.param, who) as made:
        yield made


@pytest.mark.parametrize("path", [BUS_PATH, "/", "/org/example"])
@pytest.mark.parametrize("interface", [BUS, None])
@pytest.mark.parametrize("order", "<>")
def test_the_bus_on_any_path(place: Stage, path: str, interface: str | None, order: str) -> None:
    """It answers on every path alike, so a deny by the path is one of all paths; the rest still narrows it."""
    wire = place.wire("admin")
    wire.send(call(2, BUS, "ListNames", path=path, interface=interface, order=order))
    assert error_of(wire.answer(2)) == DENIED
    wire.send(call(3, BUS, "GetConnectionUnixUser", path=path, interface=interface, order=order, text=ECHO))
    assert error_of(wire.answer(3)) == DENIED
    wire.send(call(4, BUS, "GetNameOwner", path=path, interface=interface, order=order, text=ECHO))
    assert not error_of(wire.answer(4))


@pytest.mark.parametrize("order", "<>")
def test_an_interface_that_is_left_out(place: Stage, order: str) -> None:
    """A service finds the member all the same."""
    wire = place.wire("admin")
    for serial, (name, interface) in enumerate(((ECHO, SECRET), (ECHO, None), (SECRET, None)), start=2):
        wire.send(call(serial, name, "Reveal", text="x", interface=interface, order=order))
        assert error_of(wire.answer(serial)) == DENIED
    wire.send(call(9, ECHO, "Echo", text="x", order=order))
    assert wire.answer(9).body == ("x",)


@pytest.mark.parametrize(
    "more",
    [
        [Field(DESTINATION, "org.example.Nobody")],
        [Field(DESTINATION, "")],
        [Field(MEMBER, "Echo")],
        [Field(INTERFACE, "org.example.Echo")],
        [Field(PATH, "/org/example")],
        [Field(10, "x"), Field(10, "x")],
        [Field(0, "x")],
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_header_with_two_readings(place: Stage, more: list[Field], first: bool) -> None:
    """A field twice, one that is empty or invalid: it ends the connection, before anything is passed on."""
    parts = [Field(PATH, "/org/example"), Field(INTERFACE, ECHO), Field(MEMBER, "Echo"), Field(DESTINATION, ECHO)]
    fields = [*more, *parts] if first else [*parts, *more]
    wire = place.wire("owner")
    body = value("s", "two readings", "<")
    wire.send(message(CALL, 2, [*fields, Field(SIGNATURE, "s")], body))
    with pytest.raises(Closed):
        wire.answer(2)
    assert "Echo two readings" not in place.calls()


def test_what_may_not_be_heard_is_not_overheard(place: Stage) -> None:
    """A monitor hears everybody, and so may an eavesdropper: no deny of `receive` is passed by that."""
    behind = place.backstage()
    body = value("u", 0, "<") + value("u", 0, "<")
    for interface in (MONITORING, None):
        wire = place.wire("root")
        parts = [
            Field(PATH, BUS_PATH),
            Field(MEMBER, "BecomeMonitor"),
            Field(DESTINATION, BUS),
            Field(SIGNATURE, "asu"),
        ]
        wire.send(message(CALL, 2, [*parts, *([Field(INTERFACE, interface)] if interface else [])], body))
        assert error_of(wire.answer(2)) == DENIED
        wire.send(to_bus(3, "AddMatch", "eavesdrop=true,type='signal'"))
        assert error_of(wire.answer(3)) == DENIED
        wire.send(to_bus(4, "AddMatch", "type='signal'"))
        wire.answer(4)
        assert behind.gdbus_call(SECRET, f"{ECHO}.Emit", "not to be heard").good
        assert behind.gdbus_call(SECRET, f"{ECHO}.Leak", "to be heard").good
        while (got := wire.receive()).header.fields.get(MEMBER) not in ("Said", "Leaked"):
            pass
        assert got.body == ("to be heard",)
