"""Real peers for the tests of identity: child processes that connect to a real socket, and a program to run."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _nothing() -> None:
    pass


class Peers:
    """A listening socket, children that connect to it, and a folder for programs of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")  # an abstract name of the kernel's choice: any uid can reach it (unix(7), autobind)
        self._name: bytes = self._listener.getsockname()
        self._listener.listen(8)

    def close(self) -> None:
        """Close the listener."""
        self._listener.close()

    def program(self, name: str = "program") -> Path:
        """Make a copy of sleep(1): a real program at a path of the test's own."""
        sleep = shutil.which("sleep")
        assert sleep
        return Path(shutil.copy(sleep, self.folder / name))

    @contextlib.contextmanager
    def forked(
        self, before: Callable[[], object] = _nothing, after: Callable[[], object] = _nothing
    ) -> Iterator[tuple[socket.socket, int]]:
        """Fork a child that runs ``before``, connects, runs ``after``, and waits; yield (accepted socket, its pid)."""
        pid = os.fork()
        if pid == 0:
            try:
                before()
                client = socket.socket(socket.AF_UNIX)
                client.connect(self._name)
                after()
                client.send(b"+")
                client.recv(1)
            finally:
                os._exit(0)
        try:
            self._listener.settimeout(60)
            with self._listener.accept()[0] as accepted:
                accepted.settimeout(60)
                accepted.recv(1)  # ``after`` is done, or the child has ended
                yield accepted, pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    @contextlib.contextmanager
    def executed(self, *command: str | Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
        """Run a program in a child that has connected; yield (accepted socket, the child) once it runs."""

        def connect() -> None:
            client = socket.socket(socket.AF_UNIX)
            client.connect(self._name)
            os.dup2(client.fileno(), 0)  # the program keeps the connection as its standard input

        child = subprocess.Popen([str(part) for part in command], preexec_fn=connect)
        try:
            with self._listener.accept()[0] as accepted:
                yield accepted, child
        finally:
            child.kill()
            child.wait()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Give the test its listener."""
    made = Peers(tmp_path)
    yield made
    made.close()
