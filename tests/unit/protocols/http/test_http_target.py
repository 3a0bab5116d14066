"""Request targets: what services may make of a path, and that what is judged is what is sent."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.http.limits import MAX_PAIRS, MAX_READ_PATH
from sockguard.protocols.http.responses import Refused
from sockguard.protocols.http.target import read_target


@pytest.mark.parametrize(
    ("raw", "forwarded", "paths"),
    [
        (b"/", b"/", ["/"]),
        (b"/a", b"/a", ["/a"]),
        (b"/a/", b"/a/", ["/a/"]),
        (b"/.a/..b/c./...", b"/.a/..b/c./...", ["/.a/..b/c./..."]),
        (b"/%61%2D%5f%7E", b"/a-_~", ["/a-_~"]),
        (b"/a%2fb", b"/a%2Fb", ["/a%2Fb", "/a/b"]),
        (b"/a%20%c3%a4", b"/a%20%C3%A4", ["/a%20%C3%A4"]),
        (b"/a%3ab", b"/a%3Ab", ["/a%3Ab", "/a:b"]),
        (b"/a%3ab%2Fc", b"/a%3Ab%2Fc", ["/a%3Ab%2Fc", "/a:b%2Fc", "/a%3Ab/c", "/a:b/c"]),
        (b"/%2561", b"/%2561", ["/%2561", "/a"]),
        (b"/%252F", b"/%252F", ["/%252F", "/"]),
        (b"/%25252561", b"/%25252561", ["/%25252561", "/%252561", "/%2561"]),
        (b"/100%25", b"/100%25", ["/100%25"]),
        (b"/100%25/x", b"/100%25/x", ["/100%25/x"]),
        (b"/a/b/%252e%252E%252fc", b"/a/b/%252e%252E%252fc", ["/a/b/%252e%252E%252fc", "/a/c"]),
        (b"/a/%255cb", b"/a/%255cb", ["/a/%255cb", "/a/b"]),
        (b"/a%2500b", b"/a%2500b", ["/a%2500b", "/a"]),
        (b"/a%253Fb", b"/a%253Fb", ["/a%253Fb", "/a"]),
        (b"/a%3Fb%23", b"/a%3Fb%23", ["/a%3Fb%23", "/a"]),
        (b"/%23", b"/%23", ["/%23", "/"]),
        (b"/a;x=1", b"/a;x=1", ["/a;x=1", "/a"]),
        (b"/a;x/b;y/", b"/a;x/b;y/", ["/a;x/b;y/", "/a/b/", "/a"]),
        (b"/a/;x/b", b"/a/;x/b", ["/a/;x/b", "/a/b", "/a/"]),
        (b"/;x", b"/;x", ["/;x", "/"]),
        (b"/a%3Bx", b"/a%3Bx", ["/a%3Bx", "/a;x", "/a"]),
        (b"/a%253Bx/b", b"/a%253Bx/b", ["/a%253Bx/b", "/a;x/b", "/a/b", "/a"]),
        (b"/a?/../%2e%2F//x", b"/a?/../%2e%2F//x", ["/a"]),
        (b"http://h/a", b"/a", ["/a"]),
        (b"HTTP://h:1", b"/", ["/"]),
        (b"http://h?b", b"/?b", ["/"]),
    ],
)
def test_paths(raw: bytes, forwarded: bytes, paths: list[str]) -> None:
    target = read_target(raw)
    assert target.forwarded == forwarded
    assert list(target.paths) == paths


def test_the_authority_of_an_absolute_form_takes_the_place_of_host() -> None:
    assert read_target(b"http://h.example:80/a").host == b"h.example:80"
    assert read_target(b"/a").host is None


@pytest.mark.parametrize(
    "raw",
    [
        b"//", b"//a", b"/a//b", b"/a//", b"/.", b"/..", b"/./a", b"/a/.", b"/a/..", b"/a/../b", b"/a/./b", b"/../",
        b"/%2e", b"/%2E%2e/a", b"/a/.%2e/b", b"/a%2Eb", b"/a%2f..%2fb", b"/a%2F.%2Fb", b"/a%2F%2Fb", b"/a/%2Fb",
        b"/%2F", b"/a/..;/b", b"/a/.;x/b", b"/a/..%3b/b", b"/a\\b", b"/a%5cb", b"/%00", b"/a%0d%0ab", b"/%7F", b"/a#b",
        b"/a?b#c", b"/%", b"/%4", b"/%zz", b"/%u002e", b"/a?%", b"/a?b=%g0", b"/%ff", b"/%c0%af", b"/%c0%ae",
        b"/%ed%a0%80",
        b"/a|b", b"/a{b}", b"/a[b]", b'/a"b', b"/a<b", b"/a^b", b"/a`b", b"", b"a", b"*", b"a/b", b"?a", b"h:80",
        b"https://h/a", b"ftp://h/a", b"http:///a", b"http://u@h/a", b"http:/h/a", b"http://h\\a/b", b"http://h/../a",
        b"http+unix://h/a", b"://h/a", b"http://h//a",
    ],
)  # fmt: skip
def test_doubts_are_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_target(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", []),
        ("a", [("a", None)]),
        ("a=", [("a", "")]),
        ("a=b=c&&d", [("a", "b=c"), ("d", None)]),
        ("a=1&a=2&a=1", [("a", "1"), ("a", "2")]),
        ("%61+b=%63%20+d", [("a b", "c  d")]),
        ("a;b=1&c", [("a;b", "1"), ("c", None), ("a", None), ("b", "1")]),
        ("a%3Bb=1%26c", [("a;b", "1&c")]),
        ("a%FF=%C3%A4", [("a\N{REPLACEMENT CHARACTER}", "\xe4")]),
        ('f={"a":["b"]}', [("f", '{"a":["b"]}')]),
        ("a?b/c", [("a?b/c", None)]),
    ],
)
def test_queries(query: str, pairs: list[tuple[str, str | None]]) -> None:
    target = read_target(f"/a?{query}".encode())
    assert list(target.query) == pairs
    assert target.forwarded == f"/a?{query}".encode(), "as it came"
    assert target.paths == ("/a",)


def test_a_query_has_so_many_keys() -> None:
    assert len(read_target(b"/?" + b"&".join(b"%d" % n for n in range(MAX_PAIRS))).query) == MAX_PAIRS
    with pytest.raises(Refused):
        read_target(b"/?" + b"&".join(b"%d" % n for n in range(MAX_PAIRS + 1)))


@pytest.mark.parametrize("piece", [b"%20", b"%25", b"/a;b", b";", b"x;"])
def test_a_path_with_more_than_one_reading_is_no_longer_than_this(piece: bytes) -> None:
    fitting = (b"/" + piece * MAX_READ_PATH).replace(b"//", b"/")[: MAX_READ_PATH // 12 * 12 + 1]
    assert read_target(fitting).paths
    assert read_target(b"/" + b"x" * 60000 + b"?%20;").paths
    with pytest.raises(Refused) as caught:
        read_target(fitting + b"x" * 12)
    assert caught.value.status == 400


PART = st.sampled_from(
    [
        "/",
        "/",
        "a",
        "b",
        ".",
        "..",
        "%2e",
        "%2f",
        "%2F",
        "%61",
        "%5c",
        "%00",
        "%3a",
        ":",
        ";",
        "%25",
        "%252f",
        "?",
        "%c3",
        "%a4",
    ]
)


def services(path: str) -> set[str]:
    """What services make of a path: as it is, decoded at once, decoded and cleaned, or by the segment."""
    decoded = unquote(path, errors="strict")
    return {
        decoded,
        posixpath.normpath(decoded) + ("/" if decoded.endswith("/") and decoded != "/" else ""),
        "/".join(unquote(segment).replace("/", "%2F") for segment in path.split("/")),
    }


@given(st.lists(PART, max_size=8))
def test_no_service_reads_a_path_that_is_not_among_the_readings(parts: list[str]) -> None:
    try:
        target = read_target(("/" + "".join(parts)).encode())
    except Refused:
        return
    forwarded = target.forwarded.decode().partition("?")[0]
    assert forwarded in target.paths
    decoded = {unquote(path) for path in target.paths} | {
        unquote(path.replace("%2F", "%252F")) for path in target.paths
    }
    assert services(forwarded) <= decoded
    for path in target.paths:
        assert path.startswith("/")
        assert "//" not in path
        assert not {".", ".."} & set(path.split("/"))


@given(st.lists(PART, max_size=8))
def test_what_is_forwarded_is_read_alike_again(parts: list[str]) -> None:
    try:
        target = read_target(("/" + "".join(parts)).encode())
    except Refused:
        return
    assert read_target(target.forwarded) == target


@pytest.mark.parametrize("query", ["a+b=c+d", "a+b=c%20d"])
def test_a_plus_in_a_query_is_a_space(query: str) -> None:
    """Whether or not there is an escape beside it."""
    assert read_target(f"/a?{query}".encode()).query == (("a b", "c d"),)
