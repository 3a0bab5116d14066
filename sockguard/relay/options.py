"""What a relay knows of the proxies, read from what comes with a generation. Only what is exactly right is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Final, TypeVar, cast

from sockguard.errors import ChannelError
from sockguard.protocols.base import Json, RequestRule

TICK_SECONDS: Final = 0.25
"""Resolution of idle timeouts (never early), and how long a side waits that the kernel could not serve (FOR_NOW)."""

_PROXY_KEYS: Final = frozenset(
    {"name", "protocol", "fds", "sender", "idle_timeout", "enforce", "options", "backend_uid", "rules"}
)
_KEYS: Final = frozenset({"log_allowed", "proxies", "sets", "connections"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one proxy.

    idle_ticks   the idle timeout in ticks, 0 for none
    options      the protocol's own; empty where it is not inspected
    backend_uid  that the service sees; None: the client's own
    rules        all of the proxy's, in the order in which sets count them; empty where it is not inspected
    """

    name: str
    protocol: str
    refuse_fds: bool
    same_user: bool
    idle_ticks: int
    enforce: bool = True
    options: Mapping[str, Json] = field(default_factory=dict)
    backend_uid: int | None = None
    rules: tuple[RequestRule, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationContent:
    """A whole generation.

    proxies      by their index
    sets         interned sets of rules by their number: each a proxy's index, and indexes of its rules
    connections  the set of each live connection on an inspected proxy
    log_allowed  allowed requests are told, too
    """

    proxies: list[Options]
    sets: list[tuple[int, tuple[int, ...]]]
    connections: dict[int, int]
    log_allowed: bool


def read_generation(data: bytes) -> GenerationContent:
    """Read the JSON of a generation. Raises ChannelError for anything that is not exactly as messages.py has it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError("a generation that is no JSON") from error
    value = _table(value, _KEYS)
    proxies = _list(value["proxies"], _proxy)
    sets = _list(value["sets"], lambda item: _set(item, proxies))
    connections = _list(value["connections"], lambda item: _connection(item, len(sets)))
    return GenerationContent(proxies, sets, dict(connections), _exactly(value["log_allowed"], bool))


def _proxy(value: object) -> Options:
    row = _table(value, _PROXY_KEYS)
    uid = row["backend_uid"]
    options = row["options"]
    if type(options) is not dict:
        raise _bad()
    return Options(
        name=_exactly(row["name"], str),
        protocol=_exactly(row["protocol"], str),
        refuse_fds=_one_of(row["fds"], "refuse", "forward"),
        same_user=_one_of(row["sender"], "same-user", "any"),
        idle_ticks=_ticks(row["idle_timeout"]),
        enforce=_exactly(row["enforce"], bool),
        options=options,
        backend_uid=None if uid is None else _number(uid),
        rules=tuple(_list(row["rules"], _rule)),
    )


def _rule(value: object) -> RequestRule:
    match value:
        case [str(name), bool(deny), what]:
            return RequestRule(name, deny, cast(Json, what))  # it came out of json.loads
    raise _bad()


def _set(value: object, proxies: list[Options]) -> tuple[int, tuple[int, ...]]:
    match value:
        case [proxy, rules]:
            index = _number(proxy, len(proxies))
            known = len(proxies[index].rules)
            return index, tuple(_list(rules, lambda item: _index(item, known)))
    raise _bad()


def _index(value: object, below: int) -> int:
    """Of a rule; ~index, a number below 0, for one that may be about the peer or not."""
    if type(value) is not int or not -below <= value < below:
        raise _bad()
    return value


def _connection(value: object, sets: int) -> tuple[int, int]:
    match value:
        case [connection, number]:
            return _number(connection), _number(number, sets)
    raise _bad()


def _table(value: object, keys: frozenset[str]) -> dict[str, object]:
    if type(value) is not dict or value.keys() != keys:
        raise _bad()
    return value


def _list(value: object, read: Callable[[object], T]) -> list[T]:
    if type(value) is not list:
        raise _bad()
    return [read(item) for item in value]


def _exactly(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise _bad()
    return value


def _number(value: object, below: int | None = None) -> int:
    if type(value) is not int or value < 0 or (below is not None and value >= below):
        raise _bad()
    return value


def _one_of(value: object, yes: str, no: str) -> bool:
    if value not in (yes, no):
        raise _bad()
    return value == yes


def _ticks(value: object) -> int:
    if type(value) not in (int, float) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise _bad()
    return ceil(value / TICK_SECONDS)


def _bad() -> ChannelError:
    return ChannelError("a generation that is none")
