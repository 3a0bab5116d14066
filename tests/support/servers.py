"""Real servers on private sockets, and sockguard in front of them.

The servers run as users of their own. Their folders open only to sockguard's control process: what a client gets, it
gets through the guard.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import Daemon, running

ALLOWED = pwd.getpwnam("daemon").pw_uid
"""The uid that may. An account that every system has: some clients want a name for their uid."""
DENIED = 4343
START_SECONDS = 30.0
CLIENT_SECONDS = 60.0


@dataclass(frozen=True)
class Guarded:
    """A server behind sockguard. ``public``, ``private``: where clients of either find it."""

    public: Path
    private: Path
    daemon: Daemon

    def compare(
        self, *command: str, uid: int | None = ALLOWED, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a client as the allowed user through the guard, and as root without it: all they say must be equal.

        ``PATH`` in the command stands for the socket, ``DIR`` for its folder. uid None: the command gives itself an
        identity (as_user), the same both times; for that the private folder lets everybody pass in the second.
        """
        guarded = self.client(*command, uid=uid, data=data)
        self.private.parent.chmod(0o711)
        direct = run(self._place(command, self.private), data=data)
        self.private.parent.chmod(0o710)
        assert guarded.returncode == direct.returncode, guarded.stderr
        assert guarded.stdout == direct.stdout
        assert self._without_place(guarded.stderr) == self._without_place(direct.stderr)
        return guarded

    def client(self, *command: str, uid: int | None = ALLOWED, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a client to its end through the guard."""
        return run(self._place(command, self.public), uid=uid, data=data)

    def refused(self, *command: str, says: bytes) -> None:
        """Run a client as DENIED: its usual error for a connection that is closed at once, and nothing of the server's.

        says: a pattern for all that it may say. It may also say nothing and end by SIGPIPE, as one that does not
        ignore that signal will if it writes after the close: which comes first is the kernel's choice.
        """
        done = self.client(*command, uid=DENIED)
        said = done.stdout + done.stderr
        if done.returncode != -signal.SIGPIPE:
            assert done.returncode != 0
            assert re.search(says, said), said
        event = self.daemon.wait_for("connection_denied")
        assert (event["uid"], event["cause"], event["rule"]) == (DENIED, "rules", None)
        assert {event["uid"] for event in self.daemon.events("connection_admitted")} <= {ALLOWED}

    def start(self, *command: str, direct: bool = False) -> subprocess.Popen[bytes]:
        """Start a client that goes on, with pipes: as the allowed user through the guard, or as root without it."""
        return subprocess.Popen(
            [*as_uid(None if direct else ALLOWED), *self._place(command, self.private if direct else self.public)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd="/",
        )

    def _place(self, command: Sequence[str], path: Path) -> list[str]:
        return [word.replace("PATH", str(path)).replace("DIR", str(path.parent)) for word in command]

    def _without_place(self, text: bytes) -> bytes:
        for path in (self.public, self.private):
            text = text.replace(str(path).encode(), b"PATH")
        return text


@contextlib.contextmanager
def guarded(folder: Path, name: str, more: str = "") -> Iterator[Guarded]:
    """sockguard between folder/public/NAME and folder/private/NAME, admitting ALLOWED. ``more``: keys of the proxy."""
    public = folder / "public" / name
    public.parent.mkdir(exist_ok=True)
    private = folder / "private" / name
    file = folder / "sockguard.toml"
    file.write_text(
        f'[proxy.server]\nlisten = "{public}"\nbackend = "{private}"\n{more}\n'
        f'[[proxy.server.allow]]\nname = "the one"\nusers = [{ALLOWED}]\n'
    )
    with running(file, public) as daemon:
        yield Guarded(public, private, daemon)


def control_ids() -> tuple[int, int]:
    """(uid, gid) of a control process that root starts: the account sockguard, or root where there is none."""
    try:
        account = pwd.getpwnam("sockguard")
    except KeyError:
        return 0, 0
    return account.pw_uid, account.pw_gid


def private_folder(folder: Path, user: str | int) -> Path:
    """folder/private as it should be: the service's own, open to control's group and to nobody else."""
    path = folder / "private"
    path.mkdir()
    path.chmod(0o710)
    os.chown(path, pwd.getpwnam(user).pw_uid if isinstance(user, str) else user, control_ids()[1])
    return path


def as_uid(uid: int | None) -> list[str]:
    """The words before a command that give it an identity (None: it stays as it is)."""
    return [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


def as_user(name: str) -> list[str]:
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", "--"]


def environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def run(command: Sequence[str], *, uid: int | None = None, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*as_uid(uid), *command],
        input=data,
        capture_output=True,
        timeout=CLIENT_SECONDS,
        check=False,
        env=environment(),
        cwd="/",
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that this test started, ended with it whatever happens."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Postgresql:
    """A cluster of its own in a temporary folder, run by the user postgres, on folder/private/.s.PGSQL.5432."""

    SOCKET = ".s.PGSQL.5432"

    def __init__(self, folder: Path, auth: str = "trust") -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        assert found, "PostgreSQL is not installed"
        self._bin = found[-1]
        self._private = private_folder(folder, "postgres")
        self._data = folder / "data"
        self._data.mkdir(mode=0o700)
        os.chown(self._data, pwd.getpwnam("postgres").pw_uid, pwd.getpwnam("postgres").pw_gid)
        self._do("initdb", "--no-sync", f"--auth={auth}", "--encoding=UTF8", "--locale=C")

    def start(self) -> None:
        options = f"-k {self._private} -c listen_addresses= -c fsync=off -c shared_buffers=32MB -c max_wal_size=1GB"
        options += " -c max_connections=300"  # of those that have gone some may still be there
        self._do("pg_ctl", "start", "--wait", f"--log={self._data}/log", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        self._do("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def _do(self, program: str, *arguments: str) -> None:
        # Not captured by a pipe: the server would inherit it and hold it open.
        with (self._data.parent / "pg.out").open("ab+") as output:
            done = subprocess.run(
                [*as_user("postgres"), str(self._bin / program), "-D", str(self._data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=START_SECONDS,
                check=False,
                env=environment(),
                cwd="/",
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode(errors="replace")


@contextlib.contextmanager
def postgresql(folder: Path, auth: str = "trust") -> Iterator[Postgresql]:
    cluster = Postgresql(folder, auth)
    cluster.start()
    try:
        yield cluster
    finally:
        with contextlib.suppress(AssertionError):  # a test may have stopped it
            cluster.stop("immediate")


@contextlib.contextmanager
def serving_process(command: Sequence[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process of its own, once it listens on ``path``."""
    with (path.parent / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), cwd="/", umask=0o077
        )
    with ended(process):
        end = time.monotonic() + START_SECONDS
        while not _listens(path):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{command[0]} does not listen: {(path.parent / 'log').read_text()}")
            time.sleep(0.01)
        yield process


def redis(path: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """redis-server on a socket, run by the user redis; keeps nothing on disk."""
    options = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "777", "--save", "", "--dir"]
    return serving_process([*as_user("redis"), "redis-server", *options, str(path.parent)], path)


def ssh_agent(path: Path, uid: int | None = None) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """ssh-agent, by default under control's own uid: it takes connections from its own uid and from root only."""
    owner = as_uid(control_ids()[0] if uid is None else uid)
    return serving_process([*owner, "ssh-agent", "-D", "-a", str(path)], path)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
