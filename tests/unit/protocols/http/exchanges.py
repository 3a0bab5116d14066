"""What the tests of HTTP share: rules that are simple to see through, and messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sockguard.protocols.base import RequestRules, RequestVerdict
from sockguard.protocols.http.inspector import HttpInspector
from sockguard.protocols.http.known import Known
from sockguard.protocols.http.request import Request
from tests.unit.protocols.playbook import Play

PIECES = (0, 1, 2, 7)
"""Sizes of the pieces in which every case is shown; 0: whole."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Rules:
    """Stands for HttpRules, whose own tests are elsewhere: allowed paths, and what each request looked like.

    upgrades  what is permitted besides; bodies: a path whose request is judged by its body, and what that must hold
    """

    def __init__(
        self, *paths: str, upgrades: Sequence[str] = (), bodies: Mapping[str, bytes] | None = None, method: str = ""
    ) -> None:
        self.paths = paths
        self.upgrades = frozenset(upgrades)
        self.bodies = bodies or {}
        self.method = method
        self.seen: list[Request] = []

    @property
    def known(self) -> Known[Any]:
        """Nothing is known again here: test_http_known.py has that."""
        return Known()

    def judge(self, request: object, /) -> RequestVerdict:
        assert isinstance(request, Request)
        self.seen.append(request)
        allowed = self.allows(request)
        return RequestVerdict(allowed, "a" if allowed else None, "allowed by a" if allowed else "no rule allows it")

    def allows(self, request: Request) -> bool:
        """The same without being told of it."""
        return (
            all(path in self.paths for path in request.paths)
            and self.upgrades.issuperset(request.upgrade)
            and self.method in ("", request.method)
        )

    def wants_body(self, request: Request) -> bool:
        return request.paths[0] in self.bodies

    def judge_body(self, request: Request, body: bytes) -> RequestVerdict:
        allowed = self.bodies[request.paths[0]] in body and self.judge(request).allowed
        return RequestVerdict(allowed, "a" if allowed else "b", "allowed by a" if allowed else "not with this body")

    def meant(self, request: Request) -> Request:
        return request

    def allows_h2c(self, request: Request) -> bool:
        return "h2c" in self.upgrades


def play(rules: Rules, **options: Any) -> Play:
    """Begin a connection."""
    return Play(HttpInspector, cast("RequestRules", rules), **options)


def in_all_ways(rules: Callable[[], Rules], script: Callable[[Play], None], **options: Any) -> Play:
    """Play a script with every size of piece; the same must come of it. Return one of the plays."""
    plays = [play(rules(), piece=piece, **options) for piece in PIECES]
    for one in plays:
        script(one)
    first, *others = plays
    for one in others:
        assert result(one) == result(first)
    return first


def result(one: Play) -> object:
    """What came of a play, whatever the pieces."""
    return one.to_client, one.to_backend, one.audits, one.end_of_it, one.half_closed(0), one.half_closed(1)


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1", host: str = "Host: x") -> bytes:
    """Write a request's head."""
    lines = [f"{method} {path} HTTP/{version}", *([host] if host else []), *fields]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def status(data: bytes) -> int:
    """The status of the first response, 0 if there is none."""
    return int(data[9:12]) if data else 0
