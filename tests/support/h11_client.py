"""A client of HTTP over a UNIX socket, by h11: it sees what is on the wire, and can send what is no request."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import h11
import trio

Answer = tuple[int, dict[str, str], Any]


class Client:
    """One connection, by h11."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        headers = [("Host", "localhost"), ("Content-Length", str(len(body)))]
        data = self.http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        data += self.http.send(h11.Data(data=body)) or b""
        data += self.http.send(h11.EndOfMessage()) or b""
        with contextlib.suppress(trio.BrokenResourceError):  # turned away already; the answer says why
            await self.stream.send_all(data)
        answer = await self.answer()
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return answer

    async def answer(self) -> Answer:
        head = await self._event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return head.status_code, headers, json.loads(body) if body else None

    async def _event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.stream.receive_some(65536))
        return event


async def connect(path: Path) -> Client:
    stream = await trio.open_unix_socket(str(path))
    return Client(stream)


async def ask(path: Path, method: str, target: str, body: bytes = b"") -> Answer:
    client = await connect(path)
    async with client.stream:
        return await client.ask(method, target, body)
