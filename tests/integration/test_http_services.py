"""Plain HTTP services behind an `http` proxy: uvicorn, gunicorn and aiohttp, met by curl, requests and aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import docker.transport  # type: ignore[import-untyped]  # requests over a UNIX socket
import pytest
import requests

from tests.support import http_services
from tests.support.clients import as_user
from tests.support.identities import open_folder
from tests.support.servers import ALLOWED, Guarded, guarded, private_folder

pytestmark = pytest.mark.root

CURL = ("curl", "--silent", "--show-error", "--unix-socket", "PATH")
BODY = os.urandom(5_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest() + "\n"
SLOW = "one\ntwo\nthree\n"
HTTP = """protocol = "http"
[[proxy.server.deny]]
users = ["*"]
http = ["GET /secrets", "DELETE /{any}"]
"""


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn", "aiohttp"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    serve = getattr(http_services, request.param)
    with open_folder() as folder, serve(path := private_folder(folder, 0) / "http.sock"):
        path.chmod(0o666)
        with guarded(folder, path.name, HTTP) as made:
            yield made


def test_curl(guard: Guarded, folder: Path) -> None:
    """Answers are the service's own; bodies by length and in chunks arrive; what is denied is a 403 that says so."""
    (folder / "body").write_bytes(BODY)
    (folder / "body").chmod(0o644)
    post = ("--data-binary", f"@{folder}/body", "http://service/digest")
    assert guard.compare(*CURL, "http://service/hello").stdout == b"hello\n"
    assert guard.compare(*CURL, "--no-buffer", "http://service/slow").stdout == SLOW.encode()
    assert guard.compare(*CURL, "--http1.0", "http://service/hello").stdout == b"hello\n"
    for fields in ((), ("--header", "Transfer-Encoding: chunked"), ("--header", "Expect: 100-continue")):
        assert guard.compare(*CURL, *fields, *post).stdout == DIGEST.encode()
    refused = guard.client(*CURL, "--include", "http://service/secrets")
    assert refused.stdout.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b'{"message":' in refused.stdout
    three = guard.client(*CURL, "--write-out", "%{http_code} %{num_connects}\n", "http://service/hello",
                         "http://service/secrets", "http://service/hello")  # fmt: skip
    assert [line for line in three.stdout.decode().splitlines() if " " in line and "{" not in line] == [
        "200 1",
        "200 0",
    ]


def test_requests(guard: Guarded) -> None:
    """A session of requests: streamed, posted in one piece and by a generator, and refused as an HTTPError."""

    def do() -> str:
        with requests.Session() as session:
            session.mount("http+unix://", docker.transport.UnixHTTPAdapter(f"http+unix://{guard.public}", timeout=30))
            base = "http+unix://service"
            slow = b"".join(session.get(f"{base}/slow", stream=True).iter_content(None)).decode()
            whole = session.post(f"{base}/digest", data=BODY).text
            parts = session.post(
                f"{base}/digest", data=(BODY[at : at + 100_000] for at in range(0, len(BODY), 100_000))
            )
            head = session.head(f"{base}/hello").status_code
            denied = session.delete(f"{base}/hello")
            with contextlib.suppress(requests.HTTPError):
                denied.raise_for_status()
                return "passed"
            refused = denied.json()["message"]
        return "|".join((slow, whole, parts.text, str(head), refused))

    slow, whole, parts, head, refused = as_user(do, ALLOWED).split("|")
    assert (slow, whole, parts, head) == (SLOW, DIGEST, DIGEST, "200")
    assert "sockguard" in refused


def test_aiohttp(guard: Guarded) -> None:
    """Twenty requests at a time over a few kept connections, each with its own answer."""

    async def talk() -> list[str]:
        connector = aiohttp.UnixConnector(path=str(guard.public), limit=5)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(number: int) -> str:
                target = ("/hello", "/digest", "/secrets")[number % 3]
                method = "POST" if target == "/digest" else "GET"
                async with session.request(
                    method, f"http://service{target}", data=io.BytesIO(BODY) if method == "POST" else None
                ) as got:
                    return f"{got.status} {await got.text() if got.status == 200 else ''}"

            return await asyncio.gather(*(one(number) for number in range(21)))

    answers = as_user(lambda: "|".join(asyncio.run(talk())), ALLOWED).split("|")
    assert answers == ["200 hello\n", f"200 {DIGEST}", "403 "] * 7
