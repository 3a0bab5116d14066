"""h11 as the judge of our reader: a reading of its own of requests and responses, by another hand."""

from __future__ import annotations

from typing import NamedTuple

import h11


class Message(NamedTuple):
    """A message as h11 reads it. ``start``: method and target, or the status."""

    start: tuple[bytes, bytes] | int
    fields: list[tuple[bytes, bytes]]
    body: bytes


def requests(data: bytes) -> list[Message]:
    """Read pipelined requests up to their end. Raises h11.RemoteProtocolError for what h11 refuses."""
    messages = []
    while data:
        server = h11.Connection(h11.SERVER)
        server.receive_data(data)
        message = _one(server)
        assert message is not None, "an incomplete request"
        messages.append(message)
        data, closed = server.trailing_data
        assert not closed
    return messages


def begun(data: bytes) -> list[tuple[bytes, bytes]]:
    """The method and target of each of these requests, of which the last may be incomplete."""
    seen = []
    while data:
        server = h11.Connection(h11.SERVER)
        server.receive_data(data)
        event = server.next_event()
        if event is h11.NEED_DATA:
            seen.append((b"", b""))
            break
        assert isinstance(event, h11.Request)
        seen.append((event.method, event.target))
        if _body(server) is None:
            break
        data, _ = server.trailing_data
    return seen


def responses(data: bytes, *methods: str, closed: bool = True) -> list[Message]:
    """Read the responses to so many requests with these methods; interim ones stand among them."""
    messages = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        if closed:
            client.receive_data(b"")
        while (event := client.next_event()) and isinstance(event, h11.InformationalResponse):
            messages.append(Message(event.status_code, list(event.headers), b""))
        assert isinstance(event, h11.Response), event
        body = _body(client)
        assert body is not None, "an incomplete response"
        messages.append(Message(event.status_code, list(event.headers), body))
        data, _ = client.trailing_data
    assert not data
    return messages


def _one(server: h11.Connection) -> Message | None:
    event = server.next_event()
    if event is h11.NEED_DATA:
        return None
    assert isinstance(event, h11.Request)
    body = _body(server)
    return None if body is None else Message((event.method, event.target), list(event.headers), body)


def _body(connection: h11.Connection) -> bytes | None:
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return body
        else:
            return None
