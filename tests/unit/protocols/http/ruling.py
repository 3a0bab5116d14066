"""Rules as a file would have them, compiled, and questions to them."""

from __future__ import annotations

from collections.abc import Mapping

from sockguard.protocols.base import Json, RequestRule
from sockguard.protocols.http import rules
from sockguard.protocols.http.rules import HttpRules, Request

DOCKER: Mapping[str, Json] = {"strip_prefix": "docker-version"}


def allow(*http: object, name: str = "allow") -> RequestRule:
    """One allow with these entries of ``http``; none: everything."""
    return RequestRule(name, False, rules.read_what("http", [*http], deny=False) if http else None)


def deny(*http: object, name: str = "deny") -> RequestRule:
    """One deny with these entries of ``http``; none: everything."""
    return RequestRule(name, True, rules.read_what("http", [*http], deny=True) if http else None)


def preset(name: str) -> RequestRule:
    """One allow that is a preset."""
    return RequestRule(name, False, rules.read_what("presets", [name], deny=False))


def compiled(*given: RequestRule, options: Mapping[str, Json] | None = None) -> HttpRules:
    """The rules of one peer."""
    return rules.compile_rules(given, rules.read_options(options or {}))


def ask(text: str) -> Request:
    """A request as a person types it."""
    return rules.parse_request(text, {})


def allowed(judge: HttpRules, text: str) -> bool:
    """The verdict on a request as a person types it."""
    return judge.judge(ask(text)).allowed
