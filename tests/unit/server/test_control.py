"""The control socket: who may ask, and what is asked and answered."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import pytest
import trio

from sockguard.errors import Mistake, SockguardError
from sockguard.identity import peercred
from sockguard.server import control
from sockguard.server.operator import ReloadResult
from tests.support.h11_client import ask, connect
from tests.support.operator import MemoryOperator, row, served


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "control.sock"


@pytest.fixture
async def operator(path: Path) -> AsyncIterator[MemoryOperator]:
    """One whose control socket is served."""
    operator = MemoryOperator()
    async with served(path, operator):
        yield operator


# ── what is asked and answered ──


async def test_status(path: Path, operator: MemoryOperator) -> None:
    """GET /status is the operator's status, as JSON, and not to be cached."""
    status, headers, value = await ask(path, "GET", "/status")
    assert (status, value) == (200, operator.answer)
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert headers["server"].startswith("sockguard/")


@pytest.mark.parametrize("count", [0, 1, 256, 257, 1000])
async def test_connections(path: Path, operator: MemoryOperator, count: int) -> None:
    """GET /connections lists all of them, however many pieces that takes."""
    operator.live = set(range(1, count + 1))
    assert (await ask(path, "GET", "/connections"))[::2] == (
        200,
        {"connections": [row(number) for number in range(1, count + 1)]},
    )


async def test_reload(path: Path, operator: MemoryOperator) -> None:
    """POST /reload waits for the result: 200, or 422 with every mistake in its parts."""
    assert (await ask(path, "POST", "/reload"))[::2] == (200, {"ok": True, "generation": 4, "mistakes": []})
    operator.result = ReloadResult(False, (Mistake("/f", 3, "proxy.p.x", "unknown key"),), 3)
    assert (await ask(path, "POST", "/reload"))[::2] == (
        422,
        {
            "ok": False,
            "generation": 3,
            "mistakes": [{"file": "/f", "line": 3, "key": "proxy.p.x", "text": "unknown key"}],
        },
    )
    assert operator.asked == ["reload", "reload"]


async def test_close(path: Path, operator: MemoryOperator) -> None:
    """DELETE /connections/ID closes that one; one that is not there is 404."""
    assert (await ask(path, "DELETE", "/connections/17"))[::2] == (200, {"closed": 17})
    assert operator.live == {18}
    assert (await ask(path, "DELETE", "/connections/17"))[::2] == (404, {"error": "no connection 17 is open"})


@pytest.mark.parametrize("number", ["", "x", "-1", "1/2", "+1", "1" * 5000, "%31"])
async def test_a_number_that_is_none(path: Path, operator: MemoryOperator, number: str) -> None:
    """What is no number is 400, and the operator is not asked."""
    assert (await ask(path, "DELETE", f"/connections/{number}"))[0] == 400
    assert operator.asked == []


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/status/", 404, None),
        ("POST", "/status", 405, "GET, HEAD"),
        ("GET", "/reload", 405, "POST"),
        ("DELETE", "/connections", 405, "GET, HEAD"),
        ("GET", "/connections/17", 405, "DELETE"),
        ("CONNECT", "/status", 405, "GET, HEAD"),
    ],
)
async def test_paths_and_methods(
    path: Path, operator: MemoryOperator, method: str, target: str, status: int, allow: str | None
) -> None:
    """An unknown path is 404, a wrong method 405 with those that there are; neither does anything."""
    found, headers, _ = await ask(path, method, target)
    assert (found, headers.get("allow")) == (status, allow)
    assert operator.asked == []


async def test_head_and_query(path: Path, operator: MemoryOperator) -> None:
    """HEAD has no body; a query changes nothing."""
    assert (await ask(path, "HEAD", "/status?x=1"))[::2] == (200, None)


async def test_keep_alive(path: Path, operator: MemoryOperator) -> None:
    """One connection carries many requests, a refused one among them."""
    client = await connect(path)
    async with client.stream:
        for target, status in (("/status", 200), ("/nowhere", 404), ("/connections", 200), ("/status", 200)):
            assert (await client.ask("GET", target, b"a body"))[0] == status


async def test_a_fault_of_the_operator(path: Path, operator: MemoryOperator) -> None:
    """What the operator raises is a 500 without its text; the service goes on."""
    operator.fault = RuntimeError("secret")
    status, _, value = await ask(path, "GET", "/status")
    assert status == 500
    assert "secret" not in value["error"]
    operator.fault = None
    assert (await ask(path, "GET", "/status"))[0] == 200


# ── who may ask ──


async def test_another_uid_is_refused(path: Path, operator: MemoryOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root and the daemon's own user may ask, whatever the socket's mode; others get 403 and the end."""
    path.chmod(0o666)
    own = os.geteuid()
    for uid, allowed in ((own, True), (0, True), (own + 1, False), (65534, False)):
        monkeypatch.setattr(peercred, "credentials", lambda _, uid=uid: (1, uid, uid))
        if allowed:
            assert (await ask(path, "GET", "/status"))[0] == 200
            continue
        operator.asked.clear()
        client = await connect(path)
        async with client.stream:
            client.http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
            status, headers, value = await client.answer()
            assert (status, headers["connection"]) == (403, "close")
            assert value["error"].startswith(f"uid {uid} may not use the control socket")
            assert await client.stream.receive_some(1) == b""
        assert operator.asked == []


async def test_a_uid_without_a_mapping_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that itself runs as the overflow uid does not take every unmapped one for itself."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(peercred, "credentials", lambda _: (1, 65534, 65534))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control.refuse(ours) is not None


@pytest.mark.root
async def test_the_kernel_says_who_asks(path: Path, operator: MemoryOperator) -> None:
    """A real other uid gets through an open mode, and no further."""
    path.chmod(0o666)
    pid = os.fork()
    if not pid:
        status = 9
        try:
            os.setresuid(4242, 4242, 4242)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(path))
                status = 0 if b" 403 " in sock.recv(100) else 1
        finally:
            os._exit(status)
    _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert operator.asked == []


async def test_the_socket(path: Path) -> None:
    """Mode 0600; a stale one is replaced; one that is listened on is not, and the error names the key."""
    before = socket.socket(socket.AF_UNIX)
    before.bind(str(path))
    before.close()
    listener, bound = control.listen(str(path))
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SockguardError, match=rf"^daemon\.control: {path}: another process listens there"):
            control.listen(str(path))
    bound.remove()
    assert not path.exists()
