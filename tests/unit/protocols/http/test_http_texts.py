"""Requests as text, there and back, and what is suggested from them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import Bad
from sockguard.protocols.http.rules import describe, parse_request, suggest_what
from tests.unit.protocols.http.ruling import DOCKER, allow, allowed, compiled


def test_a_request_as_a_person_types_it() -> None:
    request = parse_request("POST /v1.43/exec/a%2Fb/start?x=1&y upgrade=TCP,h2c", {})
    assert request.method == "POST"
    assert set(request.paths) == {"/v1.43/exec/a%2Fb/start", "/v1.43/exec/a/b/start"}
    assert request.query == (("x", "1"), ("y", None))
    assert request.upgrade == ("tcp", "h2c")
    assert request.has_body
    assert request.content_type == "application/json"


@pytest.mark.parametrize(
    "text",
    [
        "", "GET", "/x", "GET x", "GET /x y", "GET /x upgrade=", "GET /x upgrade=a,", "GET /x upgrade=a b", "G(T /x",
        "GET /é", "GET /a//b", "GET /a/../b", "GET /%2e", "GET /a#b", "GET /%zz", "CONNECT /x", "OPTIONS *",
        "GET https://x/y",
    ],
)  # fmt: skip
def test_what_is_never_let_through_is_said_to_be_no_request(text: str) -> None:
    with pytest.raises(Bad):
        parse_request(text, {})


PATHS = st.lists(st.sampled_from(["a", "b", "%20", "x%2Fy", "c%3Ad", "libpod", "v1.43", "json"]), min_size=1).map(
    lambda parts: "/" + "/".join(parts)
)
TEXTS = st.tuples(
    st.sampled_from(["GET ", "HEAD ", "POST "]),
    PATHS,
    st.sampled_from(["", "?a=1&b", "?a=%20%26;c=1", "?=", "?\u2603".replace("\u2603", "%E2%98%83=%ff")]),
    st.sampled_from(["", " upgrade=tcp", " upgrade=tcp,h2c"]),
).map("".join)


@given(TEXTS)
def test_the_text_of_a_request_means_that_request(text: str) -> None:
    request = parse_request(text, {})
    assert parse_request(describe(request), {}) == request


def test_a_text_is_one_printable_line() -> None:
    request = dataclasses.replace(parse_request("GET /x", {}), query=(("a\n\x1b", "b \u202e"), ("", None)))
    assert describe(request) == "GET /x?a%0A%1B=b+%E2%80%AE&"


def test_suggestions_read_well() -> None:
    seen = [
        "GET /_ping",
        "HEAD /_ping",
        "GET /containers/json?all=1",
        "GET /containers/a/json",
        "GET /containers/b/json",
        "POST /containers/b/start",
        "POST /exec/1/start upgrade=tcp",
        "POST /exec/1/start",
        "GET /libpod/containers/a/json",
        "GET /libpod/containers/c/json",
        "DELETE /containers/x%20y",
        "not a request",
        "GET /containers/aaaa…",
    ]
    assert suggest_what(seen) == [
        "GET,HEAD /_ping",
        {"methods": ["GET"], "path": "/containers/{id}/json", "params": {"id": ["a", "b"]}},
        "POST /containers/b/start",
        "GET /containers/json",
        {"methods": ["DELETE"], "path": "/containers/{id}", "params": {"id": ["x%20y"]}},
        {"methods": ["POST"], "path": "/exec/1/start", "upgrade": ["tcp"]},
        {"methods": ["GET"], "path": "/libpod/containers/{id}/json", "params": {"id": ["a", "c"]}},
    ]
    assert suggest_what(["GET /v1.43/info", "GET /v1.41/info", "GET /info"], DOCKER) == ["GET /info"]
    assert suggest_what(["GET /v1.43/info"]) == ["GET /v1.43/info"]
    assert suggest_what(["GET /a*b/c", "GET /a%2ab/c"]) == []
    assert suggest_what([]) == []


@given(st.lists(TEXTS, max_size=6), TEXTS)
def test_suggestions_let_through_what_was_seen_and_no_other_method_path_or_upgrade(seen: list[str], new: str) -> None:
    what = suggest_what(seen, DOCKER)
    judge = compiled(*[allow(*what)] if what else [], options=DOCKER)
    assert [text for text in seen if not allowed(judge, text)] == []
    if allowed(judge, new):
        given = [parse_request(text, {}) for text in seen]
        request = parse_request(new, {})
        bare = {path.removeprefix("/v1.43") or path for path in request.paths}
        known = {
            (one.method, path.removeprefix("/v1.43") or path, upgrade)
            for one in given
            for path in one.paths
            for upgrade in ((), one.upgrade, one.upgrade[:1])
        }
        assert all((request.method, path, request.upgrade) in known for path in bare)
