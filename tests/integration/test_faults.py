"""What sockguard stands on fails: a service that comes and goes, a name service that hangs, a relay that stands still.

Nobody else is held up.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.clients import connect, exchange
from tests.support.daemon import REPO, Daemon, running
from tests.support.identities import wait_until
from tests.support.services import serving

ROUNDS = 25
"""How often the service comes and goes."""

HANGING = """
import os, time
import sockguard.server.reload as reload
from sockguard.identity.accounts import Accounts

def from_system(read=Accounts.from_system):
    while os.path.exists({flag!r}):
        time.sleep(0.02)
    return read()

async def read(privileges, read=reload.read):
    reload.READ_SECONDS = {seconds} if os.path.exists({flag!r}) else 60.0
    return await read(privileges)

Accounts.from_system = from_system
reload.read = read
"""


def configure(folder: Path, rule: str = 'users = ["*"]') -> Path:
    file = folder / "sockguard.toml"
    file.write_text(
        "[daemon]\nrelays = 2\n"
        + "".join(
            f'[proxy.{name}]\nlisten = "{folder}/{name}"\nbackend = "{folder}/{name}.private"\n'
            f'connect_timeout = "50ms"\n[[proxy.{name}.allow]]\n{rule}\n'
            for name in ("flapping", "steady")
        )
    )
    return file


def visit(path: Path) -> bool:
    """One client: an answer, or the end of the connection. To be left waiting, or refused, fails."""
    try:
        with connect(path) as client:
            client.sendall(b"x")
            return client.recv(1) == b"x"
    except (BrokenPipeError, ConnectionResetError):
        return False


def test_a_service_that_comes_and_goes(folder: Path) -> None:
    """Each client is served or closed, each one's end is told, the other proxy goes on, and so does this one then."""
    answers: list[bool] = []
    faults: list[BaseException] = []
    enough = threading.Event()

    def visitors() -> None:
        try:
            while not enough.is_set():
                answers.append(visit(folder / "flapping"))
        except BaseException as error:
            faults.append(error)

    with serving(folder / "steady.private"), running(configure(folder), folder / "steady") as daemon:
        threads = [threading.Thread(target=visitors, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(ROUNDS):
            with serving(folder / "flapping.private"):
                assert exchange(folder / "steady") == "ping"
            assert exchange(folder / "steady") == "ping"
        with serving(folder / "flapping.private"):
            wait_until(lambda: True in answers or bool(faults), "one of them is served")
            enough.set()
            for thread in threads:
                thread.join(15)
            assert not any(thread.is_alive() for thread in threads)
            assert exchange(folder / "flapping") == "ping"
        assert faults == []
        assert True in answers
        came = len(answers) + 1
        wait_until(lambda: closed(daemon) == came, "each one's end is told")
        assert daemon.process.poll() is None
    assert {event["proxy"] for event in daemon.events("connection_denied")} <= {"flapping"}


def closed(daemon: Daemon) -> int:
    return sum(event["proxy"] == "flapping" for event in daemon.events("connection_closed"))


@contextmanager
def hangs(flag: Path) -> Iterator[None]:
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def test_a_name_service_that_hangs_at_a_reload(folder: Path) -> None:
    """The reload fails after its time, and says why; meanwhile clients come in by the old rules; the next one works."""
    flag = folder / "hang"
    (folder / "sitecustomize.py").write_text(HANGING.format(flag=str(flag), seconds=2.0))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{REPO}",
        "RUNTIME_DIRECTORY": str(folder / "run"),
    }
    file = configure(folder)
    with serving(folder / "steady.private"), running(file, folder / "steady", env=environment) as daemon:
        assert exchange(folder / "steady") == "ping"
        configure(folder, 'users = ["daemon"]')
        with hangs(flag):
            daemon.process.send_signal(signal.SIGHUP)
            assert exchange(folder / "steady") == "ping"
            failed = daemon.wait_for("reload_failed")
            assert exchange(folder / "steady") == "ping"
        assert "could not be looked up within 2 s" in failed["mistakes"][0]
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        assert exchange(folder / "steady") == "closed"


def test_a_relay_that_stands_still(folder: Path) -> None:
    """A stopped relay does not answer control's pings: it is killed, its connections are told lost, others go on."""
    file = configure(folder)
    with serving(folder / "steady.private"), running(file, folder / "steady") as daemon:
        clients = [connect(folder / "steady") for _ in range(4)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        stopped = daemon.pids()["sockguard-relay"][0]
        os.kill(stopped, signal.SIGSTOP)
        daemon.wait_for("relay_restarted", seconds=40)
        lost = [event for event in daemon.events("connection_closed") if event["outcome"] == "relay_lost"]
        assert 0 < len(lost) < len(clients)
        assert "did not answer" in daemon.stderr()
        assert exchange(folder / "steady", b"hello\n") == "hello"
        for client in clients:
            client.close()
