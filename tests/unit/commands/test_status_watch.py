"""sockguard status --watch: a live listing that leaves the terminal as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sockguard.commands.watch import frame
from tests.support.operator import MemoryOperator, served

REPO = Path(__file__).resolve().parents[3]
COMMAND = (
    "import argparse, sys; from sockguard.commands import status; p = argparse.ArgumentParser(); "
    "status.add_parser(p.add_subparsers()); a = p.parse_args(); sys.exit(a.run(a))"
)
ON_TERMINAL = "import os; os.open(os.ttyname(0), os.O_RDWR); "  # the first one that a new session opens is its own
SECONDS = 20.0


class Terminal:
    """The command on a terminal of its own, 80 by 24."""

    def __init__(self, path: Path) -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL + COMMAND, "status", "--watch", "--control", str(path)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            cwd=REPO,
            env={**os.environ, "COLUMNS": "", "LINES": ""},
        )
        self.theirs = theirs
        self.seen = b""

    def wait_for(self, text: bytes, times: int = 1) -> None:
        end = time.monotonic() + SECONDS
        while self.seen.count(text) < times:
            assert time.monotonic() < end, self.seen
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536)

    def ended(self) -> int:
        """The exit status, once everything it wrote has been read."""
        status = self.process.wait(SECONDS)
        while select.select([self.ours], [], [], 0)[0]:
            self.seen += os.read(self.ours, 65536)
        return status

    def restored(self) -> bool:
        return self.seen.endswith(b"\x1b[?25h\x1b[?1049l") and termios.tcgetattr(self.theirs) == self.before


@contextmanager
def terminal(path: Path) -> Iterator[Terminal]:
    made = Terminal(path)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        os.close(made.ours)
        os.close(made.theirs)


@contextmanager
def off_terminal(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "status", "--watch", "--control", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPO,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def quit_by_key(on: Terminal) -> None:
    os.write(on.ours, b"xq")
    assert on.ended() == 0


def quit_by_interrupt(on: Terminal) -> None:
    os.write(on.ours, b"\x03")
    assert on.ended() == 0


def quit_by_signal(on: Terminal) -> None:
    on.process.send_signal(signal.SIGTERM)
    assert on.ended() == 128 + signal.SIGTERM


@pytest.mark.parametrize("leave", [quit_by_key, quit_by_interrupt, quit_by_signal])
async def test_on_a_terminal(folder: Path, leave: Callable[[Terminal], None]) -> None:
    """Drawn again with rates; q, Ctrl-C and SIGTERM end it, and the terminal is as it was."""
    path = folder / "control.sock"
    operator = MemoryOperator()

    def look() -> None:
        with terminal(path) as on:
            on.wait_for(b"ADMITTED ")
            assert on.seen.startswith(b"\x1b[?1049h\x1b[?25l\x1b[H")
            on.wait_for(b"ADMITTED/s")
            leave(on)
            assert on.restored()

    async with served(path, operator):
        await trio.to_thread.run_sync(look)
    assert set(operator.asked) == {"status"}


async def test_while_there_is_no_daemon(folder: Path) -> None:
    """On a terminal it waits for the daemon, saying so, and goes on when it is there."""
    path = folder / "control.sock"
    with terminal(path) as on:
        await trio.to_thread.run_sync(on.wait_for, b"no daemon listens at")
        async with served(path, MemoryOperator()):
            await trio.to_thread.run_sync(on.wait_for, b"PROXY")
        await trio.to_thread.run_sync(on.wait_for, b"no daemon listens at", 2)
        await trio.to_thread.run_sync(quit_by_key, on)


async def test_off_a_terminal(folder: Path) -> None:
    """One listing after another, without a control character; an interrupt ends it well."""
    path = folder / "control.sock"

    def look() -> None:
        seen = b""
        with off_terminal(path) as process:
            assert process.stdout is not None
            while b"ADMITTED/s" not in seen:
                line = process.stdout.readline()
                assert line
                seen += line
            process.send_signal(signal.SIGINT)
            seen += process.stdout.read()
            assert process.wait(SECONDS) == 0
        assert seen.startswith(b"sockguard 0.1.0, generation 3\n")
        assert b"\x1b" not in seen

    async with served(path, MemoryOperator()):
        await trio.to_thread.run_sync(look)


def test_off_a_terminal_without_a_daemon(folder: Path) -> None:
    """Nothing to list: it ends, and not well."""
    with off_terminal(folder / "control.sock") as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait(SECONDS) == 1


def test_a_frame_fits() -> None:
    """As many lines as there is room for, one left for the keys, none wider than the terminal."""
    text = "\n".join("x" * 100 for _ in range(50))
    lines = frame(text, 40, 10).split("\r\n")
    assert len(lines) == 10
    assert all(len(line.replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "")) <= 40 for line in lines)
    assert "q or Ctrl-C" in lines[-1]
    assert frame("", 1, 1)
