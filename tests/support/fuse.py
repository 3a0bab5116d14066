"""A user with a descriptor whose close(2) never returns: of a file on a FUSE file system of the user's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.identities import PYTHON
from tests.support.servers import ended, environment

_PROGRAM: Final = Path(__file__).with_name("fuse_program.py")
_DEVICE: Final = os.makedev(10, 229)
"""/dev/fuse, Documentation/admin-guide/devices.txt."""

_SECONDS: Final = 20.0


class Hanging:
    """That user's process. Neither it nor anybody who closes what it sends gets on before ``release``."""

    def __init__(self, process: subprocess.Popen[bytes], jobs: socket.socket) -> None:
        self._process = process
        self._jobs = jobs
        self._answer()

    def _answer(self) -> None:
        said = self._jobs.recv(100)
        assert said, f"the FUSE file system could not be made: {self._process.poll()}"
        if int(said):
            raise OSError(int(said), os.strerror(int(said)))

    def send(self, over: socket.socket, data: bytes = b"x") -> None:
        """Have it send these bytes with the descriptor. Raises OSError as sending does.

        over: connected by whomever; it keeps no copy of it
        """
        socket.send_fds(self._jobs, [data], [over.fileno()])
        self._answer()

    def release(self) -> None:
        """Its file system ends: all that waits for it goes on."""
        self._process.kill()
        self._process.wait()
        assert self._jobs.recv(100) == b"", "its other process has not ended"


@contextlib.contextmanager
def hanging(folder: Path, uid: int) -> Iterator[Hanging]:
    """It is released afterwards, also when this process is killed. ``folder``: one that everybody may pass through."""
    own = folder / f"fuse-{uid}"
    own.mkdir()
    program, device, file = own / "program.py", own / "device", own / "file"
    program.write_text(_PROGRAM.read_text())  # in the repository it may lie where only root can go
    os.mknod(device, stat.S_IFCHR, _DEVICE)
    device.chmod(0o666)
    file.touch()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(_SECONDS)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [PYTHON, "-I", "-S", *map(str, (program, device, file, theirs.fileno()))],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                user=uid,
                group=uid,
                extra_groups=[],
                cwd="/",
                env=environment(),
            )
        with ended(process):
            made = Hanging(process, ours)
            try:
                yield made
            finally:
                if process.poll() is None:
                    made.release()
    shutil.rmtree(own)
