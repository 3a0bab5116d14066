"""Rules as a relay keeps them: told in their turn, shared among those who have the same, gone with their generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from sockguard.errors import ChannelError
from sockguard.privsep.messages import Row
from sockguard.protocols.base import Json, RequestRule, RequestRules
from sockguard.relay import rules
from sockguard.relay.options import GenerationContent, Options, read_generation
from tests.unit.relay.conftest import generation
from tests.unit.relay.lines import Lines


class Compiler:
    """Counts what is compiled; the rules' names are all that is asked of them. A fake of a protocol's rules.py."""

    def __init__(self) -> None:
        self.compiled: list[tuple[RequestRule, ...]] = []

    def compile_rules(self, rules: Sequence[RequestRule], options: Mapping[str, Json]) -> RequestRules:
        self.compiled.append(tuple(rules))
        return Lines([rule.name for rule in rules])


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(rules, "rules_of", lambda _: made)
    return made


def content(**more: object) -> GenerationContent:
    two = {"name": "one", "protocol": "lines", "rules": [["a", False, None], ["b", True, None]]}
    return read_generation(generation(two, {"name": "other", "protocol": "lines"}, sets=[[0, [0, -2]]], **more))


def made(compiler: Compiler) -> rules.Rules:
    kept = rules.Rules()
    kept.renew(1, content())
    return kept


def test_a_set_is_compiled_when_it_is_needed_and_once(compiler: Compiler) -> None:
    kept = made(compiler)
    one = kept.proxy(0)
    assert not compiler.compiled
    assert kept.of(0, one) is kept.of(0, one)
    assert compiler.compiled == [(RequestRule("a", False, None), RequestRule("b", True, None, uncertain=True))]


def test_another_generation_forgets_what_was_compiled(compiler: Compiler) -> None:
    kept = made(compiler)
    before = kept.of(0, kept.proxy(0))
    kept.renew(2, content())
    assert kept.of(0, kept.proxy(0)) is not before


def test_no_set_is_no_rule_at_all_for_a_proxy_that_is_gone_too(compiler: Compiler) -> None:
    kept = made(compiler)
    gone = Options("gone", "lines", refuse_fds=False, same_user=False, idle_ticks=0)
    kept.of(rules.NO_RULES, kept.options_of(gone))
    assert compiler.compiled == [()]
    assert kept.options_of(kept.proxy(1)) is kept.proxy(1)


def test_what_connections_share_is_kept_with_their_proxy(compiler: Compiler) -> None:
    kept = made(compiler)
    one, other = kept.shared(kept.proxy(0)), kept.shared(kept.proxy(1))
    assert one is not other
    kept.renew(2, content())
    assert kept.shared(kept.proxy(0)) is one
    kept.renew(3, read_generation(generation({"name": "other"})))
    kept.renew(4, content())
    assert kept.shared(kept.proxy(0)) is not one


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, "0"),
        (2, 0, "0"),
        (1, 2, ""),
        (1, -1, ""),
        (1, 0, "2"),
        (1, 0, "-3"),
        (1, 0, "x"),
        (1, 0, ","),
        (1, 1, "0"),
    ],
)
def test_sets_that_do_not_follow_what_is_known(compiler: Compiler, row: Row) -> None:
    with pytest.raises(ChannelError):
        made(compiler).add_sets([row])


def test_sets_that_follow(compiler: Compiler) -> None:
    kept = made(compiler)
    kept.add_sets([(1, 0, "1,-1"), (2, 1, "")])
    kept.of(1, kept.proxy(0))
    kept.of(2, kept.proxy(1))
    assert [[rule.name for rule in each] for each in compiler.compiled] == [["b", "a"], []]


@pytest.mark.parametrize("number", [1, -2])
def test_a_set_that_was_not_told(compiler: Compiler, number: int) -> None:
    kept = made(compiler)
    with pytest.raises(ChannelError):
        kept.of(number, kept.proxy(0))


def test_a_set_of_another_proxy(compiler: Compiler) -> None:
    kept = made(compiler)
    with pytest.raises(ChannelError):
        kept.of(0, kept.proxy(1))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_proxy_that_was_not_told(compiler: Compiler, index: int) -> None:
    with pytest.raises(ChannelError):
        made(compiler).proxy(index)
