"""The keys ``http`` and ``presets`` and the options, as they are read: what is taken, what is refused and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.http import rules
from sockguard.protocols.http.presets import PRESETS
from sockguard.protocols.http.rules import MAX_ENTRIES, MAX_VALUES, presets_listing, read_options, read_what, warnings
from tests.unit.protocols.http.ruling import DOCKER

ROOT = "docker:watchtower"  # replaces containers: it has to create any


def mistakes(value: object, *, key: str = "http", deny: bool = False) -> list[tuple[tuple[str | int, ...], str]]:
    """Where and what, of everything that is wrong."""
    try:
        read_what(key, value, deny=deny)
    except ExceptionGroup as group:
        return [(bad.path, str(bad)) for bad in cast("tuple[Bad, ...]", group.exceptions)]
    return []


def test_every_form_of_the_documentation_is_read() -> None:
    value: list[Any] = [
        "GET,HEAD /_ping",
        "GET /images/{name...}/json",
        "* /any",
        {"methods": ["POST"], "path": "/containers/{id}/exec", "params": {"id": ["web-1", "job-*"]}},
        {"methods": ["POST"], "path": "/exec/{id}/start", "upgrade": ["tcp", "H2C"]},
        {"methods": ["GET"], "path": "/containers/json", "query": ["all", "filters"]},
        {"methods": ["GET"], "path": "/x", "query": []},
        {"methods": ["*"], "path": "/containers/create", "body": {"forbid": ["/HostConfig/Privileged=true", "/X"]}},
        {"methods": ["GET"], "path": "/{a}/{n...}", "params": {"n": ["team/app", "team/**"], "a": ["x"]}},
    ]
    read = read_what("http", value, deny=False)
    assert read[:3] == [
        {"methods": ["GET", "HEAD"], "path": "/_ping"},
        {"methods": ["GET"], "path": "/images/{name...}/json"},
        {"methods": ["*"], "path": "/any"},
    ]
    assert cast("dict[str, Json]", read[4])["upgrade"] == ["tcp", "h2c"]
    assert [read[3], *read[5:]] == [value[3], *value[5:]]


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ("", ()),
        ("GET", ()),
        ("/x", ()),
        ("GET x", ()),
        ("GET /a b", ()),
        ("GET  /a", ()),
        ("GET, HEAD /a", ()),
        (" GET /a", ()),
        ("GET /a ", ()),
        ("get /a", ()),
        ("Get /a", ()),
        (",GET /a", ()),
        ("CONNECT /a", ()),
        ("GET,* /a", ()),
        ("G*T /a", ()),
        ("GET /a?b", ()),
        ("GET ^/a$", ()),
        (".* /a", ()),
        (5, ()),
        (None, ()),
        (["GET", "/a"], ()),
        ({}, ()),
        ({"methods": ["GET"]}, ()),
        ({"path": "/a"}, ()),
        ({"methods": "GET", "path": "/a"}, ("methods",)),
        ({"methods": [], "path": "/a"}, ("methods",)),
        ({"methods": ["get"], "path": "/a"}, ("methods", 0)),
        ({"methods": ["GET,HEAD"], "path": "/a"}, ("methods", 0)),
        ({"methods": ["GET", 1], "path": "/a"}, ("methods", 1)),
        ({"methods": ["GET", "*"], "path": "/a"}, ("methods",)),
        ({"methods": ["GET"], "path": ["/a"]}, ("path",)),
        ({"methods": ["GET"], "path": "/a/*"}, ("path",)),
        ({"methods": ["GET"], "path": "/a", "qery": []}, ("qery",)),
        ({"methods": ["GET"], "path": "/a", "query": "all"}, ("query",)),
        ({"methods": ["GET"], "path": "/a", "query": [1]}, ("query", 0)),
        ({"methods": ["GET"], "path": "/a", "upgrade": []}, ("upgrade",)),
        ({"methods": ["GET"], "path": "/a", "upgrade": ["t cp"]}, ("upgrade", 0)),
        ({"methods": ["GET"], "path": "/a", "upgrade": ["tcp, h2c"]}, ("upgrade", 0)),
        ({"methods": ["GET"], "path": "/{a}", "params": []}, ("params",)),
        ({"methods": ["GET"], "path": "/{a}", "params": {"b": ["x"]}}, ("params", "b")),
        ({"methods": ["GET"], "path": "/{a}", "params": {"a": []}}, ("params", "a")),
        ({"methods": ["GET"], "path": "/{a}", "params": {"a": "x"}}, ("params", "a")),
        ({"methods": ["GET"], "path": "/{a}", "params": {"a": ["x/y"]}}, ("params", "a", 0)),
        ({"methods": ["GET"], "path": "/{a}", "params": {"a": ["x", " "]}}, ("params", "a", 1)),
        ({"methods": ["POST"], "path": "/a", "body": ["/X"]}, ("body",)),
        ({"methods": ["POST"], "path": "/a", "body": {}}, ("body",)),
        ({"methods": ["POST"], "path": "/a", "body": {"forbid": ["/X"], "require": []}}, ("body",)),
        ({"methods": ["POST"], "path": "/a", "body": {"forbid": []}}, ("body", "forbid")),
        ({"methods": ["POST"], "path": "/a", "body": {"forbid": ["X"]}}, ("body", "forbid", 0)),
    ],
)
def test_a_mistake_is_one_and_says_where(entry: object, where: tuple[str | int, ...]) -> None:
    found = mistakes(["GET /good", entry])
    assert [path for path, _ in found] == [(1, *where)], found


def test_all_mistakes_are_said_at_once_with_what_was_meant() -> None:
    found = mistakes(
        [{"methods": ["get", "CONNECT"], "pth": "/a"}, "GET /a/*", {"methods": ["GET"], "path": "/{a}{b}"}]
    )
    assert [path for path, _ in found] == [(0, "pth"), (0, "methods", 0), (0, "methods", 1), (1,), (2, "path")]
    assert "'path'" in found[0][1]
    assert "'GET'" in found[1][1]
    assert "{name...}" in found[3][1]


@pytest.mark.parametrize("value", ["GET /a", {"methods": []}, 1, ["GET /a"] * (MAX_ENTRIES + 1)])
def test_the_key_is_a_bounded_array(value: object) -> None:
    assert [path for path, _ in mistakes(value)] == [()]
    assert [path for path, _ in mistakes(value, key="presets")] == [()]
    many: Json = ["x"] * (MAX_VALUES + 1)
    assert mistakes([{"methods": ["GET"], "path": "/{a}", "params": {"a": many}}])


@pytest.mark.parametrize(
    ("key", "value"), [("query", ["all"]), ("query", []), ("upgrade", ["tcp"]), ("body", {"forbid": ["/X"]})]
)
def test_a_deny_takes_nothing_that_narrows(key: str, value: object) -> None:
    """Else a request could escape it by a query key, or by leaving out Upgrade."""
    entry = {"methods": ["POST"], "path": "/a", key: value}
    assert mistakes([entry]) == []
    assert [path for path, _ in mistakes([entry], deny=True)] == [(0, key)]
    assert mistakes([{"methods": ["*"], "path": "/{a}", "params": {"a": ["x"]}}, "* /b"], deny=True) == []


def test_presets_are_for_allows_and_known() -> None:
    assert read_what("presets", ["docker:ping"], deny=False) == [{"methods": ["GET", "HEAD"], "path": "/_ping"}]
    assert [path for path, _ in mistakes(["docker:ping"], key="presets", deny=True)] == [()]
    found = mistakes(["docker:ping", "docker:pin", 1], key="presets")
    assert [path for path, _ in found] == [(1,), (2,)]
    assert "'docker:ping'" in found[0][1]


def test_options() -> None:
    assert read_options({}) == {"strip_prefix": None}
    assert read_options({"strip_prefix": "docker-version"}) == {"strip_prefix": "docker-version"}


@pytest.mark.parametrize("table", [{"strip_prefix": ""}, {"strip_prefix": "/v1"}, {"strip_prefix": True}, {"strip": 1}])
def test_bad_options(table: Mapping[str, object]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        read_options(table)
    assert [cast("Bad", bad).path for bad in caught.value.exceptions] == [tuple(table)]


def test_what_is_odd_is_said() -> None:
    def warned(*entries: object, options: Mapping[str, Json] = DOCKER) -> list[str]:
        return [one.text for one in warnings(read_what("http", [*entries], deny=False), options)]

    tunnel = {"methods": ["POST"], "path": "/session", "upgrade": ["h2c"]}
    create = {"methods": ["*"], "path": "/containers/create"}
    assert warnings(None) == []
    assert warned("GET /containers/json", {**tunnel, "upgrade": ["tcp"]}, "GET /containers/create") == []
    assert len(warned(tunnel)) == 1
    assert "nobody judges" in warned(tunnel, options={})[0]
    assert "never matches" in warned("GET /v1.43/containers/json")[0]
    assert warned("GET /v1.43/containers/json", "GET /_ping", options={}) == []
    assert len(warned("POST /containers/create", "GET /exec/{id}/json", options={})) == 1
    assert "in front" in warned("GET /libpod/info", options={})[0]
    for entry in ("* /swarm", "* /v1.43/info"):
        assert warnings(read_what("http", [entry], deny=True), DOCKER, deny=True) == []
    (escaped,) = warnings(read_what("http", [create], deny=True), deny=True)
    assert "escape" in escaped.text
    assert "strip_prefix" in escaped.remedy
    assert "root" in warned(create)[0]
    looking = {**create, "body": {"forbid": ["/HostConfig"]}}
    assert warned(looking) == []
    assert warned("POST /containers/{id}/start") == []
    assert "1.24" in warned(looking, "POST /containers/{id}/start")[0]
    assert warned(looking, {**looking, "path": "/containers/{id}/start"}) == []
    assert all(warnings(read_what("presets", [name], deny=False), DOCKER) == [] for name in PRESETS if name != ROOT)
    assert "root" in warnings(read_what("presets", [ROOT], deny=False), DOCKER)[0].text


def test_the_listing_is_what_a_file_could_have_instead() -> None:
    listing = presets_listing()
    assert {"docker:ping", "docker:ci-runner", "podman:readonly"} <= {one["name"] for one in listing}
    for one in listing:
        assert one["description"]
        assert read_what("http", one["http"], deny=False) == read_what("presets", [one["name"]], deny=False)


def test_the_schema_names_every_key() -> None:
    what = cast("dict[str, Any]", rules.schema["what"])
    assert set(what) == {"http", "presets"}
    assert set(what["http"]["items"]["anyOf"][1]["properties"]) == {
        "methods", "path", "params", "query", "upgrade", "body",
    }  # fmt: skip
    assert "docker:ping" in what["presets"]["items"]["enum"]
    assert cast("dict[str, Any]", rules.schema["options"])["properties"].keys() == {"strip_prefix"}


@pytest.mark.parametrize("path", ["/containers/{id}", "/containers/{id...}", "/{any...}", "/libpod/containers/{id...}"])
def test_a_path_that_takes_in_the_making_of_containers_is_said(path: str) -> None:
    """It makes the conditions of another entry on their bodies void."""
    (found,) = warnings(read_what("http", [f"POST {path}"], deny=False), DOCKER)
    assert f"{path}, which takes in " in found.text
    assert "root on the host" in found.text
    assert warnings(read_what("http", [f"GET {path}"], deny=False), DOCKER) == []


def test_a_deny_that_leaves_the_same_of_podman_open_is_said() -> None:
    def warned(*entries: object) -> list[str]:
        return [one.text for one in warnings(read_what("http", [*entries], deny=True), DOCKER, deny=True)]

    (found,) = warned("POST /containers/{id}/exec")
    assert "/libpod/containers/{id}/exec" in found
    assert warned("POST /containers/{id}/exec", "* /libpod/containers/{id}/exec") == []
    assert warned("GET /events") == []


@pytest.mark.parametrize(
    ("denied", "allowed", "expected"),
    [
        ("GET /admin", None, True),
        ("GET /admin", "GET /{p...}", True),
        ("GET /admin", "* /{p}", True),
        ("* /admin", "POST /{p}", True),
        ("DELETE /c/{id}", "DELETE /{p...}", True),
        ("POST /c/{id}/exec", "POST /c/{id}/{what}", True),
        ("GET /a/{p...}/b", "GET /a/{p...}", True),
        ("GET /admin", "POST /{p...}", False),
        ("GET /admin", "GET /admin", False),
        ("POST /c/{id}/exec", "POST /c/{id}/exec", False),
        ("POST /c/{id}/exec", "POST /d/{p...}", False),
        ("DELETE /{any...}", None, False),
        ({"methods": ["GET"], "path": "/c/{id}", "params": {"id": ["web"]}}, "GET /c/{id}", True),
        ("GET /c/web", {"methods": ["GET"], "path": "/c/{id}", "params": {"id": ["db"]}}, False),
    ],
)
def test_a_deny_beside_an_allow_that_takes_in_other_spellings_is_said(
    denied: object, allowed: object, expected: bool
) -> None:
    """A deny by path is as good as what is known of how services read paths; one by method alone is not about that."""
    what = None if allowed is None else read_what("http", ["GET /elsewhere", allowed], deny=False)
    found = warnings(read_what("http", [denied], deny=True), deny=True, allows=[("narrow", []), ("wide", what)])
    assert ["other spellings" in one.text and "'wide'" in one.text for one in found] == [True] * expected
