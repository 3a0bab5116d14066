"""Real message buses on private sockets, and clients of every usual library, as whichever user a test needs."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.identities import PYTHON, run_tool
from tests.support.servers import as_uid, ended, environment, run, serving_process

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
ECHO, SECRET, OTHER = "org.example.Echo", "org.example.Secret", "org.example.Other"
ON_DEMAND: Final = "org.example.OnDemand"
"""A name that the bus starts a service for."""

OBJECT: Final = "/org/example"
SERVICE: Final = Path(__file__).with_name("dbus_service.py")
READY_SECONDS: Final = 20.0

# Everything is allowed, eavesdropping too: what is refused in a test, sockguard refused. The limits are those of a
# session bus, so that no test meets one of the bus's by chance.
_CONFIG: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
  <limit name="max_message_size">134217728</limit>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_replies_per_connection">50000</limit>
  <limit name="max_completed_connections">10000</limit>
  <limit name="max_connections_per_user">10000</limit>
</busconfig>
"""

_ON_DEMAND: Final = """[D-BUS Service]
Name={name}
Exec={python} -I {program} unix:path={path} {name} --mark {mark}
"""


@dataclass(frozen=True)
class Bus:
    """A running bus. ``started``: a file that exists once the service for ON_DEMAND has run."""

    path: Path
    started: Path

    @property
    def address(self) -> str:
        return f"unix:path={self.path}"


def _prepare(path: Path) -> tuple[Path, Bus]:
    """Write the bus's file and its service files beside the socket."""
    folder = path.parent
    services = folder / "services"
    services.mkdir(exist_ok=True)
    bus = Bus(path, folder / "started")
    (services / f"{ON_DEMAND}.service").write_text(
        _ON_DEMAND.format(name=ON_DEMAND, python=PYTHON, program=SERVICE, path=path, mark=bus.started)
    )
    config = folder / "bus.conf"
    config.write_text(_CONFIG.format(path=path, services=services))
    return config, bus


@contextlib.contextmanager
def dbus_daemon(path: Path, uid: int | None = None) -> Iterator[Bus]:
    """dbus-daemon on ``path``, run by that user (None: root), with a service file for ON_DEMAND."""
    config, bus = _prepare(path)
    with serving_process([*as_uid(uid), "dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"], path):
        yield bus


# dbus-broker-launch takes its socket as systemd gives it (sd_listen_fds(3): in the process whose pid LISTEN_PID is)
# and does not start without a journal to write to. It gets one of its own, in a mount namespace.
_LAUNCH: Final = """
mount -t tmpfs none /run
mkdir -p /run/systemd/journal
mount --bind {journal} /run/systemd/journal
export LISTEN_PID=$$
exec dbus-broker-launch --scope user --config-file {config}
"""


@contextlib.contextmanager
def dbus_broker(path: Path) -> Iterator[Bus]:
    """dbus-broker on ``path``, run by root. Nothing can be started on demand: that needs systemd."""
    config, bus = _prepare(path)
    journal = path.parent / "journal"
    journal.mkdir()
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
        (path.parent / "log").open("wb") as output,
    ):
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(128)
        log.bind(str(journal / "socket"))
        drain = threading.Thread(target=_drain, args=(log,), daemon=True)
        drain.start()
        launch = shlex.quote(_LAUNCH.format(journal=journal, config=config))
        process = subprocess.Popen(
            # The shell puts the listener where LISTEN_FDS says it is: at descriptor 3.
            ["bash", "-c", f"exec unshare --mount sh -ec {launch} 3<&{listener.fileno()}"],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**environment(), "LISTEN_FDS": "1", "DBUS_SESSION_BUS_ADDRESS": bus.address},
        )
        listener.close()  # nobody waits in the backlog of a launcher that has failed
        try:
            with _terminated(process):
                run_tool("busctl", f"--address={bus.address}", "call", BUS, BUS_PATH, BUS, "GetId")
                yield bus
        finally:
            log.shutdown(socket.SHUT_RDWR)
            drain.join(5)


def _drain(sock: socket.socket) -> None:
    """Read a datagram socket until it is shut down, so that its writers never wait."""
    while sock.recv(65536):
        pass


@contextlib.contextmanager
def _terminated(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM at the end: a launcher that is killed leaves its broker behind."""
    with ended(process):
        try:
            yield
        finally:
            process.terminate()
            process.wait(READY_SECONDS)


@contextlib.contextmanager
def service(address: str, *names: str, uid: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """dbus_service.py, once it owns all these names."""
    command = [*as_uid(uid), PYTHON, "-I", str(SERVICE), address, *names]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd="/")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", f"the service did not get {names}"
        yield process


@contextlib.contextmanager
def echo_tool(address: str, name: str) -> Iterator[None]:
    """dbus-test-tool echo: an empty reply to every call of ``name``."""
    variables = {**environment(), "DBUS_SESSION_BUS_ADDRESS": address}
    tool = subprocess.Popen(["dbus-test-tool", "echo", f"--name={name}"], env=variables, cwd="/")
    with ended(tool):
        run_tool("gdbus", "wait", f"--address={address}", f"--timeout={READY_SECONDS:.0f}", name)
        yield


# ── clients ──


@dataclass(frozen=True)
class Said:
    """What a client program said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def good(self) -> bool:
        return self.status == 0


@dataclass(frozen=True)
class Client:
    """The usual programs, as one user on one bus's socket."""

    path: Path
    uid: int | None = None

    @property
    def address(self) -> str:
        return f"unix:path={self.path}"

    def run(self, *command: str, data: bytes = b"") -> Said:
        done = run(command, uid=self.uid, data=data)
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A client that goes on, its standard output and error in one pipe."""
        return subprocess.Popen(
            [*as_uid(self.uid), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd="/",
        )

    def busctl(self, verb: str, *words: str) -> Said:
        """sd-bus. Options of busctl itself may stand among the words, before the ``--`` that a call needs."""
        return self.run("busctl", f"--address={self.address}", "--timeout=20", verb, *words)

    def gdbus(self, verb: str, *words: str) -> Said:
        """GLib."""
        return self.run("gdbus", verb, f"--address={self.address}", *words)

    def gdbus_call(self, name: str, method: str, *arguments: str, path: str = OBJECT) -> Said:
        return self.gdbus(
            "call", f"--dest={name}", f"--object-path={path}", f"--method={method}", "--timeout=20", *arguments
        )

    def dbus_send(self, name: str, method: str, *arguments: str, path: str = OBJECT) -> Said:
        """libdbus."""
        return self.run(
            "dbus-send",
            f"--bus={self.address}",
            "--print-reply",
            "--reply-timeout=20000",
            f"--dest={name}",
            path,
            method,
            *arguments,
        )

    def python(self, script: str, *arguments: str) -> Said:
        """dbus-python: ``bus`` is the connection, ``service(name)`` an object at OBJECT of whoever owns that name."""
        return self.run(PYTHON, "-I", "-c", _PYTHON + script, self.address, *arguments)

    def tool(self, *words: str) -> Said:
        """dbus-test-tool, or another program that takes its bus from the environment."""
        return self.run("env", f"DBUS_SESSION_BUS_ADDRESS={self.address}", *words)

    def monitor(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start("dbus-monitor", "--address", self.address, *words)


_PYTHON: Final = f"""
import os, sys
import dbus, dbus.bus
bus = dbus.bus.BusConnection(sys.argv[1])
def service(name):
    return bus.get_object(name, "{OBJECT}", introspect=False)
"""


def dbus_tests(program: str, client: Client, *options: str) -> Sequence[str]:
    """Run a program of dbus-tests against that bus. Gives the lines that it says of its cases (TAP)."""
    found = Path("/usr/lib/dbus-1.0/installed-tests/dbus") / program
    said = client.run("env", f"DBUS_TEST_DAEMON_ADDRESS={client.address}", str(found), "--tap", *options)
    lines = [line for line in said.out.splitlines() if line.startswith(("ok", "not ok", "Bail out"))]
    assert lines, said
    if said.status:
        lines.append(f"not ok: status {said.status}, {said.err[-2000:]}")
    return lines


def chmod_tree_for_all(path: Path) -> None:
    """Let everybody pass to a private socket: for what a test compares with."""
    os.chmod(path.parent, 0o711)
