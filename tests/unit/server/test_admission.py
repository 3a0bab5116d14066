"""Who is let in: what is remembered of verdicts, and what is told of those whom a permissive proxy lets through."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.identity import peercred
from sockguard.identity.peer import OVERFLOW_ID, Peer, Unknown
from sockguard.policy.decide import decide
from sockguard.policy.rule import Action, Rule, Users, Who
from sockguard.server import admission
from sockguard.server.admission import Admission
from tests.unit.server.conftest import Control, allow, config, proxy

END = datetime(2027, 1, 1, tzinfo=UTC)
PEER = Peer(1, 1, frozenset({1}), pid=1)


def of(*rules: Rule) -> Admission:
    return Control(config(proxy("web", *rules))).admissions["web"]


def by_group(name: str, action: Action, *gids: int) -> Rule:
    return Rule(name, action, Who(groups=frozenset(gids)))


def test_an_allow_ends_though_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by a clock that is ahead, which is put right: the rule admits again, and ends when it says."""
    now = END + timedelta(days=1)
    monkeypatch.setattr(admission, "_now", lambda: now)
    subject = of(allow("brief", 1, until=END))
    assert not subject.judge(PEER).verdict.allowed
    now = END - timedelta(hours=1)
    assert subject.judge(PEER).verdict.allowed
    now = END
    assert not subject.judge(PEER).verdict.allowed


def test_a_deny_is_in_force_again_when_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allow that is remembered from after its end is not given out before it."""
    now = END
    monkeypatch.setattr(admission, "_now", lambda: now)
    subject = of(allow("all"), Rule("brief", Action.DENY, Who(Users(frozenset({1}))), until=END))
    assert subject.judge(PEER).verdict.allowed
    now = END - timedelta(hours=1)
    assert not subject.judge(PEER).verdict.allowed


GROUPS = st.frozensets(st.sampled_from([1, 2, 3, 4, OVERFLOW_ID])) | st.just(Unknown("gone"))
PEERS = st.builds(Peer, uid=st.just(1), gid=st.sampled_from([1, 2, OVERFLOW_ID]), groups=GROUPS)


@given(st.lists(PEERS, max_size=20))
def test_what_is_remembered_is_what_would_be_decided(peers: list[Peer]) -> None:
    """Whoever came before, of whatever groups, each gets the verdict of their own."""
    subject = of(by_group("a", Action.ALLOW, 1), by_group("b", Action.DENY, 2), by_group("c", Action.ALLOW, 3))
    for peer in peers:
        assert subject.judge(peer).verdict == decide(subject.proxy.rules, peer, END)


def test_groups_that_no_rule_names_are_not_remembered() -> None:
    """A user with sub-gids can come with ever other sets of 65536 groups: that costs no memory behind the verdict."""
    subject = of(by_group("a", Action.ALLOW, 5))
    for number in range(10):
        peer = Peer(1, 1, frozenset(range(number, 60_000)))
        assert subject.judge(peer).verdict.allowed == (number <= 5)
    assert [len(groups) for _, _, groups, _ in subject._remembered if isinstance(groups, frozenset)] == [1, 0]


@pytest.mark.parametrize(
    "options",
    [{"max_connections": 0}, {"identity": "client"}],
    ids=["at its limit", "root is not shown"],
)
async def test_would_deny_is_told_only_of_who_is_let_in(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissive concerns what the rules say; who is turned away for another reason has one event, and that says so."""
    monkeypatch.setattr(peercred, "credentials", lambda _: (1, 0, 0))
    made = Control(config(proxy("web", allow("nobody", 99), enforce=False, **options)))
    client, _peer = socket.socketpair()
    with _peer:
        await made.admissions["web"].arrive(client)
    assert [told["event"] for told in made.audit.told] == ["connection_denied"]
    assert made.record.of("web").would_deny == 0
    made.close()
