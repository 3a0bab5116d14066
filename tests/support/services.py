"""Small services of our own, for what no real server does on demand. Real servers stand in their own tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def echo(sock: socket.socket) -> None:
    """Send back what comes, until the end of it."""
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)


@contextlib.contextmanager
def serving(
    path: Path,
    handle: Callable[[socket.socket], None] = echo,
    *,
    backlog: int = 128,
    mode: int = 0o666,
    kind: int = socket.SOCK_STREAM,
) -> Iterator[None]:
    """A service on ``path``, a thread a connection. Exceptions of a handler end its connection only."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(backlog)
        thread = threading.Thread(target=_accept, args=(listener, handle), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            path.unlink(missing_ok=True)


def _accept(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_handle, args=(handle, sock), daemon=True).start()


def _handle(handle: Callable[[socket.socket], None], sock: socket.socket) -> None:
    with contextlib.suppress(OSError), sock:
        handle(sock)
