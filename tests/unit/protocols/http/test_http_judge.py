"""Verdicts on requests: rules as a file has them, requests as a reader would give them."""

from __future__ import annotations

import dataclasses

import pytest

from sockguard.protocols.base import RequestRule
from sockguard.protocols.http.rules import Request, compile_rules, read_what
from tests.unit.protocols.http.ruling import DOCKER, allow, allowed, ask, compiled, deny

JSON = Request("POST", ("/create",), has_body=True, content_type="application/json")
CREATE = {"methods": ["POST"], "path": "/create", "body": {"forbid": ["/Privileged"]}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /_ping", True),
        ("HEAD /_ping", False),
        ("POST /_ping", False),
        ("get /_ping", False),
        ("GET /_ping/", False),
        ("GET /_ping?x=/version", True),
        ("GET /version?x=/_ping", False),
        ("HEAD /head", True),
        ("GET /any", True),
        ("PURGE /any", True),
        ("GET /containers/web/json", True),
        ("GET /containers/json", False),
    ],
)
def test_methods_and_paths_are_exact_and_the_query_is_no_part_of_the_path(text: str, expected: bool) -> None:
    judge = compiled(allow("GET /_ping", "GET,HEAD /head", "* /any", "GET /containers/{id}/json"))
    assert allowed(judge, text) is expected


@pytest.mark.parametrize("path", ["/secrets/version", "/_ping/x", "/x/version", "/_pingx", "/_ping%7C/version"])
def test_two_paths_are_two_paths_and_no_alternative_in_one_pattern(path: str) -> None:
    """A peer's mistake: "^" + "/_ping|/version" + "$" matches whatever begins with one or ends with the other."""
    assert not allowed(compiled(allow("GET /_ping", "GET /version")), f"GET {path}")


def test_nothing_in_a_rule_is_a_regular_expression() -> None:
    judge = compiled(allow("GET /a.c", "GET /(a)", "GET /x+"))
    for path in ("/abc", "/a", "/xx"):
        assert not allowed(judge, f"GET {path}")
    for path in ("/a.c", "/(a)", "/x+"):
        assert allowed(judge, f"GET {path}")


def test_the_path_as_it_is_decoded_is_judged() -> None:
    """A peer's mistake: rules held against the encoded path, which the service decodes."""
    judge = compiled(allow(), deny("GET /secrets", "GET /secrets/{id...}"))
    for path in ("/%73ecrets", "/secret%73", "/%73%65%63%72%65%74%73/x"):
        assert not allowed(judge, f"GET {path}")
    assert allowed(compiled(allow("GET /_ping")), "GET /%5Fping")


def test_every_reading_must_be_allowed() -> None:
    request = Request("GET", ("/images/a%2Fget", "/images/a/get"))
    assert not compiled(allow("GET /images/{name}")).judge(request).allowed
    assert not compiled(allow("GET /images/a/get")).judge(request).allowed
    verdict = compiled(allow("GET /images/a/get", name="one"), allow("GET /images/{name}", name="two")).judge(request)
    assert verdict.allowed
    assert compiled(allow("GET /images/{name...}")).judge(request).allowed


def test_a_deny_matches_if_any_reading_does() -> None:
    request = Request("GET", ("/images/a%2Fget", "/images/a/get"))
    for path in ("/images/a/get", "/images/{name}"):
        judge = compiled(allow(), deny(f"GET {path}", name="no"))
        assert judge.judge(request)[:3] == (False, "no", "denied by no")


def test_a_deny_beats_every_allow_whatever_the_order() -> None:
    for rules in ([allow("GET /a"), deny("* /{x}")], [deny("* /{x}"), allow("GET /a")]):
        assert not allowed(compiled(*rules), "GET /a")
        assert not allowed(compiled(allow(), *rules), "GET /b")
    assert not allowed(compiled(allow(), deny()), "GET /a")
    assert not allowed(compiled(), "GET /a")
    assert not allowed(compiled(deny("GET /b")), "GET /a")


def test_the_rule_named_is_the_first_that_decides() -> None:
    judge = compiled(
        allow("GET /{any}", name="a"), allow("GET /x", name="b"), deny("GET /d", name="c"), deny("* /{d}/x", name="d")
    )
    assert judge.judge(ask("GET /x"))[:3] == (True, "a", "allowed by a")
    assert judge.judge(ask("GET /d"))[:3] == (False, "c", "denied by c")
    assert judge.judge(ask("GET /x/y")).rule is None
    assert compiled(deny("GET /{d}", name="x"), deny("GET /d", name="y")).judge(ask("GET /d")).rule == "x"


def test_params_narrow_a_name() -> None:
    one = {"methods": ["POST"], "path": "/containers/{id}/{what}", "params": {"id": ["web-1", "web-2"]}}
    two = {"methods": ["POST"], "path": "/c/{id}/{what}", "params": {"id": ["job-*", "db"], "what": ["start", "stop"]}}
    many = {"methods": ["GET"], "path": "/images/{name...}/json", "params": {"name": ["team/app", "lib/*"]}}
    end = {"methods": ["GET"], "path": "/x/{name...}/{tag}", "params": {"tag": ["latest"], "name": ["a/**"]}}
    exact = {"methods": ["GET"], "path": "/y/{name...}/json", "params": {"name": ["team/app"]}}
    judge = compiled(allow(one, two, many, end, exact))
    good = [
        "POST /containers/web-1/start", "POST /containers/web-2/x", "POST /c/job-1/stop", "POST /c/db/start",
        "GET /images/team/app/json", "GET /images/lib/x/json", "GET /x/a/b/c/latest", "GET /y/team/app/json",
    ]  # fmt: skip
    bad = [
        "POST /containers/web-3/start", "POST /containers/web-11/start", "POST /containers/start/web-1",
        "POST /c/job-1/kill", "POST /c/x/start", "POST /c/job-1/start/x", "GET /images/team/app/x/json",
        "GET /images/lib/x/y/json", "GET /images/app/json", "GET /x/b/latest", "GET /x/a/b/old", "GET /x/a/latest",
        "GET /y/team/json", "GET /y/team%2Fapp/json", "GET /y/app/json",
    ]  # fmt: skip
    assert [text for text in good if not allowed(judge, text)] == []
    assert [text for text in bad if allowed(judge, text)] == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", True),
        ("?", True),
        ("?all=1", True),
        ("?filters=x&all", True),
        ("?all=1&all=2", True),
        ("?All=1", False),
        ("?all=1&size=1", False),
        ("?%61ll=1", True),
        ("?%73ize=1", False),
        ("?all=1;size=1", False),
        ("?=1", False),
    ],
)
def test_query_names_the_only_keys(query: str, expected: bool) -> None:
    judge = compiled(allow({"methods": ["GET"], "path": "/a", "query": ["all", "filters"]}))
    assert allowed(judge, f"GET /a{query}") is expected
    none = compiled(allow({"methods": ["GET"], "path": "/a", "query": []}))
    assert allowed(none, f"GET /a{query}") is (query in ("", "?"))


@pytest.mark.parametrize(
    ("upgrade", "plain", "tcp", "both"),
    [("", True, True, True), (" upgrade=tcp", False, True, True), (" upgrade=websocket", False, False, True),
     (" upgrade=tcp,websocket", False, False, True), (" upgrade=tcp,h2c", False, False, False)],
)  # fmt: skip
def test_upgrade_is_a_permission_of_its_own(upgrade: str, plain: bool, tcp: bool, both: bool) -> None:
    """Every protocol asked for must be named: the service picks."""
    entry = {"methods": ["POST"], "path": "/start"}
    for names, expected in (([], plain), (["tcp"], tcp), (["websocket", "tcp"], both)):
        judge = compiled(allow({**entry, "upgrade": names} if names else entry))
        assert allowed(judge, f"POST /start{upgrade}") is expected


def test_two_entries_do_not_add_up_to_one() -> None:
    """Each thing that is asked for in one request must be allowed by the same entry."""
    upgrade = {"methods": ["POST"], "path": "/a", "upgrade": ["tcp"], "query": []}
    query = {"methods": ["POST"], "path": "/a", "query": ["x"]}
    judge = compiled(allow(upgrade), allow(query))
    assert allowed(judge, "POST /a upgrade=tcp")
    assert allowed(judge, "POST /a?x=1")
    assert not allowed(judge, "POST /a?x=1 upgrade=tcp")


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/x-www-form-urlencoded", False),
        ("Application/X-WWW-Form-Urlencoded; charset=x", False),
        ("multipart/form-data; boundary=x", False),
        ("application/json", True),
        (None, True),
    ],
)
def test_query_cannot_be_escaped_by_a_form(content_type: str | None, expected: bool) -> None:
    """Go's ParseForm, which dockerd asks, takes a form's keys before those of the query."""
    judge = compiled(allow({"methods": ["POST"], "path": "/images/create", "query": ["fromImage"]}))
    request = dataclasses.replace(ask("POST /images/create?fromImage=a"), content_type=content_type)
    assert judge.judge(request).allowed is expected
    assert judge.judge(dataclasses.replace(request, has_body=False)).allowed
    anything = compiled(allow("POST /images/create"))
    assert anything.judge(request).allowed


def test_a_deny_matches_upgraded_requests_and_any_query() -> None:
    judge = compiled(allow(), deny("POST /start"))
    for text in ("POST /start", "POST /start upgrade=tcp", "POST /start?a=b", "POST /start upgrade=h2c"):
        assert not allowed(judge, text)
    assert allowed(judge, "POST /other upgrade=tcp")


def test_h2c_is_for_those_whom_a_rule_names() -> None:
    """An allow of everything does not: behind it nobody judges."""
    asked = ask("POST /session upgrade=h2c")
    named = allow({"methods": ["POST"], "path": "/session", "upgrade": ["h2c"]})
    for judge in (compiled(allow()), compiled(allow("POST /session")), compiled()):
        assert not judge.allows_h2c(asked)
        assert not judge.judge(asked).allowed
    for judge in (compiled(named), compiled(allow(), named)):
        assert judge.allows_h2c(asked)
        assert judge.judge(asked).allowed
        assert not judge.allows_h2c(ask("POST /session"))
        assert not judge.allows_h2c(ask("POST /grpc upgrade=h2c"))
        assert not judge.allows_h2c(ask("POST /session upgrade=h2c,tcp"))
    assert not compiled(named, deny("* /{any...}")).allows_h2c(asked)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/containers/json", True),
        ("/v1.43/containers/json", True),
        ("/v4.6.1/containers/json", True),
        ("/v4.6.1/libpod/containers/json", False),
        ("/v4.6.1/libpod/info", True),
        ("/v1.43/v1.43/containers/json", False),
        ("/v1/containers/json", False),
        ("/v1./containers/json", False),
        ("/v1.43.1.1/containers/json", False),
        ("/v1.43-x/containers/json", False),
        ("/V1.43/containers/json", False),
        ("/1.43/containers/json", False),
        ("/v1.43", False),
        ("/v1.43/", False),
        ("/containers/v1.43/json", False),
        ("/containers/v1.43/x", True),
    ],
)
def test_one_version_is_taken_off(path: str, expected: bool) -> None:
    judge = compiled(allow("GET /containers/json", "GET /libpod/info", "GET /containers/{id}/x"), options=DOCKER)
    assert allowed(judge, f"GET {path}") is expected


def test_without_the_option_a_version_is_a_segment() -> None:
    judge = compiled(allow("GET /v1.43/info"))
    assert allowed(judge, "GET /v1.43/info")
    assert not allowed(judge, "GET /info")
    assert not allowed(compiled(allow("GET /info")), "GET /v1.43/info")
    assert not allowed(compiled(allow("GET /v1.43/info"), options=DOCKER), "GET /v1.43/info")


@pytest.mark.parametrize("prefix", ["", "/v1.43", "/v1", "/v1.43.", "/v1.2.3.4", "/v.", "/v4.6.1-rc1", "/v4"])
def test_a_deny_looks_behind_whatever_services_take_for_a_version(prefix: str) -> None:
    """dockerd routes "/v{version:[0-9.]+}", podman "/v{version:[0-9][0-9A-Za-z.-]*}"."""
    judge = compiled(allow(), deny("POST /containers/{id}/exec"), options=DOCKER)
    assert not allowed(judge, f"POST {prefix}/containers/x/exec")
    assert allowed(judge, f"POST {prefix}/containers/x/start")
    judge = compiled(allow(), deny("POST /v1.43/containers/{id}/exec"), options=DOCKER)
    assert not allowed(judge, "POST /v1.43/containers/x/exec")


def test_a_body_has_the_last_word() -> None:
    judge = compiled(allow(CREATE, name="ci"))
    assert judge.judge(JSON)[:3] == (True, "ci", "allowed by ci, if its body has nothing that is forbidden")
    assert judge.wants_body(JSON)
    assert judge.judge_body(JSON, b'{"Privileged": false}')[:3] == (True, "ci", "allowed by ci")
    verdict = judge.judge_body(JSON, b'{"Privileged": true}')
    assert verdict[:3] == (False, None, "no rule allows it: ci would, but the body has /Privileged")
    for body in (b"", b"{", b'{"privileged": false}', b'{"a": 1, "a": 1}'):
        assert not judge.judge_body(JSON, body).allowed


@pytest.mark.parametrize(
    "changed",
    [
        {"content_type": None},
        {"content_type": "text/plain"},
        {"method": "PUT"},
        {"paths": ("/x",)},
    ],
)
def test_what_the_head_says_is_judged_before_the_body(changed: dict[str, object]) -> None:
    """Of a body that is not said to be JSON nothing is known."""
    judge = compiled(allow(CREATE))
    request = dataclasses.replace(JSON, **changed)  # type: ignore[arg-type]
    assert not judge.judge(request).allowed
    assert not judge.wants_body(request)
    assert not judge.judge_body(request, b"{}").allowed


def test_without_a_body_there_is_nothing_to_look_into() -> None:
    """docker start has none; a body that is announced and empty is another matter."""
    judge = compiled(allow(CREATE))
    request = dataclasses.replace(JSON, has_body=False, content_type=None)
    assert judge.judge(request).allowed
    assert not judge.wants_body(request)
    assert judge.judge_body(request, b"").allowed
    assert not judge.judge_body(request, b'{"Privileged": true}').allowed
    assert not judge.judge_body(JSON, b"").allowed
    assert not compiled(allow(CREATE), deny("POST /create")).judge_body(request, b"").allowed


def test_bodies_are_looked_into_only_where_the_verdict_rests_on_them() -> None:
    anything = allow("POST /create", name="any")
    for judge in (compiled(allow(CREATE), anything), compiled(allow(CREATE), allow())):
        assert not judge.wants_body(JSON)
        assert judge.judge_body(JSON, b"no JSON").allowed
    assert not compiled(anything).wants_body(JSON)
    denied = compiled(allow(CREATE), deny("POST /create"))
    assert not denied.wants_body(JSON)
    assert not denied.judge_body(JSON, b"{}").allowed


def test_each_entry_that_looks_into_bodies_has_its_own_say() -> None:
    other = {"methods": ["POST"], "path": "/create", "body": {"forbid": ["/Binds"]}}
    judge = compiled(allow(CREATE, name="one"), allow(other, name="two"))
    assert judge.judge_body(JSON, b'{"Binds": ["x"]}').rule == "one"
    assert judge.judge_body(JSON, b'{"Privileged": true}').rule == "two"
    assert not judge.judge_body(JSON, b'{"Privileged": true, "Binds": ["x"]}').allowed


def test_a_body_is_judged_for_every_reading() -> None:
    request = dataclasses.replace(JSON, paths=("/a%2Fcreate", "/a/create"))
    looking = {"methods": ["POST"], "path": "/a/create", "body": {"forbid": ["/Privileged"]}}
    judge = compiled(allow("POST /{x}", looking))
    assert judge.wants_body(request)
    assert judge.judge_body(request, b"{}").allowed
    assert not judge.judge_body(request, b'{"Privileged": true}').allowed


def test_the_reason_says_what_was_in_the_way() -> None:
    judge = compiled(allow({"methods": ["GET"], "path": "/a", "query": ["all"]}, name="r"))
    assert judge.judge(ask("GET /a?\x1b=1".replace("\x1b", "%1b"))).reason == (
        "no rule allows it: r would, but the query has other keys than all"
    )
    assert judge.judge(ask("GET /a upgrade=tcp")).reason == "no rule allows it: r would, but not with this Upgrade"
    assert judge.judge(ask("GET /b")).reason == "no rule allows it"


def test_a_deny_that_may_be_about_the_peer_comes_first() -> None:
    """It is the one that no permissive proxy lets through, so it is the one that is named."""
    sure = RequestRule("sure", True, read_what("http", ["GET /x"], deny=True))
    unsure = RequestRule("unsure", True, read_what("http", ["GET /x"], deny=True), uncertain=True)
    verdict = compile_rules([sure, unsure], {"strip_prefix": ""}).judge(ask("GET /x"))
    assert (verdict.allowed, verdict.rule, verdict.uncertain) == (False, "unsure", True)
