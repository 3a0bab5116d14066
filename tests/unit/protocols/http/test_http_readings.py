"""Denies and allows of requests that services read in another way than they are written."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import Bad
from sockguard.protocols.http.readings import fold_path
from tests.unit.protocols.http.ruling import DOCKER, allow, allowed, ask, compiled, deny

ADMIN = [
    "GET /admin", "GET /ADMIN", "GET /aDmIn", "GET /admin/", "GET /Admin/", "get /admin", "Get /ADMIN/", "HEAD /admin",
    "head /admin/", "GET /admin;x", "GET /admin;x=1/", "GET /ADMIN;", "GET /;x/admin", "GET /;/admin",
    "GET /admin;/x/y",
    "GET /admin%3Bx", "GET /%61dmin", "GET /%61DMIN%3b", "GET /admin%3Fx", "GET /admin%23", "GET /admin%20",
    "GET /%20admin", "GET /admin%2F", "GET /%2561dmin", "GET /%252561dmin", "GET /x/%252e%252e/admin",
    "GET /x%252F..%252fadmin", "GET /admin%252f", "GET /admin%253b", "GET /admin%2500", "GET /.%252fadmin",
    "GET /admin.json", "GET /admin.", "GET /Admin.a.b", "GET /admin.json/", "GET /admin.json;x",
    "GET /%EF%BD%81dmin", "GET /adm%C4%B0n", "GET /adm%C4%B1n", "GET /%C2%AAdmin", "GET /admin%C2%A0",
    "GET /admin%EF%BC%8F", "POST /admin?_method=GET", "POST /x?_method=get", "POST /admin?a&.method=get",
    "POST /admin?%20_method=HEAD", "POST /admin?X-HTTP-Method-Override=GET",
]  # fmt: skip
NOT_ADMIN = ["GET /administrator", "GET /x", "POST /admin", "GET /admin/x", "GET /x/admin", "GET /adm", "GET /",
             "GET /.admin", "GET /admin-x", "GET /admin%2Dx", "POST /x?method=GET", "POST /x?a=_method"]  # fmt: skip


@pytest.mark.parametrize("text", ADMIN)
def test_a_deny_is_about_whatever_a_service_takes_for_the_same(text: str) -> None:
    wide = allow(), allow("* /{p...}"), allow("GET,HEAD,POST /{p...}", "GET /")
    patterns = ("GET /admin", "GET /Admin", "GET /admin/")
    for rules in wide:
        for pattern in patterns:
            if text == "POST /x?_method=get":
                pattern = "GET /x"
            assert not allowed(compiled(rules, deny(pattern)), text)
            assert not allowed(compiled(rules, deny("* /nothing", pattern)), text)


@pytest.mark.parametrize("text", NOT_ADMIN)
def test_a_deny_is_about_nothing_else(text: str) -> None:
    assert allowed(compiled(allow(), deny("GET /admin")), text)


@pytest.mark.parametrize("method", ["delete", "Delete", "DELETE", "dELETE"])
def test_a_deny_of_a_method_is_about_every_case_of_it(method: str) -> None:
    assert not allowed(compiled(allow(), deny("DELETE /{any...}")), f"{method} /x")
    assert not allowed(compiled(allow("* /x"), deny("PURGE,DELETE /x")), f"{method} /x")
    assert allowed(compiled(allow("DELETE /x")), f"{method} /x") is (method == "DELETE"), "an allow is exact"


@pytest.mark.parametrize(
    "path",
    ["/a/web/secret", "/A/WEB/Secret/", "/a/web;x/secret", "/a;x/web/secret", "/a/w%65b/secret.json", "/a/%57EB/secret",
     "/a/%2577eb/secret", "/a/web%20/secret"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["web", "Web", "we*", "*", "w?b", "**"])
def test_values_in_a_deny_are_folded_as_well(path: str, value: str) -> None:
    entry = {"methods": ["GET"], "path": "/a/{id}/secret", "params": {"id": [value]}}
    assert not allowed(compiled(allow(), deny(entry)), f"GET {path}")
    assert allowed(compiled(allow(), deny(entry)), "GET /a/web/other")
    if "*" not in value:
        assert allowed(compiled(allow(), deny(entry)), "GET /a/db/secret")


@pytest.mark.parametrize("value", ["a???b", "a%20b", "a?b", "A%20B"])
def test_globs_in_a_deny_may_mean_an_escape_or_what_it_stands_for(value: str) -> None:
    entry = {"methods": ["GET"], "path": "/{id}", "params": {"id": [value]}}
    assert not allowed(compiled(allow(), deny(entry)), "GET /a%20b")


def test_a_suffix_counts_for_a_segment_that_stands_for_itself_only() -> None:
    """A name with a dot, such as that of a task of a swarm, is no other thing with a suffix."""
    judge = compiled(allow(), deny({"methods": ["GET"], "path": "/c/{id}", "params": {"id": ["web"]}}, "GET /v/info"))
    assert allowed(judge, "GET /c/web.1.x")
    assert not allowed(judge, "GET /c/WEB")
    assert not allowed(judge, "GET /v/info.json")
    assert not allowed(judge, "GET /v/info" + ".x" * 10000)


@pytest.mark.parametrize("prefix", ["/V1.43", "/v1.43;x", "/v1.43%3Bx", "/%761.43", "/v1.43%2F", "/%2576%31.43"])
def test_a_deny_looks_behind_a_version_however_it_is_written(prefix: str) -> None:
    judge = compiled(allow(), deny("POST /containers/{id}/exec"), options=DOCKER)
    try:
        assert not allowed(judge, f"POST {prefix}/containers/x/exec")
    except Bad:
        assert "%2F" in prefix


@pytest.mark.parametrize(
    "text",
    [
        "GET /containers/;x/json",
        "GET /containers/x;/../json",
        "GET /containers/x;y/json",
        "GET /containers/%3Fx/json",
        "GET /containers/%23x/json",
        "GET /containers/%252e%252e/json",
        "GET /containers/..%252f..%252fsecrets%252fx/json",
        "GET /containers/%252f/json",
        "GET /containers/%25252e%25252e/json",
        "GET /containers/x/json?_method=DELETE",
        "GET /containers/x/json?.method=delete",
        "GET /Containers/x/json",
        "GET /containers/x/json/",
        "get /containers/x/json",
    ],
)
def test_an_allow_holds_for_every_reading(text: str) -> None:
    """For some of these the service would run something else, for some this is only another spelling: none passes."""
    try:
        assert not allowed(compiled(allow("GET /containers/{id}/json")), text)
        assert allowed(compiled(allow()), text)
    except Bad:
        assert "/../" in text


def test_an_allow_takes_names_with_special_characters_where_every_reading_is_allowed() -> None:
    judge = compiled(allow("GET /files/{name}", "GET,DELETE /docs/{name...}"))
    for text in ("GET /files/100%25", "GET /files/a;b.txt", "GET /files/a%3Fb", "GET /files/%2561", "GET /docs/a/b;c/d",
                 "GET /docs/x?_method=delete"):  # fmt: skip
        assert allowed(judge, text)
    assert not allowed(judge, "GET /files/;b")
    assert not allowed(judge, "GET /docs/;b")


def test_denied_requests_with_bodies_are_denied_before_them() -> None:
    create = {"methods": ["POST"], "path": "/create", "body": {"forbid": ["/X"]}}
    judge = compiled(allow(create), deny("DELETE /create"))
    request = dataclasses.replace(ask("POST /create"), query=(("_method", "DELETE"),))
    assert not judge.wants_body(request)
    assert not judge.judge_body(request, b"{}").allowed


SEGMENT = st.text(st.sampled_from("aB;.%42%62%C3%A4-"), max_size=8)


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_whatever_a_deny_names_it_denies_in_any_case(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    try:
        request = ask(f"GET {path}")
    except Bad:
        return
    for reading in request.paths:
        assert fold_path(reading) == fold_path(reading.swapcase() if "%" not in reading else reading)
    judge = compiled(allow(), deny("GET /{p...}", "GET /"))
    assert not judge.judge(request).allowed
