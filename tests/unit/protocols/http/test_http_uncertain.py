"""A deny of which it cannot be known whether it is about the peer: no permissive proxy lets that through."""

from __future__ import annotations

from typing import cast

from sockguard.protocols.base import RequestRule, RequestRules
from sockguard.protocols.http.inspector import HttpInspector
from sockguard.protocols.http.rules import compile_rules, read_what
from tests.unit.protocols.playbook import Play


def test_it_denies_although_the_proxy_is_permissive() -> None:
    sure = RequestRule("sure", True, read_what("http", ["GET /sure"], deny=True))
    unsure = RequestRule("unsure", True, read_what("http", ["GET /unsure"], deny=True), uncertain=True)
    rules = compile_rules([RequestRule("all", False, None), sure, unsure], {"strip_prefix": ""})
    play = Play(HttpInspector, cast("RequestRules", rules), enforce=False)
    play.client(b"GET /unsure HTTP/1.1\r\nHost: x\r\n\r\nGET /sure HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"/unsure" not in play.to_backend
    assert b"GET /sure" in play.to_backend
    assert play.to_client.startswith(b"HTTP/1.1 403 ")
    assert [(audit.kind, audit.rule) for audit in play.audits] == [("denied", "unsure"), ("would_deny", "sure")]
