"""Starts that must fail: all mistakes are told, with place and remedy; nothing is bound, nothing else is touched."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_ordinary_user import run_as
from tests.support.clients import exchange
from tests.support.daemon import REPO, Daemon, running
from tests.support.identities import account_if_missing, state, wait_until
from tests.support.services import serving

ALLOW = '[[proxy.{0}.allow]]\nusers = ["*"]\n'


def proxy(name: str, listen: str | Path, backend: str | Path, more: str = "") -> str:
    return f'[proxy.{name}]\nlisten = "{listen}"\nbackend = "{backend}"\n{more}\n{ALLOW.format(name)}'


def write(folder: Path, text: str) -> Path:
    file = folder / "sockguard.toml"
    file.write_text(text)
    return file


def failing(file: Path, **popen: Any) -> tuple[int, list[str]]:
    """Exit status and lines of standard error of a start that fails; none of its processes may be left. Those that
    have the last copies of what was opened exit of themselves, and nobody waits for them.
    """
    command = [sys.executable, "-m", "sockguard", "--config", str(file)]
    with subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **popen
    ) as process:
        out, err = process.communicate(timeout=60)
    assert out == ""
    wait_until(lambda: left_of(process.pid) == [], "none of its processes is left")
    return process.returncode, err.splitlines()


def left_of(session: int) -> list[int]:
    """The processes of that session that have not ended; whoever inherited them may be slow to reap those that have."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and state(pid) not in ("", "Z"):
                found.append(pid)
    return found


def test_every_fault_of_a_file_in_one_go(folder: Path) -> None:
    """Each mistake stands with its line and key, all of them in one go; exit status 2, and nothing was bound."""
    private = folder / "private"
    rule = "[[proxy.{0}.allow]]\nusers = [0]\n"
    text = f"""[daemon]
relay = 2
[proxy.key]
listen = "{folder}/key"
backend = "{private}"
[[proxy.key.allow]]
usres = ["root"]
[proxy.types]
listen = 7
backend = "{private}"
mode = "0666"
max_connections = -1
connect_timeout = 5
[[proxy.types.allow]]
users = "root"
[proxy.who]
listen = "{folder}/who"
backend = "{private}"
[[proxy.who.allow]]
users = ["nobody-of-that-name"]
groups = ["no-group-of-that-name"]
[proxy.rules]
listen = "{folder}/rules"
backend = "{private}"
[proxy.empty]
listen = "{folder}/empty"
backend = "{private}"
[[proxy.empty.allow]]
[proxy.twice]
listen = "{folder}/empty"
backend = "{private}"
{rule.format("twice")}[proxy.itself]
listen = "{folder}/itself"
backend = "{folder}/itself"
{rule.format("itself")}[proxy.long]
listen = "{folder}/{"x" * 100}"
backend = "{private}"
{rule.format("long")}[proxy.later]
listen = "{folder}/later"
backend = "{private}"
protocol = "vsomeip"
{rule.format("later")}[proxy.good]
listen = "{folder}/good"
backend = "{private}"
{rule.format("good")}"""
    file = write(folder, text)
    status, lines = failing(file)
    assert status == 2
    expected = [
        (2, "daemon.relay", "unknown key; did you mean 'relays'?"),
        (7, "proxy.key.allow[0].usres", "unknown key; did you mean 'users'?"),
        (9, "proxy.types.listen", "must be a string"),
        (11, "proxy.types.mode", "must be an integer"),
        (12, "proxy.types.max_connections", "must be at least 1"),
        (13, "proxy.types.connect_timeout", "must be a string"),
        (15, "proxy.types.allow[0].users", "must be an array"),
        (20, "proxy.who.allow[0].users[0]", "unknown user 'nobody-of-that-name'"),
        (21, "proxy.who.allow[0].groups[0]", "unknown group 'no-group-of-that-name'"),
        (22, "proxy.rules", "no rules"),
        (28, "proxy.empty.allow[0]", "a rule needs at least one of"),
        (30, "proxy.twice.listen", "is already the listening socket of proxy.empty"),
        (36, "proxy.itself.backend", "is the listening socket of this proxy"),
        (40, "proxy.long.listen", "longer than the 107 bytes"),
        (47, "proxy.later.protocol", "not available in this version"),
    ]
    assert len(lines) == len(expected)
    for line, (number, key, words) in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}:{number}: {key}: ")
        assert words in line
    assert os.listdir(folder) == ["sockguard.toml"]


@pytest.mark.parametrize("text", ["[proxy", "x = 1\nx = 2", "\xff"])
def test_broken_toml(folder: Path, text: str) -> None:
    """What is no TOML is said with its line."""
    file = folder / "sockguard.toml"
    file.write_bytes(text.encode("latin-1"))
    status, lines = failing(file)
    assert status == 2
    assert re.match(rf"{re.escape(str(file))}:\d: not valid (TOML|UTF-8)", lines[0])


def test_no_file(folder: Path) -> None:
    """A missing file, a missing folder and a folder instead of a file are the file's faults, not a traceback."""
    (folder / "dir").mkdir()
    for file, words in (
        (folder / "none.toml", "no such file"),
        (folder / "none" / "x.toml", "no such file"),
        (folder / "dir", "is a folder"),
    ):
        status, lines = failing(file)
        assert status == 2
        assert [line.startswith(f"{file}: {words}") for line in lines] == [True]


@pytest.mark.root
def test_a_file_that_others_can_write(folder: Path) -> None:
    """Run as root, a file (or folder) that others could change is refused, with the command that mends it."""
    file = write(folder, proxy("p", folder / "p", folder / "private"))
    file.chmod(0o646)
    assert failing(file) == (2, [f"{file}: can be written by everyone; run: chmod go-w"])
    file.chmod(0o644)
    folder.chmod(0o777)
    status, lines = failing(file)
    assert (status, lines) == (2, [f"{folder}: the folder can be written by everyone; run: chmod go-w"])
    folder.chmod(0o755)
    os.chown(file, 4242, 0)
    status, lines = failing(file)
    assert status == 2
    assert "belongs to uid 4242" in lines[0]


def test_standard_output_is_closed(folder: Path) -> None:
    """Audit events would go to whatever got its number, or nowhere: nobody is guarded so."""
    file = write(folder, proxy("p", folder / "public", folder / "private"))
    status, said = failing(file, preexec_fn=lambda: os.close(1))
    assert status == 1
    assert said == ["sockguard: standard output is closed: audit events have nowhere to go"]
    assert not (folder / "public").exists()


def test_standard_input_and_error_are_closed(folder: Path) -> None:
    """Their numbers are given to nothing that somebody could read from or write to by mistake."""

    def close() -> None:
        os.close(0)
        os.close(2)

    file = write(folder, proxy("p", folder / "public", folder / "private"))
    with serving(folder / "private"), running(file, folder / "public", preexec_fn=close) as daemon:
        looked_at = daemon.pids() if os.geteuid() == 0 else {}  # others may not look: none of them is dumpable
        for name, pids in looked_at.items():
            for number in (0, 2):
                assert os.readlink(f"/proc/{pids[0]}/fd/{number}") == "/dev/null", name
        assert exchange(folder / "public", b"guarded\n") == "guarded"


def test_every_socket_that_cannot_be_had_in_one_go(folder: Path) -> None:
    """Each place that is taken is told; whoever has it keeps it and goes on serving; no good one stays bound."""
    abstract = f"sg-{uuid.uuid4()}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(folder / "live"))
        full = stack.enter_context(socket.socket(socket.AF_UNIX))
        full.bind(str(folder / "full"))
        full.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(folder / "full"))
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(folder / "datagrams"))
        stale = stack.enter_context(socket.socket(socket.AF_UNIX))
        stale.bind(str(folder / "stale"))
        stale.close()
        (folder / "link").symlink_to(folder / "stale")
        (folder / "file").write_text("precious")
        taken = stack.enter_context(socket.socket(socket.AF_UNIX))
        taken.bind("\0" + abstract)
        taken.listen()
        there = {entry: (folder / entry).lstat() for entry in os.listdir(folder)}
        wanted = {
            "good": ("", ""),
            "live": ("another process listens there", "stop it first"),
            "full": ("another process listens there", "stop it first"),
            "datagrams": ("another process listens there", "choose another path"),
            "link": ("a symbolic link", "move it away"),
            "file": ("no socket", "move it away"),
            "none/public": (f"the folder {folder}/none does not exist", "make it"),
        }
        proxies = {name.replace("/", "-"): str(folder / name) for name in wanted}
        proxies |= {"abstract": f"@{abstract}", "passed": "fd:web", "also-good": str(folder / "also-good")}
        text = "".join(proxy(name, listen, folder / "private") for name, listen in proxies.items())
        status, lines = failing(write(folder, text))
        assert status == 1
        said = "\n".join(lines)
        for name, words in wanted.items():
            line = next(
                (line for line in lines if f"proxy.{name.replace('/', '-')}.listen: {folder}/{name}: " in line), ""
            )
            assert all(word in line for word in words), said
            assert bool(line) == bool(words[0])
        assert f"proxy.abstract.listen: @{abstract}: another process listens there" in said
        assert "proxy.passed.listen: fd:web: no such socket was passed by systemd (passed: none)" in said
        assert len(lines) == 8
        assert all(line.startswith("sockguard: proxy.") for line in lines)
        there["sockguard.toml"] = (folder / "sockguard.toml").lstat()
        assert {entry: (folder / entry).lstat().st_ino for entry in os.listdir(folder)} == {
            entry: found.st_ino for entry, found in there.items()
        }
        assert exchange(folder / "live", b"still\n") == "still"
        assert (folder / "file").read_text() == "precious"


def test_a_stale_socket_gives_way_and_the_path_goes_at_the_end(folder: Path) -> None:
    """What a dead process left is replaced; an ordinary end removes the path."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "public"))
    file = write(folder, proxy("p", folder / "public", folder / "private"))
    with serving(folder / "private"), running(file, folder / "public"):
        assert exchange(folder / "public", b"new\n") == "new"
    assert not (folder / "public").exists()


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_owner_and_group(folder: Path, umask: int) -> None:
    """The path has the mode, owner and group of the file, whatever the umask; without any, the default mode."""
    text = proxy("a", folder / "a", folder / "private", 'mode = 0o620\nowner = 4242\ngroup = "daemon"')
    text += proxy("b", folder / "b", folder / "private")
    with running(write(folder, text), folder / "a", folder / "b", umask=umask):
        a, b = (folder / "a").lstat(), (folder / "b").lstat()
        assert (stat.S_IMODE(a.st_mode), a.st_uid, a.st_gid) == (0o620, 4242, 1)
        assert (stat.S_IMODE(b.st_mode), b.st_uid, b.st_gid) == (0o666, os.geteuid(), os.getegid())


def receive_until(sock: socket.socket, wanted: Callable[[str], bool]) -> str:
    sock.settimeout(20)
    while not wanted(text := sock.recv(4096).decode()):
        pass
    return text


def by_systemd(folder: Path, passed: socket.socket, name: str) -> dict[str, Any]:
    """How to start a process to which systemd passes that socket, and which may notify it."""
    wrapper = folder / "systemd"  # descriptor 3, and the pid of the very process that then runs the daemon
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.dup2({passed.fileno()}, 3)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    environment = {
        **os.environ,
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": name,
        "NOTIFY_SOCKET": str(folder / "notify"),
    }
    return {"executable": str(wrapper), "env": environment, "pass_fds": [passed.fileno()]}


def test_a_start_that_fails_leaves_what_systemd_has_kept(folder: Path) -> None:
    """The socket of the run before still listens, so its file stays for the next start; that of another proxy goes."""
    with socket.socket(socket.AF_UNIX) as kept:
        kept.bind(str(folder / "kept"))
        kept.listen()
        (folder / "kept").chmod(0o666)
        text = "".join(proxy(name, folder / name, folder / "private") for name in ("kept", "new"))
        file = write(folder, text + proxy("bad", folder / "missing" / "public", folder / "private"))
        status, said = failing(file, **by_systemd(folder, kept, "sockguard/kept"))
        assert status == 1
        assert "the folder" in said[-1]
        assert (folder / "kept").exists()
        assert not (folder / "new").exists()


def test_systemds_socket_and_notifications(folder: Path) -> None:
    """A passed socket is served, its path left alone; READY=1 comes when it can be, STATUS=, STOPPING=1 at the end."""
    with contextlib.ExitStack() as stack:
        passed = stack.enter_context(socket.socket(socket.AF_UNIX))
        passed.bind(str(folder / "public"))
        passed.listen()
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o666)
        stack.enter_context(serving(folder / "private"))
        file = write(folder, proxy("p", "fd:web", folder / "private"))
        daemon = Daemon(file, **by_systemd(folder, passed, "web"))
        try:
            ready = receive_until(notify, lambda text: "READY=1" in text)
            assert ready.splitlines() == ["READY=1", "STATUS=Guarding 1 sockets"]
            assert exchange(folder / "public", b"adopted\n") == "adopted"
        finally:
            status = daemon.stop()
        assert status == 0, daemon.stderr()
        assert "STOPPING=1" in receive_until(notify, lambda text: "STOPPING=1" in text)
        assert (folder / "public").exists()  # systemd's to remove


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, 54244])
def test_only_the_main_process_notifies(folder: Path, uid: int) -> None:
    """With a monitor or without: systemd hears nobody else (NotifyAccess=main). It is told of a reload, and is handed
    what was bound; its watchdog is fed.
    """
    with contextlib.ExitStack() as stack:
        for name in ("sockguard", "sockguard-relay"):
            stack.enter_context(account_if_missing(name))
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o666)
        notify.settimeout(20)
        stack.enter_context(serving(folder / "private"))
        file = write(folder, proxy("p", folder / "public", folder / "private"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "300000"}
        os.chown(folder, uid, uid)
        os.chown(file, uid, uid)
        daemon = Daemon(file, env=environment, **(run_as(folder, uid, uid) if uid else {}))
        senders, heard = set(), []

        def hear_one() -> None:
            data, ancillary, _, _ = notify.recvmsg(4096, 1024)
            for _, kind, content in ancillary:
                if kind == socket.SCM_RIGHTS:
                    os.close(int.from_bytes(content, sys.byteorder))
                else:
                    senders.add(int.from_bytes(content[:4], sys.byteorder))
            heard.append(data.decode())

        def hear(wanted: str) -> None:
            while wanted not in heard[-1:]:
                hear_one()

        try:
            hear("FDSTORE=1\nFDNAME=sockguard/p")
            hear("READY=1\nSTATUS=Guarding 1 sockets")
            hear("WATCHDOG=1")
            heard.clear()
            hear("WATCHDOG=1")
            daemon.process.send_signal(signal.SIGHUP)
            while not heard[-1].startswith("RELOADING=1\n"):
                hear_one()
            hear("READY=1\nSTATUS=Guarding 1 sockets")
        finally:
            status = daemon.stop()
        assert status == 0, daemon.stderr()
        hear("STOPPING=1\nSTATUS=Waiting for connections to finish")
        assert senders == {daemon.process.pid}
