"""What is remembered of verdicts, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sockguard.protocols.dbus import gate, wire
from sockguard.protocols.dbus.gate import Gate, TooMuch, of_dbus
from sockguard.protocols.dbus.wire import Fields
from tests.unit.protocols.dbus.scripted import APP, APP_OWNER, SECRET, STRANGER, arriving, rules


def fields_of(destination: str | None, path: str = "/", kind: int = wire.METHOD_CALL) -> Fields:
    if kind == wire.SIGNAL:
        return wire.read_message(wire.signal(1, path, APP, "Do", "", b"", None, destination)).fields
    return wire.read_message(wire.method_call(1, path, APP, "Do", destination, "", b"")).fields


def arrival_from(sender: str, kind: int) -> Fields:
    return wire.read_message(arriving(kind, ":1.7", sender)).fields


def opened(*entries: dict[str, object]) -> Gate:
    made = Gate(enforce=True)
    made.renew(rules(list(entries)), enforce=True)
    return made


def test_nothing_is_allowed_at_first() -> None:
    made = Gate(enforce=True)
    assert not made.call(fields_of(APP)).allowed
    assert not made.arrival(fields_of(None, kind=wire.SIGNAL)).allowed
    assert not made.sees(APP)


def test_what_verdicts_rest_on_forgets_them() -> None:
    """The rules, an owner, a name of its own."""
    made = opened({"destination": APP})
    changes: list[Callable[[], object]] = [
        lambda: made.renew(made.rules, enforce=True),
        lambda: made.learned(APP, APP_OWNER),
        lambda: made.owner_changed(APP, APP_OWNER, STRANGER),
        lambda: made.acquired("org.example.Mine"),
        lambda: made.lost("org.example.Mine"),
    ]
    for change in changes:
        called, arrived = fields_of(APP), fields_of(None, kind=wire.SIGNAL)
        made.call(called)
        made.arrival(arrived)
        assert called in made.calls
        assert arrived in made.arrivals
        change()
        assert not made.calls
        assert not made.arrivals
    made.call(fields_of(APP))
    made.owner_changed(APP, STRANGER, STRANGER)
    made.owner_changed(SECRET, "", STRANGER)
    assert made.calls


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many verdicts, and none of a header that is long enough to fill memory with."""
    monkeypatch.setattr(gate, "MAX_REMEMBERED", 2)
    made = opened({"destination": APP})
    for index in range(5):
        made.call(fields_of(APP, f"/a{index}"))
        assert len(made.calls) <= 2
    made.forget()
    assert made.call(fields_of(APP, "/" + "x" * 2000)).allowed
    assert not made.calls


def test_too_many_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sockguard.protocols.dbus.owners.MAX_OWNERS", 0)
    with pytest.raises(TooMuch):
        opened({"destination": APP}).learned(APP, APP_OWNER)


def test_a_name_of_its_own_is_no_leave_to_call() -> None:
    """It may speak to all, and be called; no more; and a deny beats it."""
    made = opened({"own": APP})
    made.acquired(APP)
    assert made.call(fields_of(None, kind=wire.SIGNAL)).allowed
    assert not made.call(fields_of(STRANGER, kind=wire.SIGNAL)).allowed
    assert not made.call(fields_of(STRANGER)).allowed
    assert made.arrival(fields_of(STRANGER)).allowed
    assert not made.arrival(fields_of(None, kind=wire.SIGNAL)).allowed
    made.renew(rules([{"own": APP}], [{"member": "Do"}, {"receive": "*"}]), enforce=True)
    assert not made.call(fields_of(None, kind=wire.SIGNAL)).allowed
    assert not made.arrival(fields_of(STRANGER)).allowed


def test_who_may_answer() -> None:
    made = opened({"destination": APP})
    made.learned(APP, APP_OWNER)
    cases = [
        ((APP, APP_OWNER, APP_OWNER), True),
        ((APP, APP_OWNER, STRANGER), False),
        ((APP, STRANGER, APP_OWNER), True),
        ((APP, "", ""), False),
        ((APP_OWNER, APP_OWNER, "org.freedesktop.DBus"), True),
        ((STRANGER, STRANGER, APP_OWNER), False),
        ((SECRET, "", STRANGER), True),
    ]
    for given, expected in cases:
        assert made.may_answer(*given) == expected, given


def test_rules_of_another_protocol() -> None:
    with pytest.raises(TypeError):
        of_dbus(object())  # type: ignore[arg-type]


def test_signals_of_a_service_to_who_has_called_it() -> None:
    """Who owns a name may send signals to all and to its callers, and nothing else to anybody."""
    made = opened({"own": "org.example.Mine"})
    to_all, to_one = fields_of(None, kind=wire.SIGNAL), fields_of(STRANGER, kind=wire.SIGNAL)
    assert not made.call(to_all).allowed
    made.acquired("org.example.Mine")
    assert made.call(to_all).allowed
    assert not made.call(to_one).allowed
    made.owners.meet(STRANGER)
    assert not made.call(to_one).allowed
    made.owners.meet(STRANGER, calls=True)
    made.owners.meet(STRANGER)
    assert made.call(to_one).allowed
    assert not made.call(fields_of(STRANGER)).allowed
    made.lost("org.example.Mine")
    assert not made.call(to_one).allowed


def test_anybody_may_talk_to_themselves() -> None:
    made = opened({"own": "org.example.Mine"})
    made.unique = ":1.7"
    assert made.call(fields_of(":1.7")).allowed
    assert not made.call(fields_of("org.example.Mine")).allowed
    made.acquired("org.example.Mine")
    assert made.call(fields_of("org.example.Mine")).allowed


@pytest.mark.parametrize("kind", [wire.METHOD_CALL, wire.SIGNAL])
def test_what_they_say_to_themselves_comes_to_them(kind: int) -> None:
    """Unless a rule denies it."""
    made = opened({"own": "org.example.Mine"})
    made.unique = ":1.7"
    assert made.arrival(arrival_from(":1.7", kind)).allowed
    assert not made.arrival(arrival_from(STRANGER, kind)).allowed
    made.renew(rules([{"own": APP}], [{"receive": "*"}]), enforce=True)
    assert not made.arrival(arrival_from(":1.7", kind)).allowed
