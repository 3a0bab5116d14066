"""Random and mutated messages, to a bus directly and through a proxy that allows everything: the same comes of them.

Seen of each: the replies of the bus, whether the connection goes on, and what arrives at a service. A refusal of
sockguard's that the bus does not share has to be one that ``explained`` names.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.fuzz.mutate import mutated
from tests.support.dbus import BUS, OBJECT
from tests.support.dbus_stage import People, Stage, Way, people, stages
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    ERROR,
    ERROR_NAME,
    INTERFACE,
    MEMBER,
    NO_AUTO_START,
    NO_REPLY,
    PATH,
    REPLY_SERIAL,
    RETURN,
    SENDER,
    SIGNAL,
    SIGNATURE,
    Closed,
    Field,
    Wire,
    call,
    message,
    request_name,
    to_bus,
    value,
)
from tests.support.identities import open_folder, wait_until

pytestmark = pytest.mark.root

CASES: Final = 400
SINK: Final = "org.example.Sink"
LAST: Final = 0x5EED
MAX_MESSAGE: Final = 1 << 27
"""dbus specification, Message Format."""

Observed = tuple[list[tuple[object, ...]], bool, list[tuple[object, ...]]]
"""What the client got, whether its last call was answered, what the service got."""


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who) as made:
        yield made


def _some_message(rng: random.Random, serial: int) -> bytes:
    """A message that is well formed, most of the time one that makes sense."""
    order = rng.choice("<<>")
    text = rng.choice(
        ("", "x", SINK, "type='signal'", "sender='org.example.Echo'", "eavesdrop='true'", "org.example.A1")
    )
    flags = rng.choice((0, 0, NO_REPLY, NO_AUTO_START, 4, 8))
    parts = [Field(PATH, rng.choice(("/", OBJECT))), Field(INTERFACE, SINK), Field(MEMBER, rng.choice(("Do", "Undo")))]
    if rng.random() < 0.3:
        parts.append(Field(SENDER, rng.choice((BUS, ":1.1", SINK))))
    body = b""
    if rng.random() < 0.5:
        body = value("s", text, order)
        parts.append(Field(SIGNATURE, "s"))
    rng.shuffle(parts)
    match rng.randrange(8):
        case 0 | 1:
            return message(CALL, serial, [*parts, Field(DESTINATION, SINK)], body, order=order, flags=flags)
        case 2:
            to = [Field(DESTINATION, SINK)] if rng.random() < 0.5 else []
            return message(SIGNAL, serial, [*parts, *to], body, order=order, flags=flags)
        case 3:
            reply = [Field(DESTINATION, SINK), Field(REPLY_SERIAL, rng.randint(1, 5))]
            reply.append(Field(ERROR_NAME, f"{SINK}.E"))
            kind = rng.choice((RETURN, ERROR))
            return message(kind, serial, [*parts, *reply], body, order=order)
        case 4:
            asked = rng.choice(
                ("GetNameOwner", "NameHasOwner", "AddMatch", "RemoveMatch", "ListQueuedOwners", "Nonsense")
            )
            return to_bus(serial, asked, text, order=order, flags=flags)
        case 5:
            return to_bus(serial, rng.choice(("GetId", "ListNames", "Hello", "ListActivatableNames")), order=order)
        case 6:
            member = rng.choice(("RequestName", "StartServiceByName", "ReleaseName"))
            return request_name(
                serial, rng.choice((SINK, "org.example.A1", ":1.5", "a", BUS)), member=member, order=order
            )
        case _:
            return call(serial, rng.choice((SINK, "org.example.None")), "Do", interface=None, text=text, order=order)


def _some_bytes(rng: random.Random) -> bytes:
    count = rng.randint(1, 3)
    whole = [_some_message(rng, serial) for serial in range(2, 2 + count)]
    if rng.random() < 0.35:
        return b"".join(whole)
    at = rng.randrange(count)
    whole[at] = mutated([whole[at]], rng)
    return b"".join(whole)


def _frames(data: bytes) -> list[bytes] | None:
    """The messages of it up to the first that cannot be one; None where the last is not whole: a bus would wait."""
    found = []
    while data and data[0] in b"lB":
        if len(data) < 16:
            return None
        body, _, fields = struct.unpack_from(("<" if data[0] == ord("l") else ">") + "III", data, 4)
        size = 16 + fields + -fields % 8 + body
        if size > MAX_MESSAGE:
            break
        if size > len(data):
            return None
        found.append(data[:size])
        data = data[size:]
    return found


def _serials_of_what_wants_no_answer(frames: list[bytes]) -> set[int]:
    """Messages with NO_REPLY, and replies: to one that it cannot deliver the bus answers with an error all the same."""
    return {
        int.from_bytes(frame[8:12], "little" if frame[0] == ord("l") else "big")
        for frame in frames
        if frame[2] & NO_REPLY or frame[1] in (RETURN, ERROR)
    }


class Raw:
    """Messages of a connection as they are. jeepney knows no type and no field of the future, and has opinions."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._held = b""

    def next(self) -> Seen:
        """Raises Closed."""
        while True:
            found = self._held
            if len(found) >= 16:
                order = "<" if found[0] == ord("l") else ">"
                body, _, fields = struct.unpack_from(order + "III", found, 4)
                size = 16 + fields + -fields % 8 + body
                if len(found) >= size:
                    self._held = found[size:]
                    return Seen(found[1], found[2], _fields(found[: 16 + fields], order), found[size - body : size])
            try:
                data = self._wire.sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed("end")
            self._held += data


class Seen(NamedTuple):
    kind: int
    flags: int
    fields: dict[int, object]
    body: bytes


def _fields(data: bytes, order: str) -> dict[int, object]:
    """Header fields of a message that is well formed; each of a basic type."""
    found: dict[int, object] = {}
    at = 16
    while at < len(data):
        at += -at % 8
        code, signature = data[at], chr(data[at + 2])
        assert data[at + 1] == 1, data
        at += 4
        if signature in "sog":
            width = 1 if signature == "g" else 4
            at += -at % width
            length = int.from_bytes(data[at : at + width], "little" if order == "<" else "big")
            found[code] = data[at + width : at + width + length].decode()
            at += width + length + 1
        else:
            form = {"b": "I", "h": "I", "u": "I", "y": "B", "n": "h", "q": "H", "x": "q", "t": "Q"}.get(
                signature, signature
            )
            at += -at % struct.calcsize("=" + form)
            (found[code],) = struct.unpack_from(order + form, data, at)
            at += struct.calcsize("=" + form)
    return found


def _arrived(seen: Seen) -> tuple[object, ...]:
    """All of a message that does not differ from one connection to the next."""
    fields = {**seen.fields, SENDER: str(seen.fields.get(SENDER, "")).startswith(":"), REPLY_SERIAL: 0}
    return (seen.kind, seen.flags, sorted(fields.items()), seen.body)


class Service:
    """Owns SINK, answers nothing, and hears every signal of its interface."""

    def __init__(self, place: Stage) -> None:
        self._wire = Wire(place.bus.path)
        self._marker = Wire(place.bus.path)
        for serial, data in (
            (2, request_name(2, SINK)),
            (3, to_bus(3, "AddMatch", f"type='signal',interface='{SINK}'")),
        ):
            self._wire.send(data)
            self._wire.answer(serial)
        self._raw = Raw(self._wire)

    def heard(self) -> list[tuple[object, ...]]:
        """What has come since the last time."""
        self._marker.send(call(9, SINK, "Mark", flags=NO_REPLY))
        found: list[tuple[object, ...]] = []
        while True:
            seen = self._raw.next()
            if seen.fields.get(MEMBER) == "Mark":
                return found
            if seen.fields.get(SENDER) != BUS:
                found.append(_arrived(seen))

    def is_there(self, name: str) -> bool:
        """Whether a connection of that unique name is still on the bus, or something that it sent."""
        self._marker.send(to_bus(8, "NameHasOwner", name))
        return bool(self._marker.answer(8).body[0])

    def close(self) -> None:
        self._wire.close()
        self._marker.close()


def observe(place: Stage, service: Service, data: bytes) -> Observed:
    """Send it, and a last call that is answered if the connection still goes on."""
    got: list[tuple[object, ...]] = []
    last = False
    with Wire(place.path, place.uid("admin")) as wire:
        raw = Raw(wire)
        try:
            wire.send(data)
            wire.send(to_bus(LAST, "GetId"))
        except Closed:
            pass  # what it said before it ended is there to be read
        try:
            while not last:
                kind, _, fields, _ = raw.next()
                reply_to = fields.get(REPLY_SERIAL)
                if reply_to == LAST:
                    last = True
                elif reply_to is not None:  # signals of the bus depend on what else goes on there
                    got.append((kind, reply_to, fields.get(ERROR_NAME), fields.get(SIGNATURE)))
        except Closed:
            pass
    wait_until(lambda: not service.is_there(wire.name), "nothing of this case is left for the next one")
    return got, last, service.heard()


REFUSALS: Final = {f"{BUS}.Error.{name}" for name in ("InvalidArgs", "MatchRuleInvalid", "AccessDenied")}


def explained(frames: list[bytes], direct: Observed, guarded: Observed) -> bool:
    """Whether what differs is only what sockguard refuses on purpose.

    - A reply that nobody asked for goes nowhere: replies pass one for each call that waits. The service here calls
      nobody, so none arrives. (This bus has no policy that would drop it.)
    - A call to the bus itself of which the arguments are not what the member takes, or are no names, is refused with
      an error of sockguard's; the bus words it in other ways, and answers though no answer is wanted.
    - What is refused or dropped is not read further: the bus ends a connection for a malformed body, sockguard does so
      only for a malformed header, since a body that passes is the bus's to judge.
    - A message of a type that is not known ends the connection, where the bus passes it over.
    """
    arrived = [seen for seen in direct[2] if seen[0] not in (RETURN, ERROR)]
    refused = {serial for kind, serial, error, _ in guarded[0] if kind == ERROR and error in REFUSALS}
    shorter = min(len(arrived), len(guarded[2]))
    if any(frame[1] > SIGNAL for frame in frames) and not guarded[1]:
        return arrived[:shorter] == guarded[2]
    if direct[1]:
        silent = _serials_of_what_wants_no_answer(frames) | refused
        said = [[reply for reply in replies if reply[1] not in silent] for replies in (direct[0], guarded[0])]
        return guarded[1] and said[0] == said[1] and arrived == guarded[2]
    judged_no_further = bool(refused) or any(frame[1] in (RETURN, ERROR) or frame[2] & NO_REPLY for frame in frames)
    if guarded[1] and not judged_no_further:
        return False
    return arrived[:shorter] == guarded[2][:shorter]


def test_the_same_comes_of_it(ways: dict[Way, Stage]) -> None:
    seed = 1 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)  # noqa: S311  # examples, not secrets
    service = Service(ways["direct"])
    counted = {"ended": 0, "went on": 0, "arrived": 0}
    try:
        for case in range(CASES):
            data = _some_bytes(rng)
            frames = _frames(data)
            if frames is None:
                continue
            direct, guarded = (observe(ways[way], service, data) for way in ("direct", "client"))
            counted["went on" if direct[1] else "ended"] += 1
            counted["arrived"] += len(direct[2])
            if not explained(frames, direct, guarded):
                pytest.fail(f"seed {seed}, case {case}\n{data!r}\ndirect  {direct}\nguarded {guarded}")
    finally:
        service.close()
    assert all(counted.values()), counted
