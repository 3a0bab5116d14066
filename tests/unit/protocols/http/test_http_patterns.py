"""Paths and globs: what they match, what they must not, and which are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import Bad
from sockguard.protocols.http.patterns import PATH_LIMIT, Index, Name, glob, parse_path, value_fault, value_matcher


def matches(pattern: str, path: str) -> bool:
    index: Index[str] = Index()
    index.add(parse_path(pattern), pattern)
    return index.find(path[1:].split("/")) == [pattern]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/", "/", True),
        ("/", "/x", False),
        ("/_ping", "/_ping", True),
        ("/_ping", "/_PING", False),
        ("/_ping", "/_ping/", False),
        ("/_ping", "/x/_ping", False),
        ("/_ping", "/_pingx", False),
        ("/_ping/", "/_ping/", True),
        ("/_ping/", "/_ping", False),
        ("/containers/{id}/json", "/containers/web/json", True),
        ("/containers/{id}/json", "/containers/a/b/json", False),
        ("/containers/{id}/json", "/containers/json", False),
        ("/containers/{id}", "/containers/", False),
        ("/{a}/{b}", "/x/y", True),
        ("/images/{name...}/json", "/images/a/json", True),
        ("/images/{name...}/json", "/images/a/b/c/json", True),
        ("/images/{name...}/json", "/images/json", False),
        ("/images/{name...}/json", "/images/a/json/x", False),
        ("/images/{name...}", "/images/a/b", True),
        ("/images/{name...}", "/images/a/", False),
        ("/images/{name...}", "/images/", False),
        ("/images/{name...}", "/images", False),
        ("/x/{name...}/{tag}", "/x/a/b", True),
        ("/x/{name...}/{tag}", "/x/a/b/", False),
        ("/x/{name...}/{tag}", "/x/a", False),
        ("/{name...}/a/b", "/x/a/b", True),
        ("/{name...}/a/b", "/x/c/b", False),
        # What would be something else in a regular expression or a glob stands for itself.
        ("/a.b", "/axb", False),
        ("/a+", "/aa", False),
        ("/(a)", "/a", False),
        ("/a$", "/a", False),
    ],
)
def test_a_path_matches_whole_segment_by_segment(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "x",
        "*",
        "//",
        "/a//b",
        "/a/./b",
        "/a/..",
        "/a*",
        "/a/**",
        "/a?b=c",
        "/a%20b",
        "/{",
        "/{}",
        "/{...}",
        "/a{b}",
        "/{a}b",
        "/{a b}",
        "/{a}/{a}",
        "/{a...}/{b...}",
        "/a|b",
        "/^a",
        "/a\\b",
        "/a b",
        "/é",
        "/" + "a" * PATH_LIMIT,
    ],
)
def test_paths_that_could_mean_something_else_are_refused(pattern: str) -> None:
    with pytest.raises(Bad):
        parse_path(pattern)


def test_a_name_is_told_from_many() -> None:
    assert parse_path("/a/{b}/{c...}") == ("a", Name("b"), Name("c", many=True))


SEGMENTS = st.sampled_from(["a", "b", "{x}", "{y...}"])


@given(st.lists(st.tuples(SEGMENTS, SEGMENTS, SEGMENTS).map("/".join), max_size=8), st.lists(st.sampled_from("abc")))
def test_the_index_finds_what_each_pattern_alone_would(patterns: list[str], path: list[str]) -> None:
    """Reference: each pattern as a regular expression. So nothing depends on what other patterns are there."""
    index: Index[str] = Index()
    good = [f"/{p}" for p in patterns if p.count("{x}") < 2 and p.count("{y...}") < 2]
    for pattern in good:
        index.add(parse_path(pattern), pattern)

    def reference(pattern: str) -> bool:
        expression = pattern.replace("{x}", "[^/]+").replace("{y...}", "[^/]+(?:/[^/]+)*")
        return re.fullmatch(expression, "/" + "/".join(path)) is not None

    assert sorted(index.find(path or [""])) == sorted(filter(reference, good))


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ("web", "web", True),
        ("web", "web1", False),
        ("web-*", "web-", True),
        ("web-*", "web-1", True),
        ("web-*", "web-1/x", False),
        ("*-1", "web-1", True),
        ("*-1", "web-12", False),
        ("a*b*c", "aXbYbZc", True),
        ("a*b*c", "aXcYb", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a?c", "ac", False),
        ("a.c", "abc", False),
        ("a.c*", "abc", False),
        ("(a)+*", "(a)+b", True),
        ("team/*", "team/app", True),
        ("team/*", "team/app/x", False),
        ("team/**", "team/app/x", True),
        ("team/**", "teams", False),
        ("a*b**", "aXb/c", True),
        ("*", "", True),
    ],
)
def test_values_are_exact_or_globs_that_do_not_cross_a_slash(value: str, text: str, expected: bool) -> None:
    assert value_matcher([value])(text) is expected
    assert value_matcher(["other", value])(text) is expected
    assert value_matcher(["other", "oth*", value])(text) is expected


@pytest.mark.parametrize("value", ["", "**a", "a***", "a b", "%2f", "%", "é", "a\\", "#", "a" * (PATH_LIMIT + 1)])
def test_values_that_can_never_match_are_refused(value: str) -> None:
    assert value_fault(value) is not None


@pytest.mark.parametrize("value", ["web-1", "sha256:0a", "a%20b", "a@b", "*", "team/**"])
def test_values_that_can_match_are_taken(value: str) -> None:
    assert value_fault(value) is None


@given(st.text("ab/*?", max_size=8), st.text("ab/", max_size=10), st.booleans())
def test_globs_are_what_a_backtracking_reader_would_find(pattern: str, text: str, crossing: bool) -> None:
    if not crossing and value_fault(pattern) is not None:
        return
    one = "." if crossing else "[^/]"
    tail = pattern.endswith("**") and not crossing
    body = pattern.removesuffix("**") if tail else pattern
    expression = "".join({"*": f"{one}*", "?": one}.get(c, re.escape(c)) for c in body) + (".*" if tail else "")
    assert glob(pattern, crossing=crossing)(text) is (re.fullmatch(expression, text) is not None)
