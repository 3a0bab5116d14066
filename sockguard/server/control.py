"""The control socket: what an operator asks by HTTP, handed to the daemon (operator.py) and answered in JSON.

    GET    /status             operator.Status
    GET    /connections        {"connections": [operator.ConnectionStatus, ...]}
    POST   /reload             {"ok": true, "generation": 2, "mistakes": []}; refused: 422, and the mistakes as
                               {"file": ..., "line": ..., "key": ..., "text": ...}
    DELETE /connections/ID     {"closed": ID}; 404 if there is no such connection

Only root and the daemon's own user may ask, by the kernel's word (SO_PEERCRED), whatever the socket's mode. Decides
nothing else, and holds no state.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from itertools import islice
from typing import Final

from sockguard.identity import peercred
from sockguard.identity.peer import OVERFLOW_ID
from sockguard.privsep import listening
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.listening import Bound
from sockguard.server.http_service import HttpService, Request, Response, error_response, json_response
from sockguard.server.operator import ConnectionStatus, Operator, ReloadResult

MODE: Final = 0o600
"""Of the control socket."""

_ROWS: Final = 256  # connections in one piece of a listing; the daemon does other things between pieces
_MAX_DIGITS: Final = 19  # of a connection's number
_METHODS: Final = {
    "/status": ("GET", "HEAD"),
    "/connections": ("GET", "HEAD"),
    "/reload": ("POST",),
    "/connections/": ("DELETE",),
}


def listen(path: str) -> tuple[socket.socket, Bound]:
    """Bind the control socket, a stale one replaced. Raises SockguardError, naming [daemon] control."""
    spec = listening.ListenSpec(
        proxy="", kind="path", text=path, mode=MODE, owner=None, group=None, refuse_fds=True, key="daemon.control"
    )
    sock, bound = listening.listen(spec, {})
    if bound is None:  # a path always has one
        raise AssertionError(path)
    return sock, bound


def refuse(client: socket.socket) -> str | None:
    """Why this peer may not ask; None: it may. A uid without a mapping here is nobody's, even if it is our own."""
    _, uid, _ = peercred.credentials(client)
    if uid == 0 or (uid == os.geteuid() and uid != OVERFLOW_ID):
        return None
    return f"uid {uid} may not use the control socket: only root and the daemon's own user"


async def serve(listener: socket.socket, operator: Operator, disposer: Disposer) -> None:
    """Serve the control socket for ever."""
    await HttpService("control", Control(operator).handle, disposer, refuse).serve(listener)


class Control:
    """The requests of the control socket, each with its answer."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        route, number = _route(request.path)
        methods = _METHODS.get(route)
        if methods is None:
            return error_response(HTTPStatus.NOT_FOUND, "no such path: " + " ".join(sorted(_METHODS)))
        if request.method not in methods:
            return error_response(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{route} takes {', '.join(methods)}", allow=", ".join(methods)
            )
        match route:
            case "/status":
                return json_response(self._operator.status())
            case "/connections":
                return Response(HTTPStatus.OK, _listing(self._operator.connections()))
            case "/reload":
                return _reloaded(await self._operator.reload())
            case _:
                return self._close(number)

    def _close(self, text: str) -> Response:
        if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
            return error_response(HTTPStatus.BAD_REQUEST, "a connection is named by its number: /connections/17")
        number = int(text)
        if not self._operator.close(number):
            return error_response(HTTPStatus.NOT_FOUND, f"no connection {number} is open")
        return json_response({"closed": number})


def _route(path: str) -> tuple[str, str]:
    """The path as _METHODS has it, and the connection's number in it as text."""
    prefix = "/connections/"
    return (prefix, path.removeprefix(prefix)) if path.startswith(prefix) else (path, "")


def _reloaded(result: ReloadResult) -> Response:
    mistakes = [{"file": m.file, "line": m.line, "key": m.key, "text": m.text} for m in result.mistakes]
    value = {"ok": result.ok, "generation": result.generation, "mistakes": mistakes}
    return json_response(value, HTTPStatus.OK if result.ok else HTTPStatus.UNPROCESSABLE_ENTITY)


def _listing(rows: Iterable[ConnectionStatus]) -> Iterator[bytes]:
    """The listing in pieces: there may be more connections than are to be in memory as text."""
    left = iter(rows)
    before = '{"connections": ['
    while batch := list(islice(left, _ROWS)):
        yield (before + ", ".join(map(json.dumps, batch))).encode()
        before = ", "
    yield (("" if before == ", " else before) + "]}\n").encode()
