"""Who owns which name, followed as the bus tells it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus import match_rule, owners
from sockguard.protocols.dbus.names import BUS
from sockguard.protocols.dbus.owners import EVERY_CHANGE, MAX_MATCHES, Owners, match_rules

NAMES = ["org.a", "org.b", "org.c"]
PEERS = ["", ":1.1", ":1.2"]


@given(changes=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(PEERS))))
def test_the_last_word_is_true(changes: list[tuple[str, str]]) -> None:
    """Both ways round, from names to owners and back; the version changes with each change, and only then."""
    known, plain = Owners(), dict.fromkeys(NAMES, "")
    for name, owner in changes:
        version = known.version
        assert known.changed(name, owner)
        assert (known.version != version) == (plain[name] != owner)
        plain[name] = owner
        for one in NAMES:
            same = {other for other in NAMES if plain[one] and plain[other] == plain[one]}
            assert known.owner.get(one, "") == plain[one]
            assert known.meant_by(one) == same | {one}
        for peer in PEERS[1:]:
            expected = {one for one in NAMES if plain[one] == peer}
            assert known.names_of(peer) == known.meant_by(peer) == expected
    known.keep(["org.a"])
    assert set(known) <= {"org.a"}
    assert known.names_of(plain["org.b"] or ":1.9") <= {"org.a"}


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many owners is said; of peers that were met the oldest is forgotten."""
    monkeypatch.setattr(owners, "MAX_OWNERS", 1)
    monkeypatch.setattr(owners, "MAX_SEEN", 2)
    known = Owners()
    assert known.changed("org.a", ":1.1")
    assert known.changed("org.a", ":1.2")
    assert not known.changed("org.b", ":1.2")
    for peer in (":1.1", ":1.2", ":1.1", ":1.3"):
        known.meet(peer)
    assert [known.met(peer) for peer in (":1.1", ":1.2", ":1.3")] == [False, True, True]
    known.gone(":1.2")
    known.gone(":1.9")
    assert not known.met(":1.2")


def test_who_has_called() -> None:
    """However it was met besides; until it has gone."""
    known = Owners()
    for calls in (False, True, False):
        known.meet(":1.1", calls=calls)
        known.meet(":1.2")
    assert [known.called(peer) for peer in (":1.1", ":1.2", ":1.3")] == [True, False, False]
    known.gone(":1.1")
    assert not known.called(":1.1")


def hears(followed: list[str], name: str) -> bool:
    """Whether these patterns' match rules bring a change of this name."""
    return any(
        match_rule.parse(text).matches(
            4, {BUS}, BUS, "NameOwnerChanged", "/org/freedesktop/DBus", None, (name, "", ":1.1")
        )
        for text in match_rules(followed)
    )


@pytest.mark.parametrize("count", [1, MAX_MATCHES, MAX_MATCHES + 1, 300])
def test_match_rules_bring_what_is_followed(count: int) -> None:
    """However many there are; few rules, and for few names no others."""
    for families in (False, True):
        followed = [f"org{index if families else ''}.n{index}" for index in range(count)]
        followed += [f"{followed[-1]}x.*"]
        assert len(match_rules(followed)) <= MAX_MATCHES
        assert all(hears(followed, name) for name in followed[:-1])
        assert hears(followed, f"{followed[-2]}x.below")
    assert not hears(["org.a", "org.b.*"], "org.a.below")
    assert not hears(["org.a", "org.b.*"], "org.bx")
    assert not hears(["org.a", "org.b.*"], ":1.5")
    assert match_rules(["org.a", "*"]) == (EVERY_CHANGE,)
    assert match_rules([]) == ()
