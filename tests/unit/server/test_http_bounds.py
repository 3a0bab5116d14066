"""The bounds of the HTTP server: what is too long, too slow, too much or no HTTP at all harms nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from sockguard.server import http_service
from tests.support.h11_client import ask, connect
from tests.support.operator import MemoryOperator, served


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "control.sock"


@pytest.fixture
async def operator(path: Path) -> AsyncIterator[MemoryOperator]:
    """One whose control socket is served."""
    operator = MemoryOperator()
    async with served(path, operator):
        yield operator


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2 * http_service.MAX_HEADER + b"\r\n\r\n", 431),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, 413),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 0xFFFFF, 413),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
    ids=["nonsense", "no host", "TLS", "long header", "long body", "long chunk", "bad chunk"],
)
async def test_what_is_no_request(path: Path, operator: MemoryOperator, data: bytes, status: int) -> None:
    """A broken or too long request is told so and ends its connection; nothing is done, and others are served."""
    client = await connect(path)
    async with client.stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.stream.send_all(data)
            await client.stream.send_eof()

        nursery.start_soon(send)
        client.http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        assert (await client.answer())[0] == status
    assert operator.asked == []
    assert (await ask(path, "GET", "/status"))[0] == 200


async def test_a_slow_request(path: Path, operator: MemoryOperator, autojump_clock: trio.testing.MockClock) -> None:
    """Half a request is 408 after REQUEST_SECONDS, even if a byte comes now and then."""
    client = await connect(path)
    async with client.stream, trio.open_nursery() as nursery:

        async def drip() -> None:
            await client.stream.send_all(b"GET /status HTTP/1.1\r\nX: ")
            while True:
                await trio.sleep(1)
                await client.stream.send_all(b"x")

        nursery.start_soon(drip)
        client.http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        assert (await client.answer())[0] == 408
        assert http_service.REQUEST_SECONDS <= trio.current_time() < http_service.REQUEST_SECONDS + 2
        nursery.cancel_scope.cancel()


async def test_an_idle_connection(path: Path, operator: MemoryOperator, autojump_clock: trio.testing.MockClock) -> None:
    """It ends without a word: one would be taken for the answer to the next request."""
    client = await connect(path)
    async with client.stream:
        await client.ask("GET", "/status")
        assert await client.stream.receive_some(100) == b""
        assert trio.current_time() >= http_service.REQUEST_SECONDS


async def test_an_answer_that_nobody_reads(
    path: Path, operator: MemoryOperator, autojump_clock: trio.testing.MockClock
) -> None:
    """A client that does not read is dropped after ANSWER_SECONDS, and its place is free."""
    operator.live = set(range(20_000))
    stuck = [await connect(path) for _ in range(http_service.MAX_CONNECTIONS)]
    for client in stuck:
        await client.stream.send_all(b"GET /connections HTTP/1.1\r\nHost: x\r\n\r\n")
    await trio.sleep(http_service.ANSWER_SECONDS + 1)
    assert (await ask(path, "GET", "/status"))[0] == 200
    for client in stuck:
        await client.stream.aclose()


async def test_too_many_connections(path: Path, operator: MemoryOperator) -> None:
    """One more than MAX_CONNECTIONS is told 503 at once; when one ends there is room again."""
    clients = [await connect(path) for _ in range(http_service.MAX_CONNECTIONS)]
    for client in clients:
        assert (await client.ask("GET", "/status"))[0] == 200
    late = await connect(path)
    async with late.stream:
        late.http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        assert (await late.answer())[0] == 503
    await clients.pop().stream.aclose()
    with trio.fail_after(10):
        while (await ask(path, "GET", "/status"))[0] == 503:
            await trio.sleep(0.01)
    for client in clients:
        await client.stream.aclose()


async def test_a_client_that_goes_away(
    path: Path, operator: MemoryOperator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gone before, in or behind its request: nobody else notices, and it is no fault to be logged."""
    for data in (b"", b"GET /sta", b"GET /connections HTTP/1.1\r\nHost: x\r\n\r\n"):
        client = await connect(path)
        if data:
            await client.stream.send_all(data)
        await client.stream.aclose()
    assert (await ask(path, "GET", "/status"))[0] == 200
    assert capsys.readouterr() == ("", "")


async def test_expect_continue(path: Path, operator: MemoryOperator) -> None:
    """A client that waits to be told to send its body is told so."""
    client = await connect(path)
    async with client.stream:
        head = b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        await client.stream.send_all(head)
        assert (await client.stream.receive_some(100)).startswith(b"HTTP/1.1 100 ")
        await client.stream.send_all(b"{}")
        assert (await client.stream.receive_some(1000)).startswith(b"HTTP/1.1 200 ")
