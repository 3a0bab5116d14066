"""Any mixture of calls, however it is cut: none unjudged, every denied one answered once, each answer to its call."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus import gate, wire
from sockguard.protocols.dbus.names import BUS
from tests.unit.protocols.dbus.scripted import APP, APP_OWNER, DENIED, PATH, SECRET, SECRET_OWNER, Scene, rules

ALLOWED = {APP: APP_OWNER, APP_OWNER: APP_OWNER}
TARGETS = [*ALLOWED, SECRET, SECRET_OWNER, BUS, "org.example.Nobody", ":1.99"]

calls = st.lists(st.tuples(st.sampled_from(TARGETS), st.booleans()), max_size=12)
cuts = st.lists(st.integers(1, 200), max_size=12)


def call_bytes(serial: int, target: str, silent: bool) -> bytes:
    member = "GetId" if target == BUS else "Do"
    path = PATH if target == BUS else "/"
    return wire.method_call(serial, path, None, member, target, "", b"", 1 if silent else 0)


@given(asked=calls, cuts=cuts, late=st.randoms(use_true_random=False))
def test_each_call_has_its_answer(asked: list[tuple[str, bool]], cuts: list[int], late: object) -> None:
    """Serials of the client are any; the bus answers in order, peers when they like."""
    scene = Scene(rules([{"destination": APP}]))
    serials = [1000 - 3 * index for index in range(len(asked))]
    data = b"".join(call_bytes(serial, *one) for serial, one in zip(serials, asked, strict=True))
    for cut in cuts:
        scene.send(data[:cut])
        data = data[cut:]
    scene.send(data)
    reached = [got for got in scene.bus.seen if got.says == "Do"]
    assert [got.fields.destination for got in reached] == [target for target, _ in asked if target in ALLOWED]
    waiting = [got for got in reached if not got.fields.flags & 1]
    late.shuffle(waiting)  # type: ignore[attr-defined]
    for got in waiting:
        scene.bus.reply(got, sender=APP_OWNER)
        scene.bus.reply(got, sender=APP_OWNER)
    answers = scene.got()
    expected = {
        serial: "" if target in ALLOWED or target == BUS else DENIED
        for serial, (target, silent) in zip(serials, asked, strict=True)
        if not silent
    }
    assert len(answers) == len(expected)
    assert {got.reply_to: got.says for got in answers} == expected
    by_bus = [got.reply_to for got in answers if got.fields.sender == BUS]
    assert by_bus == [serial for serial in serials if serial in by_bus], "the bus's and ours, in order"
    assert len({got.serial for got in answers}) == len(answers)
    assert len({got.serial for got in scene.bus.seen}) == len(scene.bus.seen)
    assert scene.play.outcome is None


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("owns"), st.sampled_from(["", ":1.5", ":1.8"])),
            st.tuples(st.just("calls"), st.sampled_from([APP, ":1.5", ":1.8"])),
            st.tuples(st.just("rules"), st.booleans()),
        ),
        max_size=20,
    )
)
def test_owners_are_followed(steps: list[tuple[str, object]]) -> None:
    """Whatever changes in between, a call reaches who owns the name at that moment, and nobody else."""
    scene = Scene(rules([{"destination": APP}]))
    owner, allowed = APP_OWNER, True
    for step, what in steps:
        if step == "owns" and what != owner:
            owner = str(what)
            scene.bus.owner_changes(APP, owner)
        elif step == "rules":
            allowed = bool(what)
            scene.renew(rules([{"destination": APP if allowed else SECRET}]))
        elif step == "calls":
            scene.bus.seen.clear()
            scene.call(str(what), flags=wire.NO_REPLY_EXPECTED)
            assert (scene.reached() == ["Do"]) == (allowed and what in (APP, owner))


PEERS = [":1.5", ":1.6", ":1.8"]
NAMES = [SECRET, APP, "org.example.A", "org.example.B"]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("owns"), st.tuples(st.sampled_from(NAMES), st.sampled_from(["", *PEERS]))),
            st.tuples(st.just("calls"), st.tuples(st.sampled_from([*NAMES, *PEERS]), st.sampled_from([0, 2]))),
            st.tuples(st.just("rules"), st.tuples(st.booleans(), st.booleans())),
        ),
        max_size=30,
    ),
    watched=st.sampled_from([1, 2, 256]),
)
def test_a_deny_follows_its_owner(steps: list[tuple[str, tuple[object, object]]], watched: int) -> None:
    """By whichever name, a call reaches who owns that at that moment, and nobody who owns the denied name then."""
    denying = [
        rules(None, [{"destination": SECRET}]),
        rules([{"destination": "org.example.*"}], [{"destination": SECRET, "member": "Do"}]),
    ]
    with patch.object(gate, "MAX_WATCHED", watched):
        scene = Scene(denying[0], owners={})
        scene.bus.errors["StartServiceByName"] = "org.freedesktop.DBus.Error.ServiceUnknown"
        owners: dict[str, str] = {}
        narrow = False
        for step, (what, more) in steps:
            if step == "owns" and owners.get(str(what), "") != more:
                owners[str(what)] = str(more)
                scene.bus.owner_changes(str(what), str(more))
            elif step == "rules":
                narrow = bool(what)
                scene.renew(denying[narrow])
            elif step == "calls":
                scene.bus.seen.clear()
                target = str(what)
                owner = owners.get(target, "") if target in NAMES else target
                scene.call(target, flags=wire.NO_REPLY_EXPECTED | int(str(more)))
                reached = [got.fields.destination for got in scene.bus.seen if got.says == "Do"]
                if owner and owner != owners.get(SECRET) and target != SECRET:
                    known = not narrow or owner in owners.values()
                    assert reached == ([owner] if known else [])
                elif owner or target == SECRET or not more:
                    assert reached == []
                else:
                    assert reached == [target], "it asks for none to be started, and there is none"
