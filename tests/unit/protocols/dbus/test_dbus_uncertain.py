"""A deny of which it cannot be known whether it is about the peer: no permissive proxy lets that through."""

from __future__ import annotations

from sockguard.protocols.base import RequestRule
from sockguard.protocols.dbus.rules import compile_rules
from tests.unit.protocols.dbus.scripted import APP, SECRET, Scene


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
