"""A relay that is taken over: what it can reach from its cage, and that without the cage it would reach all of it.

Each attempt runs in a relay of its own (tests/support/taken_over.py), under the uid ``nobody`` as root's daemon has
it, and under an ordinary user's uid beside other processes of that user.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sockguard import sandbox
from sockguard.privsep import channel
from sockguard.privsep.messages import RELAY_TO_CONTROL, Hello
from sockguard.sandbox import landlock
from tests.support import taken_over, taken_over_carrier
from tests.support.clients import exchange
from tests.support.daemon import running
from tests.support.identities import PYTHON, status
from tests.support.services import serving

SECONDS = 30.0
USER = 61234
NOBODY = 65534

ENDING = tuple(taken_over.ENDING)
ATTEMPTS = (*ENDING, *taken_over.OTHERS)
ALL = sandbox.PARTS
NONE: tuple[str, ...] = ()

KILLED = "killed"
REFUSED = f"errno {errno.EPERM}"

EXPECTED = {
    **dict.fromkeys(ATTEMPTS, REFUSED),
    **dict.fromkeys(("by_kill", "by_tgkill", "by_pidfd"), KILLED),
    **dict.fromkeys(("socket", "socketpair", "connect_path", "connect_abstract", "connect_tcp"), KILLED),
    **dict.fromkeys(("bind", "listen", "accept", "fork", "exec"), KILLED),
    **dict.fromkeys(("ptrace", "pidfd_open", "pidfd_getfd", "process_vm_readv", "setresuid", "unshare"), KILLED),
    "splice_into_a_passed_file": f"errno {errno.EFBIG}",
    "import": "no such module",
    "thread": "can't start new thread",  # its stack gets a guard page, for which there is no mprotect
}
"""What becomes of each attempt in the whole cage."""

PATHS = ("connect_path", "sendto_path", "sendmsg_path")
STOPPED_BY = [
    *(("seccomp", attempt, 0) for attempt in ATTEMPTS if attempt != "splice_into_a_passed_file"),
    *(("landlock", attempt, 1) for attempt in ("open", "listdir", "mkdir", "ptrace", "proc_mem", "proc_fd", "import")),
    *(("landlock", attempt, 1) for attempt in ("process_vm_readv", "pidfd_getfd")),
    ("landlock", "connect_tcp", 4),
    *(("landlock", attempt, 6) for attempt in (*ENDING, "connect_abstract", "sendto_abstract", "sendmsg_abstract")),
    *(("landlock", attempt, 9) for attempt in PATHS),
    *(("limits", attempt, 0) for attempt in ("fork", "thread", "write_a_passed_file", "splice_into_a_passed_file")),
]
"""Part, attempt that it stops without the others, and the Landlock ABI that this takes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """start: the uid before the relay's own code runs (-1: as the tests); account: what it is told to become."""

    start: int
    account: str
    uid: int


def identities() -> dict[str, Identity]:
    if os.geteuid() == 0:
        return {"nobody": Identity(-1, f"{NOBODY},{NOBODY}", NOBODY), "user": Identity(USER, "-", USER)}
    return {"user": Identity(-1, "-", os.geteuid())}


IDENTITIES = identities()

_VICTIM = """
import ctypes, sys
text = ctypes.create_string_buffer(b"here")
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)  # PR_SET_PTRACER: Yama is not what is tested
print(ctypes.addressof(text), flush=True)
for line in sys.stdin:
    print("alive", flush=True)
"""


class Scene:
    """Another process of the relay's uid, a service on a path, on an abstract name and on a port, and a file."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._around = ExitStack()
        self.identity = identity
        self.folder = folder / str(identity.uid)
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.file = self.folder / "file"
        (self.folder / f"{taken_over.MODULE}.py").touch()
        self._service(str(self.folder / "service"))
        os.chmod(self.folder / "service", 0o777)
        self._service(f"\0{self.folder}")
        self.datagrams = [
            self._around.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2)
        ]
        for sock, address in zip(self.datagrams, (f"\0{self.folder}d", f"{self.folder}/d"), strict=True):
            sock.bind(address)
        os.chmod(self.folder / "d", 0o777)
        tcp = self._around.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        self.port = tcp.getsockname()[1]
        self._victim: subprocess.Popen[bytes] | None = None
        self._address = ""

    def _service(self, address: str) -> None:
        sock = self._around.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(address)
        sock.listen(200)

    def victim(self) -> subprocess.Popen[bytes]:
        """The same as long as it lives."""
        if self._victim is None or self._victim.poll() is not None:
            uid = self.identity.uid if os.geteuid() == 0 else None
            self._victim = self._around.enter_context(
                subprocess.Popen(
                    [PYTHON, "-I", "-S", "-c", _VICTIM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    user=uid,
                    group=uid,
                    extra_groups=[] if uid else None,
                )
            )
            assert self._victim.stdout is not None
            self._address = self._victim.stdout.readline().decode().strip()
        return self._victim

    @staticmethod
    def lives(victim: subprocess.Popen[bytes]) -> bool:
        """Does it answer? A process with SIGKILL on its way does not."""
        assert victim.stdin is not None
        assert victim.stdout is not None
        try:
            victim.stdin.write(b"?\n")
        except BrokenPipeError:
            return False
        return victim.stdout.readline() == b"alive\n"

    def attempt(self, name: str, parts: tuple[str, ...]) -> str:
        """What becomes of it: "done", "killed", "errno N"; "in vain" where all went well but the victim lives."""
        victim = self.victim()
        self.file.write_bytes(b"as it was")
        self.file.chmod(0o666)
        ours, theirs = channel.pair()
        with ours, theirs:
            script = [sys.executable, "-I", "-S", taken_over.__file__]
            given = (theirs.fileno(), self.identity.start, self.identity.account, ",".join(parts), name)
            about = (victim.pid, self._address, self.folder, self.port)
            relay = subprocess.Popen(
                [*script, *map(str, given), *map(str, about)], pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
            )
            theirs.close()
            ours.settimeout(SECONDS)
            with relay:
                received = channel.receive(ours, RELAY_TO_CONTROL)
                assert received is not None
                assert isinstance(received[0], Hello), received
                answer = ours.recv(100).decode()
                status = relay.wait(SECONDS)
        with suppress(FileNotFoundError):
            (self.folder / "made").rmdir()
        if self.lives(victim):
            answer = "in vain" if name in ENDING and answer == "done" else answer
        else:
            assert victim.wait(SECONDS) == -signal.SIGKILL
            assert (name in ENDING, answer) == (True, "done")
        if not answer:
            assert status in (-signal.SIGSYS, 42), status
            return KILLED if status == -signal.SIGSYS else "done"
        return answer

    def received(self) -> int:
        """How many datagrams have come since this was asked."""
        count = 0
        for sock in self.datagrams:
            with suppress(BlockingIOError):
                while sock.recv(100, socket.MSG_DONTWAIT):
                    count += 1
        return count

    def close(self) -> None:
        if self._victim is not None and self._victim.poll() is None:
            self._victim.kill()
        self._around.close()


@pytest.fixture(scope="module", params=IDENTITIES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        os.chmod(folder, 0o755)
        made = Scene(Path(folder), IDENTITIES[request.param])
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_the_cage_stops_it(scene: Scene, attempt: str) -> None:
    """In the cage the attempt fails, and whoever reaches for others is killed; without, the same attempt succeeds."""
    scene.received()
    assert scene.attempt(attempt, ALL) == EXPECTED[attempt]
    assert not scene.received()
    if attempt not in ("splice_into_a_passed_file", "write_a_passed_file", "truncate_a_passed_file"):
        assert scene.file.read_bytes() == b"as it was"
    assert scene.attempt(attempt, NONE) == "done"
    assert scene.received() == attempt.startswith("send")


@pytest.mark.parametrize(
    ("part", "attempt"), [(part, attempt) for part, attempt, since in STOPPED_BY if since <= landlock.abi()]
)
@pytest.mark.parametrize("scene", ["user"], indirect=True)
def test_a_part_holds_without_the_others(scene: Scene, part: str, attempt: str) -> None:
    """The parts do not lean on one another: where a kernel lacks one, the rest stop what they are there for."""
    assert scene.attempt(attempt, (part,)) != "done"


@pytest.mark.root
@pytest.mark.parametrize("attempt", ["open", "stat", "mkdir", "proc_mem", "proc_fd", "import", *PATHS])
@pytest.mark.parametrize("scene", ["nobody"], indirect=True)
def test_the_empty_root_holds_without_the_others(scene: Scene, attempt: str) -> None:
    """As the parts above; it takes a privilege, so it is not there for an ordinary user."""
    assert scene.attempt(attempt, ("empty_root",)) in (f"errno {errno.ENOENT}", "no such module")
    assert not scene.received()


NO_WAY = f"errno {errno.EACCES}"
"""In its root, its master's /proc/PID/fdinfo, a carrier may not even look."""


def of_carrier(scene: Scene, attempt: str, parts: tuple[str, ...]) -> str:
    """What becomes of that attempt of a carrier's (tests/support/taken_over_carrier.py)."""
    ours, theirs = channel.pair()
    with ours, theirs:
        words = [sys.executable, "-I", "-S", taken_over_carrier.__file__, str(theirs.fileno())]
        words += [str(scene.identity.start), scene.identity.account, ",".join(parts), attempt, str(scene.folder)]
        subprocess.run(words, pass_fds=[theirs.fileno()], check=True)
        return ours.recv(100).decode()


@pytest.mark.parametrize("attempt", taken_over_carrier.ATTEMPTS)
def test_a_taken_over_carrier_reaches_nobody(scene: Scene, attempt: str) -> None:
    """Carriers receive what clients pass, and must send messages to sockets of whatever kind. No datagram gets through,
    but where nothing holds paths: without privilege, before Landlock's ABI 9.
    """
    unprivileged = scene.identity.account == "-"
    scene.received()
    answer = of_carrier(scene, attempt, ALL)
    if attempt == "sendmsg_path" and unprivileged and landlock.abi() < 9:
        assert answer == "done"
        assert scene.received()
    else:
        assert (
            answer
            == {
                "sendto": REFUSED,
                "connect": KILLED,
                "sendmsg": REFUSED if attempt.endswith("abstract") else NO_WAY,
            }[attempt.split("_")[0]]
        )
        assert not scene.received()
    assert of_carrier(scene, attempt, NONE) == "done"
    assert scene.received() == (not attempt.startswith("connect"))
    if not unprivileged and attempt.endswith("path"):
        assert of_carrier(scene, attempt, ("empty_root",)) == NO_WAY
        assert not scene.received()


def test_a_live_relay_is_in_it(folder: Path) -> None:
    """The relays of a running daemon are filtered, limited and without privilege, and carry traffic so."""
    config = folder / "sockguard.toml"
    config.write_text(f"""
[daemon]
control = ""
relays = 1
[proxy.echo]
listen = "{folder}/echo"
backend = "{folder}/private"
allow = [{{ users = [{os.geteuid()}] }}]
""")
    with serving(folder / "private"), running(config, folder / "echo") as daemon:
        assert exchange(folder / "echo") == "ping"
        (relay,) = daemon.pids()["sockguard-relay"]
        held = status(relay)
        assert (held["Seccomp"], held["Seccomp_filters"], held["NoNewPrivs"]) == ("2", "1", "1")
        shown = Path(f"/proc/{relay}/limits").read_text()
        for name in ("processes", "file size", "core file size"):
            assert re.search(rf"^Max {name} +0 +0 ", shown, re.M)
