"""The Python docker SDK as three users, and the requests of Traefik and of a metrics reader by their presets."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import docker  # type: ignore[import-untyped]
import pytest

from tests.support.clients import as_user
from tests.support.containers import IMAGE, KINDS
from tests.support.docker_commands import CI, OPERATOR, READER, RULES, Guarded, guarded_engine
from tests.support.http_services import statuses, talk

pytestmark = pytest.mark.root

TRAEFIK, METRICS = 4411, 4412
MORE_RULES = f"""
[[proxy.docker.allow]]
users = [{TRAEFIK}]
presets = ["docker:traefik"]
[[proxy.docker.allow]]
users = [{METRICS}]
presets = ["docker:homepage"]
"""


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded_engine(request.param, RULES + MORE_RULES) as made:
        yield made


def sdk(path: Path, uid: int, call: Callable[[Any], object]) -> str:
    """What that call gives to that user, as text; an exception of the SDK as its type and text."""

    def do() -> str:
        client = docker.DockerClient(base_url=f"unix://{path}", version="auto", timeout=30)
        try:
            return str(call(client))
        finally:
            client.close()

    return as_user(do, uid)


def _exec(client: Any) -> object:
    return client.containers.get("web").exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)


def _run(client: Any) -> object:
    return client.containers.run(IMAGE, ["echo", "hello"], network_mode="none", remove=True)


def _life(client: Any) -> object:
    # A name of its own each time, by this call's process: podman 4.3 may keep one for a while.
    name, words = f"sdk{os.getpid()}", ["sh", "-c", "echo begun; sleep 100"]
    made = client.containers.create(IMAGE, words, network_mode="none", name=name)
    try:
        made.start()
        next(made.logs(stream=True))
        made.kill()
        return made.wait()["StatusCode"], made.logs()
    finally:
        made.remove(force=True)


def _privileged(client: Any) -> object:
    return client.containers.run(IMAGE, ["true"], network_mode="none", privileged=True, remove=True)


def _put(client: Any) -> object:
    return client.containers.get("web").put_archive("/tmp", bytes(10240))


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "ping": (lambda client: client.ping(), "operator ci reader"),
    "version": (lambda client: client.version()["ApiVersion"], "operator ci reader"),
    "info": (lambda client: client.info()["OSType"], "operator ci reader"),
    "list": (lambda client: sorted(c.name for c in client.containers.list(all=True)), "operator ci reader"),
    "inspect": (lambda client: client.containers.get("web").status, "operator ci reader"),
    "logs": (lambda client: client.containers.get("web").logs(stderr=False), "operator ci reader"),
    "log stream": (lambda client: list(client.containers.get("old").logs(stream=True)), "operator ci reader"),
    "events": (lambda client: list(client.events(since=0, until=1)), "operator reader"),
    "images": (lambda client: [image.tags for image in client.images.list()], "operator ci reader"),
    "exec": (_exec, "operator ci"),
    "run": (_run, "operator ci"),
    "life": (_life, "operator ci"),
    "put archive": (_put, "operator"),
    "get archive": (lambda client: client.containers.get("web").get_archive("/bin")[1]["name"], "operator"),
    "volume": (lambda client: client.volumes.create("sdk").name, "operator"),
}


@pytest.mark.parametrize("name", [*CALLS, "privileged"])
def test_each_call_of_the_sdk_passes_or_is_refused(guarded: Guarded, name: str) -> None:
    """Whoever may gets what there is without the guard; others the SDK's usual exception for a 403, with our text."""
    call, may = CALLS.get(name, (_privileged, "operator"))
    direct = sdk(guarded.engine.socket, 0, call)
    assert name == "privileged" or "Error:" not in direct, direct
    for user, uid in (("operator", OPERATOR), ("ci", CI), ("reader", READER)):
        before = len(guarded.denials()[uid])
        said = sdk(guarded.public, uid, call)
        assert (len(guarded.denials()[uid]) > before) == (user not in may.split()), (user, said)
        if user not in may.split() and name == "events":
            assert said == "[]"  # the SDK does not look at the status here
        elif user not in may.split():
            assert said.startswith("APIError: 403 Client Error"), (user, said)
            assert "sockguard" in said, (user, said)
        elif name != "privileged":
            assert said == direct, user


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


def ask(path: Path, uid: int, *requests: str) -> list[int]:
    """The statuses of these requests ("METHOD /target"), on one connection that is kept."""

    def do() -> str:
        connection = _Connection(path)
        statuses = []
        for request in requests:
            method, _, target = request.partition(" ")
            connection.request(method, target)
            with connection.getresponse() as response:
                if "/events" not in request:
                    response.read()
            statuses.append(response.status)
        connection.close()
        return json.dumps(statuses)

    answer = json.loads(as_user(do, uid))
    assert isinstance(answer, list)
    return answer


def test_traefik(guarded: Guarded) -> None:
    """Its docker provider's sequence passes on one connection; all else, with or without a version, does not."""
    may = ("HEAD /_ping", "GET /_ping", "GET /v1.24/version", "GET /v1.24/containers/json?limit=0",
           "GET /v1.24/containers/web/json",
           "GET /v1.24/events?filters=%7B%22type%22%3A%7B%22container%22%3Atrue%7D%7D&since=0&until=1")  # fmt: skip
    assert ask(guarded.public, TRAEFIK, *may) == [200] * len(may)
    may_not = ("GET /v1.24/info", "GET /containers/web/logs?stdout=1", "GET /v1.24/containers/web/export",
               "GET /v1.24/containers/web/archive?path=/", "POST /v1.24/containers/web/exec", "GET /v1.24/secrets",
               "POST /v1.24/containers/web/stop", "DELETE /v1.24/containers/web", "GET /v1.24/images/bb:1/get",
               "POST /v1.24/containers/json", "GET /v1.24/v1.24/containers/json", "GET /x/containers/json")  # fmt: skip
    assert ask(guarded.public, TRAEFIK, *may_not) == [403] * len(may_not)
    assert "web" in guarded.engine.containers()


def test_a_reader_of_metrics(guarded: Guarded) -> None:
    """State and load of containers pass; logs, files and changes do not."""
    may = ("GET /_ping", "GET /containers/json?all=1", "GET /containers/web/json",
           "GET /containers/web/stats?stream=0&one-shot=1")  # fmt: skip
    assert ask(guarded.public, METRICS, *may) == [200] * len(may)
    may_not = ("GET /containers/web/logs?stdout=1", "GET /containers/web/archive?path=/bin", "GET /info",
               "POST /containers/web/restart", "GET /events?since=0&until=1", "HEAD /containers/web/json")  # fmt: skip
    assert ask(guarded.public, METRICS, *may_not) == [403] * len(may_not)


def raw(path: Path, request: bytes) -> str:
    return talk(path, request).decode("latin-1")


@pytest.mark.parametrize(
    "target",
    ["/v1.41/containers/create?name=empty", "/containers/create?name=empty", "/v1.20/containers/create?name=empty",
     "/v1.41/containers/web/exec", "/containers/web/exec"],
)  # fmt: skip
def test_an_empty_body_makes_nothing(guarded: Guarded, target: str) -> None:
    """No body has nothing in it that is forbidden, so it is let through: what an engine makes of it is no container
    and no process. An empty one in chunks is no JSON, and denied."""
    containers = guarded.engine.containers()
    processes = guarded.engine.get("/containers/web/json")["ExecIDs"] or ()
    for fields, wanted in (
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"Content-Type: application/json\r\nContent-Length: 0\r\n", 0),
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", 403),
    ):
        request = b"POST %s HTTP/1.1\r\nHost: docker\r\n%s\r\n" % (target.encode(), fields)
        request += b"0\r\n\r\n" if wanted else b""
        answer = as_user(partial(raw, guarded.public, request), CI)
        (status,) = statuses(answer.encode("latin-1"))
        assert (status == 403) == bool(wanted), answer
        assert status >= 400, answer
    assert guarded.engine.containers() == containers
    # No new one; an engine may forget one that has ended at any time.
    assert set(guarded.engine.get("/containers/web/json")["ExecIDs"] or ()) <= set(processes)
