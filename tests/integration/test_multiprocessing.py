"""Python's multiprocessing.connection behind sockguard: objects of any size, and file descriptors in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.identities import PYTHON
from tests.support.servers import ALLOWED, as_uid, guarded, private_folder, serving_process

pytestmark = pytest.mark.root

SERVER = """
import os, sys
from multiprocessing import AuthenticationError, reduction
from multiprocessing.connection import Listener
with Listener(sys.argv[1], "AF_UNIX", authkey=b"a key") as listener:
    os.chmod(sys.argv[1], 0o666)
    while True:
        try:
            with listener.accept() as connection:
                for number in range(connection.recv()):
                    thing = connection.recv()
                    fd = reduction.recv_handle(connection)
                    os.pwrite(fd, b"%d seen" % number, 0)
                    connection.send((number, thing))
                    reduction.send_handle(connection, fd, 0)
                    os.close(fd)
        except (AuthenticationError, EOFError, OSError):
            pass
"""

CLIENT = """
import json, os, sys, threading
from multiprocessing import reduction
from multiprocessing.connection import Client
things = [{"number": n, "text": "x" * size} for n, size in enumerate([0, 1, 100, 20_000_000, *range(0, 150_000, 1500)])]
files = [os.memfd_create("file") for _ in things]
with Client(sys.argv[1], "AF_UNIX", authkey=sys.argv[2].encode()) as connection:
    def send():
        connection.send(len(things))
        for thing, fd in zip(things, files):
            connection.send(thing)
            reduction.send_handle(connection, fd, 0)
    sender = threading.Thread(target=send)  # without waiting for answers: descriptors stand among the objects' bytes
    sender.start()
    same, words = [], []
    for number, thing in enumerate(things):
        same.append(connection.recv() == (number, thing))
        fd = reduction.recv_handle(connection)
        same.append(os.path.sameopenfile(fd, files[number]))
        words.append(os.pread(fd, 100, 0).decode())
        os.close(fd)
    sender.join()
print(json.dumps([all(same), words]))
"""


def test_objects_and_handles(folder: Path) -> None:
    """Each descriptor comes between the very bytes that it was sent between, and is the file that was sent."""
    private = private_folder(folder, ALLOWED) / "listener"
    command = [*as_uid(ALLOWED), PYTHON, "-I", "-c", SERVER, str(private)]
    with serving_process(command, private), guarded(folder, private.name) as guard:
        client = (PYTHON, "-I", "-c", CLIENT, "PATH")
        done = guard.compare(*client, "a key")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [True, [f"{number} seen" for number in range(104)]]
        closed = guard.daemon.wait_for("connection_closed")
        assert closed["outcome"] == "closed"
        assert min(closed["bytes_from_client"], closed["bytes_from_backend"]) > 20_000_000

        wrong = guard.compare(*client, "another key")
        assert b"AuthenticationError" in wrong.stderr
        guard.refused(*client, "a key", says=rb"ConnectionResetError|BrokenPipeError|EOFError")
