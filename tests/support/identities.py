"""Identities to meet the daemon with: accounts made for a test, clients that change what they are, verdicts on them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sockguard.privsep import rights
from tests.support.clients import as_user, exchange
from tests.support.daemon import EVENT_SECONDS, START_SECONDS, Daemon, Event, running
from tests.support.services import serving

PYTHON = os.path.realpath("/usr/bin/python3")
"""The system's: the interpreter that the tests run on may lie where only root can go."""

_VERDICTS = ("connection_admitted", "connection_denied")

_CLIENT = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1])) if len(sys.argv) > 1 else socket.socket(socket.AF_UNIX)
sock.settimeout(15)
print("ready", flush=True)
while line := os.read(0, 4096).decode():
    word, *given = line.split()
    answer = "done"
    if word == "connect":
        sock.connect(given[0])
    elif word == "ask":
        try:
            sock.sendall(b"ping")
            answer = sock.recv(100).decode() or "closed"
        except (BrokenPipeError, ConnectionResetError):
            answer = "closed"
    elif word == "effective":
        os.seteuid(int(given[0]))
    elif word == "become":
        os.seteuid(os.getuid())
        os.setgroups([])
        os.setresgid(*[int(given[1])] * 3)
        os.setresuid(*[int(given[0])] * 3)
    elif word == "exec":
        os.set_inheritable(sock.fileno(), True)
        os.execv(given[0], [given[0], *sys.orig_argv[1:5], str(sock.fileno())])
    print(answer, flush=True)
"""


class Client:
    """A client process that does one thing after another: ``connect PATH``, ``ask``, ``effective UID``, ``become UID
    GID``, ``exec PROGRAM`` (goes on in that copy of the interpreter, with its connection).

    before: a command line that ends in running what follows it, such as ``unshare -U``.
    """

    def __init__(
        self,
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        *,
        program: str | Path = PYTHON,
        before: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*before, str(program), "-I", "-S", "-c", _CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=groups,
        )
        self.pid = self.process.pid
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, *words: object) -> str:
        """Have it do that, and wait for its answer: "done", or what the service said, or "closed"."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self._answer()

    def meet(self, path: Path) -> str:
        """Connect and ask, on a new connection."""
        assert self.do("connect", path) == "done"
        return self.do("ask")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # end of its input: it ends


@dataclass(frozen=True, slots=True)
class Guard:
    """A daemon with an echo service behind each of its proxies; a proxy listens on the path of its name."""

    daemon: Daemon
    folder: Path

    def path(self, proxy: str) -> Path:
        return self.folder / proxy

    def now(self) -> int:
        """The number of the last event so far."""
        return len(self.daemon.lines)

    def verdict(self, proxy: str, after: int) -> Event:
        """The first verdict on that proxy whose number is larger than ``after``."""
        end = time.monotonic() + EVENT_SECONDS
        while time.monotonic() < end:
            for event in self.daemon.events():
                if event["seq"] > after and event["event"] in _VERDICTS and event["proxy"] == proxy:
                    return event
            time.sleep(0.01)
        raise AssertionError(f"no verdict of {proxy}; {self.daemon.events()}\n{self.daemon.stderr()}")

    def admits(self, proxy: str, ask: Callable[[Path], str], *, rule: str | None, **fields: object) -> Event:
        """``ask`` the proxy's path: the service must answer, and the event must say so with that rule and fields."""
        return self._check("connection_admitted", "ping", proxy, ask, rule=rule, **fields)

    def denies(self, proxy: str, ask: Callable[[Path], str], *, rule: str | None = None, **fields: object) -> Event:
        """``ask`` the proxy's path: it must be closed at once, and the event must give that rule and these fields."""
        return self._check("connection_denied", "closed", proxy, ask, rule=rule, **fields)

    def _check(self, name: str, answer: str, proxy: str, ask: Callable[[Path], str], **fields: object) -> Event:
        after = self.now()
        assert ask(self.path(proxy)) == answer
        event = self.verdict(proxy, after)
        if name == "connection_denied":
            fields = {"cause": "rules", "reason": "no allow rule matches", **fields}
        assert {key: event.get(key) for key in ("event", *fields)} == {"event": name, **fields}
        return event

    def control(self) -> int:
        """The pid of the control process."""
        (pid,) = self.daemon.pids()["sockguard-ctl"]
        return pid


def someone(
    uid: int, gid: int | None = None, groups: Sequence[int] = (), *, real_uid: int | None = None
) -> Callable[[Path], str]:
    """For Guard: ask as a process of that identity; its gid is the uid's number if none is given."""
    return lambda path: as_user(lambda: exchange(path, b"ping"), uid, gid, groups, real_uid=real_uid)


@contextlib.contextmanager
def guarding(folder: Path, config: str, **popen: Any) -> Iterator[Guard]:
    """The daemon with that file; ``[proxy.NAME]`` tables get listen and backend here and need only their rules."""
    lines = []
    proxies = []
    for line in config.splitlines():
        lines.append(line)
        if line.startswith("[proxy.") and line.count(".") == 1:
            proxies.append(line.strip("[]").partition(".")[2])
            lines.append(f'listen = "{folder}/{proxies[-1]}"\nbackend = "{folder}/private"')
    file = folder / "sockguard.toml"
    file.write_text("\n".join(lines))
    with (
        serving(folder / "private"),
        running(file, *[folder / name for name in proxies], **popen) as daemon,
    ):
        wait_started(daemon)
        yield Guard(daemon, folder)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """What the fixture ``folder`` is, for a whole module."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def state(pid: int) -> str:
    """The state of a process by proc_pid_stat(5): "S", "T" stopped, "Z" ended; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(holds: Callable[[], bool], what: str, seconds: float = EVENT_SECONDS) -> None:
    """Wait for a condition that nothing tells of."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.01)


def wait_started(daemon: Daemon) -> None:
    """Until all processes are there and have given up what they do not need; sockets are listened on before that."""
    end = time.monotonic() + START_SECONDS
    while '"guarding"' not in daemon.stderr():
        if daemon.process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"the daemon did not start ({daemon.process.poll()}): {daemon.stderr()}")
        time.sleep(0.01)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Meanwhile that process does nothing: what happens here happens before it looks."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(pid) == "T", f"{pid} stops")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ── accounts ──


@dataclass(frozen=True, slots=True)
class Person:
    """A user made for a test."""

    name: str
    uid: int
    gid: int


def run_tool(*words: str, as_person: Person | None = None) -> None:
    """Run a command that has to work; again while another process holds the lock of the account files."""
    ids: dict[str, Any] = {}
    if as_person:
        ids = {"user": as_person.uid, "group": as_person.gid, "extra_groups": []}
    end = time.monotonic() + EVENT_SECONDS
    while True:
        done = subprocess.run(words, capture_output=True, text=True, check=False, **ids)
        if done.returncode == 0:
            return
        if "lock" not in done.stderr or time.monotonic() > end:
            raise AssertionError(f"{' '.join(words)}: {done.stderr}")
        time.sleep(0.1)


@contextlib.contextmanager
def account(name: str, *options: str) -> Iterator[Person]:
    """A user by useradd(8), removed afterwards. Its primary group is one of its own name unless the options say."""
    run_tool("useradd", "--no-create-home", "--shell", "/usr/sbin/nologin", *options, name)
    try:
        entry = pwd.getpwnam(name)
        yield Person(name, entry.pw_uid, entry.pw_gid)
    finally:
        run_tool("userdel", "--force", name)  # --force: a daemon of another test may run under it


@contextlib.contextmanager
def group(name: str) -> Iterator[int]:
    """A group by groupadd(8), removed afterwards. Gives its gid."""
    run_tool("groupadd", name)
    try:
        yield grp.getgrnam(name).gr_gid
    finally:
        run_tool("groupdel", name)


@contextlib.contextmanager
def account_if_missing(name: str) -> Iterator[Person]:
    """A system user with a group of its own; one that is there already is used, and left."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        with account(name, "--system", "--user-group") as made:
            yield made
    else:
        yield Person(name, entry.pw_uid, entry.pw_gid)


# ── what /proc says ──


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status, proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> dict[str, set[int]]:
    """The five sets of a process: CapInh, CapPrm, CapEff, CapBnd, CapAmb; numbers of linux/capability.h."""
    sets = {key: int(value, 16) for key, value in status(pid).items() if key.startswith("Cap")}
    return {key: {number for number in range(64) if bits >> number & 1} for key, bits in sets.items()}


_PTRACE_ATTACH = 16  # linux/ptrace.h
REFUSED = "mem: EACCES, fd/0: EACCES, environ: EACCES, ptrace: EPERM"
"""What reach_into gives for a process that is well protected."""


def reach_into(pid: int, uid: int, gid: int) -> str:
    """What a process without capabilities, of that identity, gets that tries to open the memory and descriptors of
    process ``pid``, and to attach to it."""

    def reach() -> str:
        rights.keep_capabilities(())
        answers = []
        for what in ("mem", "fd/0", "environ"):
            try:
                os.close(os.open(f"/proc/{pid}/{what}", os.O_RDONLY))
                answers.append(f"{what}: open")
            except OSError as error:
                answers.append(f"{what}: {errno.errorcode[error.errno or 0]}")
        libc = ctypes.CDLL(None, use_errno=True)
        attached = libc.ptrace(_PTRACE_ATTACH, pid, None, None) == 0
        answers.append("ptrace: attached" if attached else f"ptrace: {errno.errorcode[ctypes.get_errno()]}")
        return ", ".join(answers)

    return as_user(reach, uid, gid)
