"""A really booted systemd: systemd-nspawn over an overlay of this machine's own root, or of another system's.

What is changed in there is in a tmpfs and gone afterwards. Nothing of that system's own units runs: the overlay's
/etc/systemd/system is emptied. On a machine whose PID 1 is not systemd the container gets cgroups of its own by hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.daemon import REPO

BOOT_SECONDS = 40.0
COMMAND_SECONDS = 60.0
_CGROUPS = Path("/sys/fs/cgroup")
_HIDDEN = ("/tmp/", "/run/", "/dev/")  # the container has its own


@dataclass(frozen=True)
class Container:
    """A running container. ``leader``: its PID 1, as this machine numbers it."""

    leader: int

    def run(self, *command: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        """A command as the container's root, in its namespaces. A status other than 0 fails, unless not ``check``."""
        done = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def path(self, path: str) -> Path:
        """A path in the container, reached from outside."""
        return Path(f"/proc/{self.leader}/root{path}")

    def write(self, path: str, text: str) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _nothing(_: Path) -> None:
    pass


def _install_checkout(root: Path) -> None:
    """sockguard as the tests themselves run it: out of the checkout, by the Python of this process."""
    program = root / "usr/bin/sockguard"
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPO} exec {sys.executable} -P -m sockguard "$@"\n')
    program.chmod(0o755)


@dataclass(frozen=True)
class System:
    """What a container is made of.

    files        gives the root of its files, which are not written to
    install      puts /usr/bin/sockguard into the overlay of them
    environment  of systemd-nspawn
    """

    files: Callable[[], Path]
    install: Callable[[Path], None]
    environment: Mapping[str, str] = field(default_factory=dict)


OWN: Final = System(lambda: Path("/"), _install_checkout)
"""This machine's."""


@contextlib.contextmanager
def booted(
    prepare: Callable[[Path], None] = _nothing, target: str = "basic.target", system: System = OWN
) -> Iterator[Container]:
    """A container that has reached ``target``, with sockguard and its units installed as a package would.

    prepare: called with the root of its files before it boots.
    """
    files = system.files()
    folder = Path(tempfile.mkdtemp(prefix="sg-nspawn-"))
    try:
        with _overlay(folder, files) as root, _own_cgroups(folder.name) as cgroups:
            _install(root)
            system.install(root)
            prepare(root)
            with _nspawn(root, folder, cgroups, target, system.environment) as leader:
                yield Container(leader)
    finally:
        folder.rmdir()  # nothing recursive here: an overlay that could not be unmounted shows this machine's own files


@contextlib.contextmanager
def _overlay(folder: Path, files: Path) -> Iterator[Path]:
    _run("mount", "-t", "tmpfs", "sg-nspawn", str(folder))
    try:
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        root = folder / "root"
        layers = f"lowerdir={files},upperdir={folder}/upper,workdir={folder}/work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, str(root))
        try:
            yield root
        finally:
            _run("umount", "--recursive", str(root))
    finally:
        _run("umount", str(folder))


def _install(root: Path) -> None:
    units = root / "etc/systemd/system"
    shutil.rmtree(units)
    units.mkdir()
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")  # this machine's own: a clash of journals
    for unit in ("sockguard.service", "sockguard-example.socket"):
        shutil.copy(REPO / "systemd" / unit, units)
    _run("systemd-sysusers", f"--root={root}", str(REPO / "systemd/sockguard.sysusers"))


@contextlib.contextmanager
def _own_cgroups(name: str) -> Iterator[list[Path]]:
    """A new cgroup in each hierarchy that systemd uses, so that it does not take this machine's root ones for its own.

    Where this machine's PID 1 is systemd, nspawn asks that one instead.
    """
    made: list[Path] = []
    try:
        if not Path("/run/systemd/system").is_dir():
            for hierarchy in (_CGROUPS, _CGROUPS / "unified", _CGROUPS / "systemd"):
                if (hierarchy / "cgroup.procs").exists():
                    made.append(hierarchy / name)
                    made[-1].mkdir()
        yield made
    finally:
        for cgroup in made:
            _remove_cgroups(cgroup)


def _remove_cgroups(top: Path) -> None:
    """Remove a cgroup with all below. One whose last process has ended is busy for a moment longer."""
    end = time.monotonic() + BOOT_SECONDS
    for found, _, _ in os.walk(top, topdown=False):
        while True:
            try:
                os.rmdir(found)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
                time.sleep(0.02)


@contextlib.contextmanager
def _nspawn(
    root: Path, folder: Path, cgroups: list[Path], target: str, environment: Mapping[str, str]
) -> Iterator[int]:
    def enter() -> None:
        for cgroup in cgroups:
            (cgroup / "cgroup.procs").write_text("0")

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (folder / "console").open("wb") as console:
        notify.bind(str(folder / "notify"))
        process = subprocess.Popen(
            [
                *("systemd-nspawn", "--boot", f"--directory={root}", f"--machine=sockguard-test-{os.getpid()}"),
                # nspawn's own filter is older than these; what sockguard's unit does about them is to be seen.
                "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
                *("--register=no", "--notify-ready=yes", "--link-journal=no", "--console=pipe"),
                *(["--keep-unit"] if cgroups else []),
                *_binds(),
                f"systemd.unit={target}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={**os.environ, **environment, "NOTIFY_SOCKET": str(folder / "notify")},
            preexec_fn=enter,
            start_new_session=True,
        )
        try:
            try:
                leader = _wait_until_booted(process, notify)
                notify.settimeout(None)
                # Its STATUS= goes on. Unread it would fill the socket, and the container's PID 1 waits for room.
                reader = threading.Thread(target=_read_on, args=(notify,), daemon=True)
                reader.start()
                yield leader
            except AssertionError as error:
                error.add_note((folder / "console").read_text(errors="replace")[-4000:])
                raise
        finally:
            process.send_signal(signal.SIGTERM)  # nspawn: an orderly end; once more: at once
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait(15)
            notify.shutdown(socket.SHUT_RDWR)


def _read_on(sock: socket.socket) -> None:
    """Read until it is shut down."""
    while sock.recv(65536):
        pass


def _wait_until_booted(process: subprocess.Popen[bytes], notify: socket.socket) -> int:
    """systemd-nspawn(1), --notify-ready: says its leader's pid, and READY=1 when the container's PID 1 does."""
    notify.settimeout(0.5)
    end = time.monotonic() + BOOT_SECONDS
    leader, ready = 0, False
    while not (leader and ready):
        assert process.poll() is None, f"systemd-nspawn ended with {process.returncode}"
        assert time.monotonic() < end, f"the container did not boot within {BOOT_SECONDS:g} s"
        try:
            lines = notify.recv(65536).decode().splitlines()
        except TimeoutError:
            continue
        for line in lines:
            key, _, value = line.partition("=")
            leader = int(value) if key == "X_NSPAWN_LEADER_PID" else leader
            ready = ready or line == "READY=1"
    return leader


def _binds() -> list[str]:
    """What the container needs and does not see in the overlay: other file systems, and where it has its own."""
    root = os.stat("/").st_dev
    needed = sorted({str(REPO), sys.prefix, sys.base_prefix})
    return [f"--bind-ro={path}" for path in needed if os.stat(path).st_dev != root or path.startswith(_HIDDEN)]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
