"""A deny of which it cannot be known whether it is about the peer: no permissive proxy lets that through."""

from __future__ import annotations

from sockguard.protocols.base import Json, RequestRule
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.rules import compile_rules
from tests.unit.protocols.dbus.scripted import APP, ME, SECRET, Scene, rules


def test_it_denies_although_the_proxy_is_permissive() -> None:
    sure = RequestRule("sure", True, [{"destination": [SECRET]}])
    unsure = RequestRule("unsure", True, [{"destination": [APP]}], uncertain=True)
    scene = Scene(compile_rules([RequestRule("all", False, None), sure, unsure], {}), enforce=False)
    scene.call(SECRET)
    assert scene.reached() == ["Do"]
    scene.call(APP)
    assert scene.reached() == []
    assert scene.said()[-1] == "org.freedesktop.DBus.Error.AccessDenied"
    assert [told.split()[0] for told in scene.told()] == ["would_deny", "denied"]


def test_a_name_is_given_back_although_the_proxy_is_permissive() -> None:
    everything = RequestRule("all", False, None)
    sure = RequestRule("sure", True, [{"own": [SECRET]}])
    unsure = RequestRule("unsure", True, [{"own": [APP]}], uncertain=True)
    scene = Scene(rules(None), enforce=False)
    for name in (APP, SECRET):
        scene.ask("RequestName", name, 0)
        scene.bus.signal("NameAcquired", name, destination=ME)
    scene.renew(compile_rules([everything, sure, unsure], {}), enforce=False)
    assert [got.values for got in scene.bus.seen if got.says == "ReleaseName"] == [[APP]]
    assert scene.told() == [f"denied own {APP}"]


def test_a_monitor_is_ended_although_the_proxy_is_permissive() -> None:
    everything = RequestRule("all", False, None)
    what: Json = [{"destination": [BUS], "member": ["BecomeMonitor"]}]
    scene = Scene(rules(None), enforce=False)
    scene.ask("BecomeMonitor", interface="org.freedesktop.DBus.Monitoring")
    scene.renew(compile_rules([everything, RequestRule("sure", True, what)], {}), enforce=False)
    assert scene.play.outcome is None
    scene.renew(compile_rules([everything, RequestRule("unsure", True, what, uncertain=True)], {}), enforce=False)
    assert scene.play.outcome == "revoked"
