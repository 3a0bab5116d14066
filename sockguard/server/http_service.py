"""A small HTTP/1.1 server on one listening socket: the control socket and the metrics are served by it.

Knows bytes, bounds and time limits; what is asked and answered is the handler's. Nothing that one client does, or does
not do, touches another or the daemon: every read, write and table here is bounded, and a fault ends one connection.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import trio

from sockguard import __version__
from sockguard.logs import log
from sockguard.privsep import foreign
from sockguard.privsep.foreign import Disposer

MAX_CONNECTIONS: Final = 16
"""Connections at once; one more is told 503."""
MAX_HEADER: Final = 16 * 1024
"""Bytes of a request's line and headers, or of a chunk's header; one read more may be held."""
MAX_BODY: Final = 64 * 1024
"""Bytes of a request's body."""
REQUEST_SECONDS: Final = 30.0
"""How long a client may take to send one request; also, how long an idle connection is kept."""
ANSWER_SECONDS: Final = 30.0
"""How long a client may take to read one answer."""

_READ: Final = 4096
_LINGER_SECONDS: Final = 1.0  # a close with bytes unread resets the connection; on TCP the answer would be lost
_PAUSE_SECONDS: Final = 0.1
_SAID_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``path`` is without its query and not decoded: no path of ours needs an escape."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. A body that is no ``bytes`` is sent piece by piece, each made when the one before has gone."""

    status: int
    body: bytes | Iterable[bytes]
    content_type: str = "application/json"
    allow: str = ""  # the methods that there are, with status 405


Handler = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[socket.socket], str | None]


def json_response(value: object, status: int = HTTPStatus.OK) -> Response:
    """An answer in JSON; text beyond ASCII is escaped."""
    return Response(status, json.dumps(value).encode() + b"\n")


def error_response(status: int, text: str, *, allow: str = "") -> Response:
    """``{"error": text}``"""
    return Response(status, json.dumps({"error": text}).encode() + b"\n", allow=allow)


class HttpService:
    """Serves one listener.

    name     of the service, for the log
    handle   answers a request; what it raises is logged and answered with 500
    disposer closes what peers have connected, where descriptors may be waiting
    refuse   why a peer that has just connected may not ask (403), or None
    """

    def __init__(self, name: str, handle: Handler, disposer: Disposer, refuse: Refusal = lambda _: None) -> None:
        self._name = name
        self._disposer = disposer
        self._handle = handle
        self._refuse = refuse
        self._open = 0

    async def serve(self, listener: socket.socket) -> None:
        """Accept for ever. ``listener`` is the caller's, non-blocking; connections end with the caller's scope."""
        said = -_SAID_SECONDS
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    client, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError as error:  # no descriptor to be had: clients wait in the backlog
                    if trio.current_time() - said >= _SAID_SECONDS:
                        said = trio.current_time()
                        log.error("clients wait: accept failed", service=self._name, reason=error.strerror)
                    await trio.sleep(_PAUSE_SECONDS)
                    continue
                if self._admit(client):
                    nursery.start_soon(self._guarded, client)

    def _admit(self, client: socket.socket) -> bool:
        """Take a connection in, or tell it at once why not; that takes no task and no time."""
        client.setblocking(False)
        try:
            reason = self._refuse(client)
            if reason is not None:
                self._turn_away(client, error_response(HTTPStatus.FORBIDDEN, reason))
            elif self._open >= MAX_CONNECTIONS:
                text = f"{MAX_CONNECTIONS} connections are open: try again later"
                self._turn_away(client, error_response(HTTPStatus.SERVICE_UNAVAILABLE, text))
            else:
                self._open += 1
                return True
        except Exception:
            self._end(client)
            log.exception("a connection was dropped by a fault of sockguard's own", service=self._name)
        return False

    def _turn_away(self, client: socket.socket, response: Response) -> None:
        """Answer before anything was asked, as far as the socket takes it at once, and close."""
        with contextlib.suppress(OSError):  # it has gone, or does not read: either way it is closed
            client.send(b"".join(_pieces(h11.Connection(h11.SERVER), "", response, last=True)))
        self._end(client)

    def _end(self, client: socket.socket) -> None:
        if client.family == socket.AF_UNIX:
            foreign.end(client, self._disposer)
        else:
            client.close()

    async def _guarded(self, client: socket.socket) -> None:
        try:
            stream = _Stream(client)
            await _Exchange(stream, self._handle, self._name).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception:
            log.exception("a connection was dropped by a fault of sockguard's own", service=self._name)
        finally:
            self._end(client)
            self._open -= 1


class _Stream:
    """Bytes, and never a descriptor: where the kernel does not refuse them, no more is read than carries none."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._sock = None if sock.family != socket.AF_UNIX or foreign.takes_none(sock) else sock
        if self._sock is not None:  # else a peek passes over an urgent byte, and what came with it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.send_all = self._stream.send_all
        self.send_eof = self._stream.send_eof

    async def receive_some(self, limit: int) -> bytes:
        """As trio.SocketStream.receive_some. Raises trio.BrokenResourceError when descriptors come."""
        if self._sock is not None:
            limit = await self._plain_bytes(self._sock, limit) or 1
        return bytes(await self._stream.receive_some(limit))

    async def _plain_bytes(self, sock: socket.socket, limit: int) -> int:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                return foreign.plain_bytes(sock, limit)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error


class _Refused(Exception):
    """A request that is not to be answered as asked; the connection ends with ``response``."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class _Exchange:
    """Requests and answers on one connection, one after another."""

    def __init__(self, stream: _Stream, handle: Handler, name: str) -> None:
        self._stream = stream
        self._handle = handle
        self._name = name
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def run(self) -> None:
        """Until the client ends it, or breaks a rule."""
        while True:
            try:
                request = await self._timed_read()
            except _Refused as refused:
                await self._answer("", refused.response, last=True)
                await self._linger()
                return
            if request is None:
                return
            response = await self._ask(request)
            await self._answer(request.method, response)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _ask(self, request: Request) -> Response:
        """The handler's time is its own to bound: what it has begun is not to be cut short by its client."""
        try:
            return await self._handle(request)
        except Exception:
            log.exception("a request met a fault of sockguard's own", service=self._name, path=request.path[:256])
            return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of sockguard's own: see its log")

    async def _timed_read(self) -> Request | None:
        with trio.move_on_after(REQUEST_SECONDS):
            try:
                return await self._read()
            except h11.RemoteProtocolError as error:
                raise _Refused(error_response(error.error_status_hint, str(error))) from error
        if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            return None  # idle: an answer to nothing would be taken for one to the client's next request
        raise _Refused(
            error_response(HTTPStatus.REQUEST_TIMEOUT, f"the request was not complete after {REQUEST_SECONDS:g} s")
        )

    async def _read(self) -> Request | None:
        """The next request, whole; None when there is none any more."""
        head = await self._next()
        if not isinstance(head, h11.Request):
            return None
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send_all(
                self._http.send(h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])) or b""
            )
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise _Refused(
                    error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY} bytes")
                )
        path = head.target.decode("ascii").partition("?")[0]
        return Request(head.method.decode("ascii"), path, bytes(body))

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_READ))
        return event

    async def _answer(self, method: str, response: Response, *, last: bool = False) -> None:
        with trio.move_on_after(ANSWER_SECONDS):
            for data in _pieces(self._http, method, response, last=last):
                await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError(f"the answer was not taken within {ANSWER_SECONDS:g} s")

    async def _linger(self) -> None:
        with trio.move_on_after(_LINGER_SECONDS):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ):
                pass


def _pieces(http: h11.Connection, method: str, response: Response, *, last: bool) -> Iterable[bytes]:
    """An answer as bytes for the wire."""
    body = (response.body,) if isinstance(response.body, bytes) else response.body
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Server", f"sockguard/{__version__}"),
        ("Content-Type", response.content_type),
        ("Cache-Control", "no-store"),
        *([("Content-Length", str(len(response.body)))] if isinstance(response.body, bytes) else []),
        *([("Allow", response.allow)] if response.allow else []),
        *([("Connection", "close")] if last else []),
    ]
    yield http.send(h11.Response(status_code=response.status, headers=headers)) or b""
    if method != "HEAD":
        for piece in body:
            yield http.send(h11.Data(data=piece)) or b""
    yield http.send(h11.EndOfMessage()) or b""
