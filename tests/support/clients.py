"""Clients that are processes of their own, under whatever identity a test needs."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path


def as_user(
    do: Callable[[], str],
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] = (),
    *,
    real_uid: int | None = None,
) -> str:
    """What ``do`` returns in a child process of that identity (uid None: stays). An exception comes back as its text.

    real_uid: a real uid that differs from the effective one, as in a set-uid program.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups(list(groups))
                gid = uid if gid is None else gid
                os.setresgid(gid, gid, gid)
                os.setresuid(uid if real_uid is None else real_uid, uid, uid)
            answer = do()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
            if not isinstance(error, OSError):
                traceback.print_exc(file=sys.stderr)
        os.write(writer, answer.encode("utf-8", "surrogateescape"))
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def connect(path: str | Path, seconds: float = 10.0) -> socket.socket:
    """A connected stream socket; ``@name`` is abstract."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(seconds)
    text = str(path)
    sock.connect("\0" + text[1:] if text.startswith("@") else text)
    return sock


def exchange(path: str | Path, data: bytes = b"ping\n") -> str:
    """Send and read one answer: what an echo service gives back, or "closed" when there is none."""
    with connect(path) as sock:
        try:
            sock.sendall(data)
            answer = sock.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return "closed"
    return answer.decode(errors="replace").strip() or "closed"
