"""tmux behind sockguard: its client passes its terminal to the server as file descriptors, so a proxy that loses them
(systemd-socket-proxyd, socat, haproxy) leaves it with "open terminal failed: not a terminal".

The server asks the kernel, too, who the client is: with `identity = "client"` its own list of users goes on to count.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.servers import (
    ALLOWED,
    as_uid,
    ended,
    environment,
    guarded,
    private_folder,
    run,
    serving_process,
)

pytestmark = pytest.mark.root

SECONDS = 15.0
STRANGER = 4444
"""Admitted by sockguard, unknown to tmux."""
TMUX = ("tmux", "-N", "-S", "PATH")  # -N: never start a server
IDENTITY = f'identity = "client"\n[[proxy.server.allow]]\nusers = [{STRANGER}]\n'


class Terminal:
    """A client on a terminal of its own, of 80 by 24 characters. ``seen``: all it has shown."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *as_uid(ALLOWED), "env", "TERM=xterm", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(),
            cwd="/",
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, text: bytes) -> None:
        """Wait until it has shown that after what was waited for last."""
        end = time.monotonic() + SECONDS
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], (text, self.seen)
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the terminal open any more (pty(7))
                raise AssertionError((text, self.seen)) from None
        self.seen = self.seen.partition(text)[2]

    def ends(self) -> int:
        """Its exit status."""
        return self.process.wait(SECONDS)


@contextmanager
def attached(path: Path) -> Iterator[Terminal]:
    terminal = Terminal("tmux", "-N", "-S", str(path), "attach")
    try:
        with ended(terminal.process):
            yield terminal
    finally:
        os.close(terminal.master)


@contextmanager
def tmux(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server with one session, in the foreground, as the allowed user."""
    command = [*as_uid(ALLOWED), "env", "SHELL=/bin/sh", "PS1=ready>", "tmux", "-D", "-f", "/dev/null", "-S", str(path)]
    serving: AbstractContextManager[subprocess.Popen[bytes]] = serving_process(command, path)
    with serving as server:
        path.chmod(0o666)  # for whoever comes as far: the folder's group, which is sockguard
        made = run(["tmux", "-S", str(path), "new-session", "-d", "-s", "main", "-x", "80", "-y", "24", "sh", "-i"])
        assert made.returncode == 0, made.stderr
        yield server


def at_a_terminal(path: Path, server: subprocess.Popen[bytes]) -> tuple[int, int, int]:
    """A session as people have it. Gives the exit statuses: detached; of a client whose server ended; of that."""
    with attached(path) as terminal:
        terminal.type("echo $((6*7))-and-more\r")
        terminal.shows(b"42-and-more")
        terminal.resize(30, 100)
        # The server's own line is the thirtieth. It tells the session's terminal of a new size after a while.
        terminal.type("until [ \"$(stty size)\" = '29 100' ]; do sleep 0.05; done; echo re''sized\r")
        terminal.shows(b"resized")
        terminal.type("\x02d")  # Ctrl-B d
        terminal.shows(b"[detached (from session main)]")
        detached = terminal.ends()
    with attached(path) as terminal:
        terminal.shows(b"42-and-more")  # of the session as it was
        assert run(["tmux", "-N", "-S", str(path), "kill-server"], uid=ALLOWED).returncode == 0
        terminal.shows(b"[server exited]")
        return detached, terminal.ends(), server.wait(SECONDS)


def test_a_session(folder: Path) -> None:
    """Typing, resizing, detaching, attaching again and the server's end are what they are without the guard."""
    private = private_folder(folder, ALLOWED) / "tmux"
    with guarded(folder, private.name, IDENTITY) as guard:
        with tmux(private) as server:
            guard.compare(*TMUX, "list-sessions", "-F", "#{session_name} #{session_windows}")
            guard.compare(*TMUX, "no-such-command")
            text = b"".join(b"line %d\n" % number for number in range(100_000))
            assert guard.client(*TMUX, "load-buffer", "-", data=text).returncode == 0
            assert guard.compare(*TMUX, "save-buffer", "-").stdout == text

            stranger = guard.compare(*as_uid(STRANGER), *TMUX, "list-sessions", uid=None)
            assert stranger.stderr == b"access not allowed\n"

            through = at_a_terminal(guard.public, server)
        outcomes = {event["outcome"] for event in guard.daemon.events("connection_closed")}
        assert outcomes <= {"closed", "backend_reset"}
        with tmux(private) as server:
            assert at_a_terminal(private, server) == through
