"""One message alone takes a short way through the inspector. It may do nothing that the long way would not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from sockguard.protocols.base import BACKEND, CLIENT, Source
from sockguard.protocols.dbus import body, wire
from sockguard.protocols.dbus.inspector import MAX_JUDGED, DbusInspector
from sockguard.protocols.dbus.names import BUS
from tests.unit.protocols.dbus.making import message, number, text
from tests.unit.protocols.dbus.scripted import APP, ME, PATH, SECRET, STRANGER, Scene, arriving, rules

MONITORING: Final = "org.freedesktop.DBus.Monitoring"
RULES: Final = [
    rules([{"destination": APP}, {"own": APP}]),
    rules([{"destination": APP, "interface": APP}, {"receive": SECRET}], deny=[{"destination": APP, "member": "Bad"}]),
    rules([{"destination": BUS, "interface": MONITORING}, {"destination": SECRET}]),
    rules(None, deny=[{"destination": SECRET}]),
    rules([]),
    rules(None),
]


class LongWay(DbusInspector):
    """Takes every message the way of many."""

    def received(self, source: Source, data: memoryview, fds: int) -> int:
        return self._received(source, data, fds) if self._serving else super().received(source, data, fds)


@dataclass(frozen=True)
class Said:
    """What one side writes at a time; fds: as many come with it."""

    by: Source
    data: bytes
    fds: int


@dataclass(frozen=True)
class Renewed:
    rules: int
    enforce: bool


@dataclass(frozen=True)
class Owned:
    name: str
    by: str


def call(serial: int, to: str, member: str, flags: int, fds: tuple[int, int], size: int) -> tuple[bytes, int]:
    """fds: how many it says it has, and how many come; size: numbers in its body."""
    said, come = fds
    endian = ">" if size == 3 else "<"
    fields = [
        text(1, "o", b"/org/example/App", endian), text(2, "s", APP.encode(), endian),
        text(3, "s", member.encode(), endian), text(6, "s", to.encode(), endian),
    ]  # fmt: skip
    if size:
        fields.append(text(8, "g", b"u" * size, endian))
    if said:
        fields.append(number(9, said, endian))
    return message(wire.METHOD_CALL, fields, serial=serial, flags=flags, endian=endian, body=bytes(4 * size)), come


def smuggled(serial: int, to: str, inner: tuple[bytes, int]) -> tuple[bytes, int]:
    """A call whose body is another message, as a row of numbers."""
    content, _ = inner
    fields = [
        text(1, "o", b"/"), text(3, "s", b"Do"), text(6, "s", to.encode()), text(8, "g", b"u" * (len(content) // 4))
    ]  # fmt: skip
    return message(wire.METHOD_CALL, fields, serial=serial, body=content), 0


def bus_call(serial: int, asked: tuple[str, str, list[body.Value]], flags: int) -> tuple[bytes, int]:
    member, signature, values = asked
    interface = MONITORING if member == "BecomeMonitor" else BUS
    return wire.method_call(serial, PATH, interface, member, BUS, signature, body.pack(signature, values), flags), 0


def change(serial: int, values: list[str]) -> tuple[bytes, int]:
    """Of an owner, well said or not."""
    signature = "s" * len(values)
    packed = body.pack(signature, values)
    return wire.signal(serial, PATH, BUS, "NameOwnerChanged", signature, packed, BUS), 0


def broadcast(serial: int, to: str | None) -> tuple[bytes, int]:
    return wire.signal(serial, "/", APP, "Changed", "", b"", None, to), 0


def answer(serial: int, reply_to: int, to: str) -> tuple[bytes, int]:
    return wire.method_return(serial, reply_to, to, None, "", b""), 0


def arrival(kind: int, to: str | None, sender: str, serial: int, reply_to: int, flags: int) -> tuple[bytes, int]:
    needs = kind in (wire.METHOD_RETURN, wire.ERROR)
    return arriving(kind, to, sender, serial=serial, reply_to=reply_to if needs else 0, flags=flags), 0


SERIAL: Final = st.integers(1, 30)
FLAGS: Final = st.sampled_from([0, 0, wire.NO_REPLY_EXPECTED])
PEER: Final = st.sampled_from([":1.5", ":1.6", STRANGER])
ASKED: Final = st.sampled_from(
    [
        ("ListNames", "", []), ("ListNames", "", []), ("GetId", "", []), ("RequestName", "su", [APP, 0]),
        ("ReleaseName", "s", [APP]),
        ("AddMatch", "s", ["type='signal'"]), ("RemoveMatch", "s", ["type='signal'"]), ("AddMatch", "s", ["x"]),
        ("GetNameOwner", "s", [SECRET]), ("NameHasOwner", "s", [APP]), ("Hello", "", []), ("Nothing", "", []),
        ("BecomeMonitor", "asu", [[], 0]),
    ]
)  # fmt: skip
TO: Final = st.sampled_from([APP, ":1.5", SECRET, ":1.6", ME, "org.example.Nobody"])
PLAIN: Final = st.builds(call, SERIAL, TO, st.just("Do"), FLAGS, st.just((0, 0)), st.just(0))
OF_CLIENT: Final = st.one_of(
    PLAIN,
    st.builds(smuggled, SERIAL, TO, PLAIN),
    st.builds(call, SERIAL, TO, st.sampled_from(["Do", "Bad"]), FLAGS, st.just((0, 0)), st.sampled_from([0, 3, 10])),
    st.builds(call, SERIAL, TO, st.just("Do"), FLAGS, st.sampled_from([(0, 0), (1, 1), (1, 0), (0, 1)]), st.just(0)),
    st.builds(bus_call, SERIAL, ASKED, FLAGS),
    st.builds(broadcast, SERIAL, st.none() | PEER),
    st.builds(answer, SERIAL, SERIAL, PEER),
    st.just((b"no message at all", 0)),
)
KIND: Final = st.sampled_from([1, 2, 2, 2, 3, 4])
OF_BUS: Final = st.builds(arrival, KIND, st.sampled_from([ME, ME, None, ":1.50"]), PEER, SERIAL, SERIAL, FLAGS) | (
    st.builds(change, SERIAL, st.sampled_from([[APP, ":1.5", ""], [APP, "", ":1.5"], [APP, "", ":1.5"], [APP]]))
)


@st.composite
def said(draw: st.DrawFn) -> list[Said]:
    """Some messages of one side in one piece or two; the fds with the first."""
    by, messages = draw(
        st.tuples(st.just(CLIENT), st.lists(OF_CLIENT, min_size=1, max_size=2))
        | st.tuples(st.just(BACKEND), st.lists(OF_BUS, min_size=1, max_size=2))
    )
    data = b"".join(one for one, _ in messages)
    fds = sum(count for _, count in messages)
    begins = [found.start() for found in re.finditer(rb"l[\1-\4]", data)][1:]
    cut = draw(st.none() | st.integers(1, len(data) - 1) | st.sampled_from(begins or [1]))
    return [Said(by, data, fds)] if cut is None else [Said(by, data[:cut], fds), Said(by, data[cut:], 0)]


STEP: Final = st.one_of(
    said(),
    said(),
    said(),
    st.builds(lambda *what: [Renewed(*what)], st.integers(0, len(RULES) - 1), st.booleans()),
    st.builds(lambda *what: [Owned(*what)], st.sampled_from([APP, SECRET]), st.sampled_from(["", ":1.5", ":1.8"])),
)


def take(scene: Scene, step: Said | Renewed | Owned, place: int) -> None:
    match step:
        case Said(by, data, fds):
            names = [f"fd {place} {count}" for count in range(fds)]
            if by == CLIENT:
                scene.send(data, names)
            else:
                scene.play.backend(data, names)
        case Renewed(index, enforce):
            scene.renew(RULES[index], enforce=enforce)
        case Owned(name, by):
            scene.bus.owner_changes(name, by)
    scene.bus.serve()


def all_of(scene: Scene) -> dict[str, Any]:
    play = scene.play
    return {
        "to_client": play.to_client,
        "to_backend": play.to_backend,
        "audits": play.audits,
        "end": play.end_of_it,
        "fds": (play.fds_to_client, play.fds_to_backend, play.dropped),
        "unread": (play.unread(CLIENT), play.unread(BACKEND)),
        "timer": (play.clock, play.awaited),
    }


@settings(max_examples=400)
@given(
    steps=st.lists(STEP, max_size=14), first=st.integers(0, len(RULES) - 1), enforce=st.booleans(), told=st.booleans()
)
def test_both_ways_do_the_same(steps: list[list[Any]], first: int, enforce: bool, told: bool) -> None:
    """Whatever is said, changed and cut: the same bytes, descriptors, events, timers and end."""
    scenes = [
        Scene(RULES[first], fds=True, enforce=enforce, tell_allowed=told, made_by=made_by)
        for made_by in (DbusInspector, LongWay)
    ]
    for place, step in enumerate(one for several in steps for one in several):
        for scene in scenes:
            take(scene, step, place)
        short, long = map(all_of, scenes)
        assert short == long
        if short["end"]:
            return


def test_few_messages_are_judged_in_one_go() -> None:
    """A chunk has room for a thousand denied calls; a relay looks after others, and its credit, between."""
    scene = Scene(rules([{"destination": APP}]))
    call = wire.method_call(7, "/a", None, "Do", SECRET, "", b"", wire.NO_REPLY_EXPECTED)
    data = memoryview(bytearray(call * (2 * MAX_JUDGED + 1)))
    used = scene.play.inspector.received(CLIENT, data, 0)
    assert used == MAX_JUDGED * len(call)
    assert len(scene.told()) == MAX_JUDGED
    assert scene.play.inspector.received(CLIENT, data[used:], 0) == used
    assert scene.play.inspector.received(CLIENT, data[2 * used :], 0) == len(call)
    assert len(scene.told()) == MAX_JUDGED + 1
