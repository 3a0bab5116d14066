"""The same small application three times, for uvicorn, gunicorn and aiohttp. Run as a program: aiohttp on a socket.

GET /hello a line; POST /digest the SHA-256 of the body; GET /slow three lines, a moment apart, chunked.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

_LINES = (b"one\n", b"two\n", b"three\n")
_APART = 0.2


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """An ASGI application (ASGI specification 3.0)."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if scope["path"] == "/digest":
        digest, more = hashlib.sha256(), True
        while more:
            event = await receive()
            digest.update(event.get("body", b""))
            more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": digest.hexdigest().encode() + b"\n"})
        return
    for line in _LINES if scope["path"] == "/slow" else (b"hello\n",):
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await asyncio.sleep(_APART if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.body", "body": b""})


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """A WSGI application (PEP 3333)."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/digest":
        digest = hashlib.sha256()
        while data := environ["wsgi.input"].read(65536):
            digest.update(data)
        return [digest.hexdigest().encode() + b"\n"]
    return _slowly() if environ["PATH_INFO"] == "/slow" else [b"hello\n"]


def _slowly() -> Iterator[bytes]:
    for line in _LINES:
        yield line
        time.sleep(_APART)


def _serve(path: str) -> None:
    from aiohttp import web

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/digest":
            digest = hashlib.sha256()
            async for data in request.content.iter_any():
                digest.update(data)
            return web.Response(text=digest.hexdigest() + "\n")
        if request.method == "HEAD":
            return web.Response()  # a StreamResponse would send its body behind the head
        response = web.StreamResponse()
        await response.prepare(request)
        for line in _LINES if request.path == "/slow" else (b"hello\n",):
            await response.write(line)
            await asyncio.sleep(_APART if request.path == "/slow" else 0)
        return response

    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", handle)
    web.run_app(application, path=path, print=None)


if __name__ == "__main__":
    _serve(sys.argv[1])
