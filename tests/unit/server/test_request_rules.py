"""Which rules a connection's requests go by: those of its peer, as they are now."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import trio

from sockguard.identity.peer import Peer, Unknown
from sockguard.policy.rule import Action, Rule, Who
from sockguard.privsep.messages import Assign, Close, Credits, RuleSets
from sockguard.server import admission
from tests.unit.server.conftest import Control, File, Make, allow, config, deny, proxy, reloader

GET = ({"path": "/x"},)
UID = os.geteuid()
OTHER = UID + 1


async def test_an_admitted_connection_has_its_peers_rules() -> None:
    """Allows that match, denies that match, in the file's order; none where requests are not inspected."""
    rules = (allow("a", OTHER), allow("b", UID, what=GET), deny("c", UID, what=GET), deny("d", OTHER, what=GET))
    for protocol, wanted in (("http", (1, 2)), ("dbus", (1, 2)), ("stream", ())):
        made = Control(config(proxy("web", *rules, protocol=protocol)))
        client, _peer = socket.socketpair()
        with _peer:
            await made.admissions["web"].arrive(client)
        (connection,) = made.connections
        assert connection.rules == wanted
        made.close()


async def test_a_permissive_proxy_reduces_its_rules_all_the_same() -> None:
    """Whom no rule admits has none to be judged by; a deny that matches is one of them."""
    for rules, wanted in (((allow("a", OTHER),), ()), ((allow("a", UID), deny("b", UID)), (0, 1))):
        made = Control(config(proxy("web", *rules, enforce=False)))
        client, _peer = socket.socketpair()
        with _peer:
            await made.admissions["web"].arrive(client)
        (connection,) = made.connections
        assert (connection.rule, connection.rules) == (None, wanted)
        made.close()


@pytest.fixture
def at() -> Iterator[Control]:
    """A proxy that asks for programs, so that each of two peers of one uid is judged by itself."""
    unit = Rule("unit", Action.DENY, Who(units=("cron.service",)), what=({"path": "/x"},))
    made = Control(config(proxy("web", allow("a", 1), unit)))
    yield made
    made.close()


def test_the_memo_is_no_ones_who_differs(at: Control) -> None:
    """Facts that differ from process to process are looked at each time; a deny that may match is among the rules."""
    subject = at.admissions["web"]
    peers = [
        Peer(1, 1, frozenset({1}), cgroup=cgroup)
        for cgroup in ("/system.slice/cron.service", "/system.slice/other.service", Unknown("gone"))
    ]
    assert [subject.judge(peer).rules for peer in peers] == [(0, 1), (0,), (0, ~1)]


def test_the_memo_forgets_when_a_rule_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reduced before a rule's ``until`` is not given out after it; nor what another configuration said."""
    now = datetime(2027, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(admission, "_now", lambda: now)
    made = Control(config(proxy("web", allow("a", 1), allow("b", 1, until=now + timedelta(seconds=1)))))
    subject, peer = made.admissions["web"], Peer(1, 1, frozenset({1}))
    assert subject.judge(peer).rules == subject.judge(peer).rules == (0, 1)
    now += timedelta(seconds=1)
    assert subject.judge(peer).rules == (0,)
    subject.renew(proxy("web", allow("x", 2), allow("a", 1)), subject._accounts)
    assert subject.judge(peer).rules == (1,)
    made.close()


# ── live connections ──


WEB = """
[proxy.web]
listen = "/web"
backend = "/web-private"
protocol = "http"
[[proxy.web.allow]]
users = [2]
[[proxy.web.allow]]
users = [1, 3]
"""


async def test_a_reload_brings_the_new_rules_to_live_connections(control: Make) -> None:
    """Those that are revoked are closed first; then one generation has the new rules of all others, in one stroke."""
    before = config(proxy("web", allow("a", 1, 9), allow("b", 2)))
    async with control(before) as made:
        await made.relays.told(Credits)
        first, second, revoked = [made.admit(uid) for uid in (1, 2, 9)]
        await made.relays.handed()
        await made.relays.handed()
        file = File()
        file.text = WEB

        async def as_relay() -> None:
            assert await made.relays.told(Close) == Close(((revoked.number, "revoked"),))
            number, content = await made.relays.generation()
            assert number == 2
            assert content.sets == [(0, (1,)), (0, (0,))]
            assert content.connections == {first.number: 0, second.number: 1}

        in_force: list[str | None] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(as_relay)
            new, count = await reloader(made, file).reload(before, lambda: in_force.append(first.rule))
        assert count == 1
        assert in_force == ["web.allow[1]"]
        assert [rule.name for rule in new.proxies["web"].rules] == ["web.allow[0]", "web.allow[1]"]
        assert (first.rule, first.rules) == ("web.allow[1]", (1,))


async def test_when_a_rule_ends_others_hold(control: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live connection that is still admitted goes by what is left; one whose rules are the same is left alone."""
    now = datetime(2027, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(admission, "_now", lambda: now)
    rules = (allow("a", 1, 2), allow("b", 1, until=now + timedelta(seconds=1), what=GET))
    async with control(config(proxy("web", *rules))) as made:
        await made.relays.told(Credits)
        changed, _same = made.admit(1), made.admit(2)
        await made.relays.handed()
        await made.relays.handed()
        now += timedelta(seconds=1)
        assert reloader(made, File()).judge_again(lambda _: True) == 0
        assert changed.rules == (0,)
        told = [message for message in made.relays.heard() if not isinstance(message, RuleSets)]
        assert told == [Assign(((changed.number, 1),))]  # the set that the other one has


async def test_what_is_closing_is_not_judged_again(control: Make) -> None:
    """A connection that was told to end is not counted as revoked a second time."""
    async with control(config(proxy("web", allow("a", 1)))) as made:
        await made.relays.told(Credits)
        made.pool.close(made.admit(1), "closed_by_operator")
        made.admissions["web"].renew(proxy("web", allow("b", 2)), made.admissions["web"]._accounts)
        assert reloader(made, File()).judge_again(lambda _: True) == 0
