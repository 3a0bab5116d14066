"""What a client asks the bus itself: names, lists, matches, owning, monitoring; each answered in its place."""

from __future__ import annotations

import pytest

from sockguard.protocols.base import BACKEND
from sockguard.protocols.dbus import bus_calls, wire
from sockguard.protocols.dbus.body import pack
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.wire import NO_REPLY_EXPECTED
from tests.unit.protocols.dbus.scripted import (
    APP,
    APP_OWNER,
    DENIED,
    LIMITS,
    ME,
    NO_OWNER,
    PATH,
    PIECES,
    SECRET,
    SECRET_OWNER,
    STRANGER,
    Scene,
    arriving,
    rules,
)

TO_APP = [{"destination": APP}]
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"
MATCH_INVALID = "org.freedesktop.DBus.Error.MatchRuleInvalid"
pytestmark = pytest.mark.parametrize("piece", PIECES)


# ── names ──


@pytest.mark.parametrize("interface", [BUS, None])
@pytest.mark.parametrize("hidden", [SECRET, SECRET_OWNER, STRANGER, "org.example.Nobody"])
def test_hidden_names_do_not_exist(piece: int, hidden: str, interface: str | None) -> None:
    scene = Scene(rules(TO_APP), piece=piece)
    for member in ("GetNameOwner", "ListQueuedOwners", "GetConnectionUnixUser", "GetConnectionCredentials"):
        scene.ask(member, hidden, interface=interface)
        assert scene.said() == [NO_OWNER]
    scene.ask("NameHasOwner", hidden, interface=interface)
    (no,) = scene.got()
    assert no.values == [False]
    assert scene.reached() == []
    scene.ask("NameHasOwner", hidden, interface=interface, flags=NO_REPLY_EXPECTED)
    assert scene.got() == []


def test_seen_names(piece: int) -> None:
    scene = Scene(rules([*TO_APP, {"own": "org.example.Mine"}, {"receive": "org.example.Heard"}]), piece=piece)
    for name in (APP, APP_OWNER, BUS, ME, "org.example.Mine", "org.example.Heard"):
        scene.ask("GetConnectionUnixUser", name)
    assert scene.reached() == ["GetConnectionUnixUser"] * 6
    scene.got()
    scene.bus.owners["org.example.Mine"] = STRANGER
    scene.ask("GetNameOwner", "org.example.Mine")
    assert [got.values for got in scene.got()] == [[STRANGER]]
    scene.ask("GetConnectionUnixUser", STRANGER)
    assert scene.reached() == ["GetNameOwner", "GetConnectionUnixUser"]


def test_nameless_peers_are_seen_where_all_may_be_called(piece: int) -> None:
    """But not who owns a name that is denied altogether."""
    scene = Scene(rules(None, [{"destination": SECRET}, {"own": SECRET}, {"receive": SECRET}]), piece=piece)
    scene.ask("NameHasOwner", STRANGER)
    assert scene.reached() == ["NameHasOwner"]
    for hidden in (SECRET, SECRET_OWNER):
        scene.ask("NameHasOwner", hidden)
    assert scene.reached() == []
    scene.call(SECRET_OWNER)
    scene.call(STRANGER)
    assert scene.reached() == ["Do"]


def test_lists_are_filtered(piece: int) -> None:
    """Big-endian as well; what stands behind such an answer is unharmed."""
    scene = Scene(rules(TO_APP), piece=piece)
    serials = [scene.ask("ListNames"), scene.ask("ListActivatableNames")]
    lists = scene.got()
    assert [got.reply_to for got in lists] == serials
    assert [got.values for got in lists] == [[[BUS, ME, APP, APP_OWNER]]] * 2
    assert len({got.serial for got in lists}) == 2
    everything = Scene(rules(None), piece=piece)
    everything.ask("ListNames")
    assert SECRET in str(everything.got()[0].values)


def test_arguments_that_no_bus_takes(piece: int) -> None:
    """Refused by us, so that nothing is judged that the bus may read otherwise, or kept that is too long."""
    for given in (rules(TO_APP), rules(None)):
        scene = Scene(given, piece=piece)
        scene.ask("GetNameOwner", 5)
        scene.ask("GetNameOwner", APP, APP)
        scene.ask("RequestName", APP)
        scene.ask("RequestName", "no name", 0)
        scene.ask("ReleaseName", ":1.7")
        scene.ask("StartServiceByName", f"org.{'x' * 300}", 0)
        scene.ask("AddMatch", "type=")
        assert scene.said() == [*[INVALID] * 6, MATCH_INVALID]
        assert scene.reached() == []


# ── order ──


def test_denials_come_in_order(piece: int) -> None:
    """Behind what the bus was asked before, however late it answers; calls to others have no part in it."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.silent = {"GetId", "Introspect"}
    serials = [scene.ask("GetId"), scene.call(SECRET), scene.ask("NameHasOwner", SECRET)]
    introspect = scene.next()
    scene.send(wire.method_call(introspect, "/", "org.freedesktop.DBus.Introspectable", "Introspect", BUS, "", b""))
    serials += [introspect, scene.call(SECRET)]
    called = scene.call()
    assert scene.got() == []
    scene.bus.reply(scene.last("Do"), sender=APP_OWNER)
    assert [got.reply_to for got in scene.got()] == [called]
    scene.bus.reply(scene.last("GetId"), "s", ["x"])
    scene.bus.reply(scene.last("Introspect"), "s", ["x"])
    assert [got.reply_to for got in scene.got()] == serials


def test_too_many_calls_to_the_bus(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_calls, "MAX_ASKED", 3)
    for last in ("GetId", "UpdateActivationEnvironment"):
        scene = Scene(rules(TO_APP), piece=piece)
        scene.bus.silent = {"GetId"}
        scene.ask("GetId")
        scene.ask("ReloadConfig")
        scene.ask("GetId")
        assert scene.play.outcome is None
        scene.ask(last)
        assert scene.play.outcome == "limit"


def test_too_many_services_to_start(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_calls, "MAX_ASKED", 3)
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.silent = {"StartServiceByName"}
    for _ in range(3):
        scene.ask("StartServiceByName", APP, 0)
    assert scene.play.outcome is None
    scene.ask("StartServiceByName", APP, 0)
    assert scene.play.outcome == "limit"


# ── owning ──


def test_owning(piece: int) -> None:
    """What may be owned, exactly; giving back what was asked for needs no leave."""
    scene = Scene(rules([{"own": APP}]), piece=piece)
    for name in (SECRET, f"{APP}.Below", "org.example"):
        scene.ask("RequestName", name, 0)
        scene.ask("ReleaseName", name)
    assert scene.said() == [DENIED] * 6
    assert scene.told()[0] == f"denied own {SECRET}"
    scene.ask("RequestName", APP, 0)
    scene.ask("ReleaseName", APP)
    assert scene.reached() == ["RequestName", "ReleaseName"]


def test_a_bound_on_names(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_calls, "MAX_NAMES", 1)
    scene = Scene(rules([{"own": "org.example.*"}]), piece=piece)
    for name in (APP, APP, SECRET):
        scene.ask("RequestName", name, 0)
    assert scene.said() == ["", "", LIMITS]


def test_owner_may_be_called_and_may_speak(piece: int) -> None:
    """To all; and only as long as it owns."""
    spread = wire.signal(60, "/", APP, "Spread", "", b"")
    scene = Scene(rules([{"own": APP}]), piece=piece)
    for member, passes in (("NameAcquired", True), ("NameLost", False)):
        scene.bus.signal(member, APP, destination=ME)
        scene.got()
        scene.send(spread)
        scene.play.backend(arriving(1, ME, STRANGER, "Do"))
        scene.bus.serve()
        assert (scene.reached() == ["Spread"]) == passes
        assert (scene.said() == ["Do"]) == passes
    scene.bus.signal("NameAcquired", APP, destination=STRANGER)
    scene.send(spread)
    assert scene.reached() == []


def test_its_signals_go_to_who_has_called_it(piece: int) -> None:
    """Not to whom it only knows of: that it can bring about by itself."""
    scene = Scene(rules([{"own": "org.example.Mine"}, {"destination": APP, "member": "Get"}]), piece=piece)
    scene.bus.signal("NameAcquired", "org.example.Mine", destination=ME)
    scene.ask("GetNameOwner", APP)
    scene.play.backend(arriving(1, ME, STRANGER, "Do"))
    scene.bus.seen.clear()
    for destination in (APP_OWNER, STRANGER):
        scene.send(wire.signal(scene.next(), "/", "org.example.Mine", "Done", "", b"", destination=destination))
    assert [got.fields.destination for got in scene.bus.seen] == [STRANGER]


# ── activation, and what only a rule gives ──


def test_nothing_waits_for_a_service_to_start(piece: int) -> None:
    """The bus answers others meanwhile, and so do we; each call gets its own answer."""
    scene = Scene(rules(TO_APP), piece=piece)
    scene.bus.silent = {"StartServiceByName"}
    start = scene.ask("StartServiceByName", APP, 0)
    others = [scene.call(SECRET), scene.ask("NameHasOwner", SECRET), scene.ask("GetId")]
    assert [got.reply_to for got in scene.got()] == others
    scene.bus.reply(scene.last("StartServiceByName"), "u", [1])
    assert [got.reply_to for got in scene.got()] == [start]


def test_a_denied_name_is_not_started(piece: int) -> None:
    scene = Scene(rules([{"destination": APP, "member": "Do"}, {"receive": SECRET}]), piece=piece)
    scene.ask("StartServiceByName", SECRET, 0)
    scene.ask("StartServiceByName", APP, 0)
    assert scene.said() == [DENIED, ""]
    assert scene.reached() == ["StartServiceByName"]


@pytest.mark.parametrize("member", ["BecomeMonitor", "UpdateActivationEnvironment", "ReloadConfig", "Set", "Unknown"])
@pytest.mark.parametrize("interface", [None, BUS, "org.freedesktop.DBus.Monitoring"])
def test_what_only_a_rule_gives(piece: int, member: str, interface: str | None) -> None:
    """By whatever interface, or none; and no pattern of names means the bus's own privileges."""
    patterns = [TO_APP] if member in ("Set", "Unknown") else [TO_APP, [{"destination": "org.*"}]]
    for entries in patterns:
        scene = Scene(rules(entries), piece=piece)
        scene.ask(member, interface=interface)
        assert scene.said() == [DENIED]
        assert scene.reached() == []


MONITORING = [{"destination": BUS, "interface": "org.freedesktop.DBus.Monitoring"}]


def monitor(given: object, piece: int) -> Scene:
    scene = Scene(given, piece=piece)  # type: ignore[arg-type]
    scene.bus.silent = {"GetId"}
    scene.ask("GetId")
    scene.call()
    scene.call(SECRET)
    scene.ask("BecomeMonitor", interface="org.freedesktop.DBus.Monitoring")
    return scene


def test_monitor_sees_all(piece: int) -> None:
    """From its answer on nothing is judged or changed on the way to it."""
    scene = monitor(rules([*TO_APP, *MONITORING]), piece)
    assert scene.play.tunnel(BACKEND)
    assert scene.got()[-1].reply_to == 5
    raw = wire.method_call(4242, "/", SECRET, "Reveal", SECRET, "", b"")
    scene.play.backend(raw + b"anything")
    assert scene.play.to_client.endswith(raw + b"anything")


def test_monitor_says_nothing(piece: int) -> None:
    """Not even what it was allowed to say before."""
    scene = monitor(rules([*TO_APP, *MONITORING]), piece)
    scene.bus.seen.clear()
    scene.call()
    assert scene.play.outcome == "malformed"
    assert scene.bus.seen == []


def test_monitor_that_may_be_none_any_more(piece: int) -> None:
    """New rules end it; they ask the bus nothing else, which would end it too."""
    scene = monitor(rules([*TO_APP, *MONITORING]), piece)
    scene.bus.seen.clear()
    scene.renew(rules([{"destination": SECRET}, *MONITORING]))
    assert scene.play.outcome is None
    scene.renew(rules(TO_APP), enforce=False)
    assert scene.play.outcome is None
    scene.renew(rules(TO_APP))
    assert scene.play.outcome == "revoked"
    assert scene.bus.seen == []


def test_monitor_and_what_may_not_be_heard(piece: int) -> None:
    """It would hear that, too. So it is denied, by that rule; and one that is there ends."""
    deaf = rules(None, [{"receive": SECRET, "member": "Told"}])
    for interface in ("org.freedesktop.DBus.Monitoring", None):
        scene = Scene(deaf, piece=piece)
        scene.ask("BecomeMonitor", interface=interface)
        assert scene.said() == [DENIED]
        assert scene.play.audits[0].rule == "d"
    scene = monitor(rules(None, [{"destination": SECRET}]), piece)
    assert scene.play.tunnel(BACKEND)
    scene.renew(deaf)
    assert scene.play.outcome == "revoked"


@pytest.mark.parametrize("new", [[{"own": APP}], [{"destination": SECRET}]])
def test_monitor_that_may_be_none_when_the_bus_answers(piece: int, new: list[dict[str, object]]) -> None:
    """New rules that come between ask and answer end it as those do that come later; with questions of ours or none."""
    scene = Scene(rules([*TO_APP, *MONITORING]), piece=piece)
    scene.bus.silent = {"BecomeMonitor", "AddMatch", "GetNameOwner"}
    scene.ask("BecomeMonitor", interface="org.freedesktop.DBus.Monitoring")
    asked = scene.last("BecomeMonitor")
    scene.renew(rules(new))
    scene.play.backend(arriving(wire.SIGNAL, ME, BUS, "Last"))
    scene.bus.reply(asked)
    assert scene.play.outcome == "revoked"
    assert not scene.play.tunnel(BACKEND)
    assert scene.said() == ["Last"]
    assert scene.told() == [f"denied call {BUS} {PATH} org.freedesktop.DBus.Monitoring.BecomeMonitor"]


def test_monitor_that_may_still_be_one_when_the_bus_answers(piece: int) -> None:
    scene = Scene(rules([*TO_APP, *MONITORING]), piece=piece)
    scene.bus.silent = {"BecomeMonitor"}
    scene.ask("BecomeMonitor", interface="org.freedesktop.DBus.Monitoring")
    scene.renew(rules(MONITORING))
    scene.bus.reply(scene.last("BecomeMonitor"))
    assert scene.play.tunnel(BACKEND)


def test_monitor_that_the_bus_refuses(piece: int) -> None:
    scene = Scene(rules(MONITORING), piece=piece)
    scene.bus.errors["BecomeMonitor"] = DENIED
    scene.ask("BecomeMonitor", interface="org.freedesktop.DBus.Monitoring")
    assert scene.said() == [DENIED]
    assert not scene.play.tunnel(BACKEND)
    scene.ask("GetId")
    assert scene.reached()[-1] == "GetId"


# ── permissive, and all told ──


def test_permissive(piece: int) -> None:
    """Lets through what the rules would deny, tells of it, and hides nothing."""
    scene = Scene(rules(TO_APP), piece=piece, enforce=False)
    scene.call(SECRET)
    scene.ask("RequestName", SECRET, 0)
    scene.ask("NameHasOwner", SECRET)
    scene.ask("ListNames")
    assert scene.reached() == ["Do", "RequestName", "NameHasOwner", "ListNames"]
    assert SECRET in str(scene.got()[-1].values)
    scene.bus.owner_changes(SECRET, "")
    told = scene.told()
    assert told == [f"would_deny call {SECRET} /org/example/App {APP}.Do", f"would_deny own {SECRET}"]


def test_allowed_ones_are_told_on_demand(piece: int) -> None:
    scene = Scene(rules([*TO_APP, {"own": APP}]), piece=piece, tell_allowed=True)
    scene.call()
    scene.ask("RequestName", APP, 0)
    scene.ask("GetId")
    assert scene.told() == [
        f"allowed call {APP} /org/example/App {APP}.Do",
        f"allowed own {APP}",
        f"allowed call {BUS} {PATH} {BUS}.GetId",
    ]


def test_explicit_denials_of_the_bus(piece: int) -> None:
    """A deny beats what everyone may: no list, no question; and a name is not said to have no owner."""
    scene = Scene(rules(TO_APP, [{"destination": BUS, "member": ["ListNames", "NameHasOwner"]}]), piece=piece)
    scene.ask("ListNames")
    scene.ask("NameHasOwner", APP, interface=None)
    scene.ask("GetNameOwner", APP)
    assert scene.said() == [DENIED, DENIED, ""]


def test_a_call_to_the_bus_that_is_too_long(piece: int) -> None:
    scene = Scene(rules(None), piece=0)
    scene.play.client(wire.method_call(9, PATH, BUS, "AddMatch", BUS, "s", pack("s", ["x" * (1 << 20)])))
    assert scene.play.outcome == "malformed"
    assert scene.reached() == []
