"""sockguard status, reload and close: over a real control socket, what they print where, and their exit status."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sockguard.commands import close, control_client, reload, status
from sockguard.errors import Mistake, SockguardError
from sockguard.identity import peercred
from sockguard.server.operator import ReloadResult
from tests.support.operator import MemoryOperator, served


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "control.sock"


@pytest.fixture
def operator() -> MemoryOperator:
    return MemoryOperator()


def arguments(*words: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    commands = top.add_subparsers()
    for command in (status, reload, close):
        command.add_parser(commands)
    return top.parse_args(words)


def run(*words: str) -> int:
    """The command line in this thread."""
    args = arguments(*words)
    if not hasattr(args, "config"):
        args.config = "/etc/sockguard/sockguard.toml"
    code = args.run(args)
    assert isinstance(code, int)
    return code


async def asked(path: Path, operator: MemoryOperator, *words: str) -> int:
    """The command line in a thread of its own, while the operator's control socket is served."""
    outcome: int | SockguardError
    async with served(path, operator):
        try:
            outcome = await trio.to_thread.run_sync(lambda: run(*words, "--control", str(path)))
        except SockguardError as error:  # raised in there, it would become a group
            outcome = error
    if isinstance(outcome, SockguardError):
        raise outcome
    return outcome


@contextmanager
def answering(path: Path, data: bytes) -> Iterator[None]:
    """Something else that listens at ``path``, and answers each of two connections with ``data``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


# ── what they print ──


async def test_status(path: Path, operator: MemoryOperator, capsys: pytest.CaptureFixture[str]) -> None:
    """A listing for people on standard output; the object itself with --json."""
    assert await asked(path, operator, "status") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "docker" in out
    assert "denied by docker.deny[0]" in out
    assert await asked(path, operator, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == operator.answer


async def test_connections(path: Path, operator: MemoryOperator, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each live connection, with the number that close takes."""
    assert await asked(path, operator, "status", "--connections") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "17", "18"]
    assert await asked(path, operator, "status", "--connections", "--json") == 0
    assert [row["number"] for row in json.loads(capsys.readouterr().out)["connections"]] == [17, 18]


async def test_reload(path: Path, operator: MemoryOperator, capsys: pytest.CaptureFixture[str]) -> None:
    """Done: 0 and nothing to say. Refused: 2, each mistake as check prints it, its text escaped."""
    assert await asked(path, operator, "reload") == 0
    assert capsys.readouterr() == ("", "")
    operator.result = ReloadResult(False, (Mistake("/f", 3, "proxy.p", "bad\x1b[2J"), Mistake("/f", 0, "", "gone")), 3)
    assert await asked(path, operator, "reload") == 2
    assert capsys.readouterr() == ("", "/f:3: proxy.p: bad\\x1b[2J\n/f: gone\n")


async def test_close(path: Path, operator: MemoryOperator, capsys: pytest.CaptureFixture[str]) -> None:
    """Done: 0. No such connection: 1, and said."""
    assert await asked(path, operator, "close", "17") == 0
    assert await asked(path, operator, "close", "17") == 1
    assert capsys.readouterr() == ("", "sockguard: no connection 17 is open\n")
    assert operator.asked == ["close 17", "close 17"]


@pytest.mark.parametrize("word", ["x", "-1", "1.5", "", "9" * 20])
def test_close_takes_a_number(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no number is a wrong command line."""
    with pytest.raises(SystemExit, match="2"):
        arguments("close", "--", word)
    assert "connection's number" in capsys.readouterr().err or word == "-1"


# ── what goes wrong ──


@pytest.mark.parametrize("words", [("status",), ("reload",), ("close", "1")])
def test_no_daemon(path: Path, words: tuple[str, ...]) -> None:
    """Nothing there, or a socket that nobody listens on: 1, and the path."""
    for _ in range(2):
        with pytest.raises(SockguardError, match=f"^no daemon listens at {path}") as caught:
            run(*words, "--control", str(path))
        assert caught.value.exit_status == 1
        if not path.exists():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))


async def test_not_permitted(path: Path, operator: MemoryOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned away by the daemon: said in plain words."""
    monkeypatch.setattr(peercred, "credentials", lambda _: (1, 4242, 4242))
    with pytest.raises(SockguardError, match="not permitted: only root and the daemon's own user"):
        await asked(path, operator, "status")


async def test_a_fault_of_the_daemons(path: Path, operator: MemoryOperator) -> None:
    """What the daemon says of its own fault is passed on."""
    operator.fault = RuntimeError()
    with pytest.raises(SockguardError, match=r"the daemon says: a fault of sockguard's own: see its log \(HTTP 500\)"):
        await asked(path, operator, "status")


async def test_a_status_of_another_version(path: Path, operator: MemoryOperator) -> None:
    """A shape that is not understood is no traceback."""
    operator.answer["proxies"] = [{"name": "docker"}]  # type: ignore[typeddict-item]
    with pytest.raises(SockguardError, match="of another version"):
        await asked(path, operator, "status")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"", "hung up"),
        (b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 2\r\n\r\n{}", "is not sockguard"),
        (b"HTTP/1.1 200 OK\r\nServer: sockguard/9\r\nContent-Length: 2\r\n\r\nxx", "no JSON"),
        (b"HTTP/1.1 200 OK\r\nServer: sockguard/9\r\nContent-Length: 9\r\n\r\n{}", "not HTTP"),
        (
            b'HTTP/1.1 404 No\r\nServer: sockguard/0\r\nContent-Length: 25\r\n\r\n{"error": "no such path"} ',
            "an older one",
        ),
    ],
)
def test_something_else_listens(path: Path, data: bytes, text: str) -> None:
    """Whatever is said by whatever listens there, the command ends with an error of its own."""
    with answering(path, data), pytest.raises(SockguardError, match=text):
        run("reload", "--control", str(path))


def test_a_daemon_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting has an end."""
    monkeypatch.setattr(control_client, "RELOAD_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(SockguardError, match="does not answer"):
            run("reload", "--control", str(path))


# ── where they look ──


def found(config: Path | str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return control_client.find(argparse.Namespace(config=str(config), control=None))


def test_the_files_word(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's [daemon] control; without it the default; "" is said."""
    file = folder / "sockguard.toml"
    file.write_text('[daemon]\ncontrol = "/x/y"\n')
    assert found(file, monkeypatch) == "/x/y"
    file.write_text("[daemon]\n")
    assert found(file, monkeypatch, RUNTIME_DIRECTORY="/run/z") == "/run/z/control.sock"
    file.write_text('[daemon]\ncontrol = ""\n')
    with pytest.raises(SockguardError, match=f'^{file}: control = ""'):
        found(file, monkeypatch)
    with pytest.raises(SockguardError, match="no such file; name the socket by --control PATH"):
        found(folder / "other.toml", monkeypatch)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", [b"[daemon", b"\xff", b"[" * 100_000])
def test_a_broken_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    """A file that is broken now does not keep anyone from the daemon: the default is tried, and that is said."""
    file = folder / "sockguard.toml"
    file.write_bytes(text)
    assert found(file, monkeypatch, RUNTIME_DIRECTORY="/run/z") == "/run/z/control.sock"
    assert capsys.readouterr().err.endswith("; trying the default control socket\n")


def test_no_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user without a runtime folder is told what to give."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SockguardError, match="XDG_RUNTIME_DIR"):
        found("/etc/sockguard/sockguard.toml", monkeypatch)


def test_what_is_imported() -> None:
    """The commands are quick: no trio, h11, pydantic or prometheus-client in them."""
    code = (
        "import sys; from sockguard.commands import status, status_view, watch, reload, close; "
        "print([m for m in ('trio', 'h11', 'pydantic', 'structlog', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_clean() -> None:
    """Nothing that the daemon says does anything to a terminal."""
    cases: list[tuple[object, str]] = [
        ("Küche", "Küche"),
        ("\x1b]0;x\x07\n", "\\x1b]0;x\\x07\\n"),
        ("\u202egnp", "\\u202egnp"),
        ("\udc80", "\\udc80"),
        ("a\u2028b", "a\\u2028b"),
        (17, "17"),
    ]
    check: Callable[[object], str] = control_client.clean
    assert [check(text) for text, _ in cases] == [wanted for _, wanted in cases]
