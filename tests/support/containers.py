"""dockerd and podman on sockets of their own, with one small image, and clients of them.

Each engine runs in a mount and a process namespace of its own: what it keeps is on a tmpfs that ends with it, and when
its first process is killed the kernel ends everything that it has started and undoes its mounts. Nothing of the
machine's own engines is read or changed, but for empty cgroup folders.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.servers import control_ids, environment

Kind = Literal["dockerd", "podman"]
KINDS: tuple[Kind, ...] = ("dockerd", "podman")
IMAGE = "bb:1"
START_SECONDS = 30.0
CLIENT_SECONDS = 60.0

_APPLETS = ("sh", "cat", "dd", "echo", "env", "false", "head", "id", "kill", "ls", "md5sum", "printf", "seq", "sleep",
            "stty", "test", "touch", "true", "wc")  # fmt: skip

# Runs in the new namespaces. What an engine keeps outside the folders that it is told (containerd's shims in /run,
# podman's own database) comes to lie on a tmpfs as well.
_DOCKERD = """
set -eu
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
exec dockerd --data-root=/var/lib/docker --exec-root=/run/docker --pidfile=/run/docker.pid --storage-driver=vfs \
    --iptables=false --ip6tables=false --ip-forward=false --bridge=none --group="$2" --host="unix://$1"
"""
# podman's wait may spin (its issue 18150): one processor at the most, behind everybody else, and not for ever.
_PODMAN = """
set -eu
umask 007
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /etc/containers
cat >/etc/containers/containers.conf <<END
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
END
cat >/etc/containers/storage.conf <<END
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
export GOMAXPROCS=1
exec nice prlimit --cpu=600 podman system service --time=0 "unix://$1"
"""
_SCRIPTS: dict[Kind, str] = {"dockerd": _DOCKERD, "podman": _PODMAN}


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine. ``socket``: its own, which root and control's group may use."""

    kind: Kind
    socket: Path
    log: Path

    def docker(self, *words: str, data: bytes = b"") -> bytes:
        """Run the docker CLI as root, past any guard. It has to work; gives its standard output."""
        done = docker(self.socket, *words, data=data)
        assert done.returncode == 0, (words, done.stderr, self.log.read_text(errors="replace")[-2000:])
        return done.stdout

    def containers(self) -> set[str]:
        """The names of all containers."""
        return {name.lstrip("/") for one in self.get("/containers/json?all=1") for name in one["Names"]}

    def get(self, target: str) -> Any:
        """What the engine itself answers to a GET: JSON."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(CLIENT_SECONDS)
            sock.connect(str(self.socket))
            sock.sendall(f"GET {target} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            answer = b"".join(iter(lambda: sock.recv(1 << 20), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], answer
        return json.loads(body)


def docker_environment(path: Path) -> dict[str, str]:
    """For the docker CLI and the Python SDK: that socket, the legacy builder, and no settings of anybody's."""
    here = f"{Path(shutil.which('docker') or '/usr/bin/docker').parent}:"
    return {
        **environment(),
        "PATH": here + environment()["PATH"],
        "DOCKER_HOST": f"unix://{path}",
        "DOCKER_BUILDKIT": "0",
    }


def docker(
    path: Path, *words: str, uid: int | None = None, data: bytes = b"", seconds: float = CLIENT_SECONDS
) -> subprocess.CompletedProcess[bytes]:
    """Run the docker CLI on that socket to its end. It is killed when it takes longer: it catches SIGTERM."""
    return subprocess.run(
        ["docker", *words],
        input=data,
        capture_output=True,
        timeout=seconds,
        check=False,
        env=docker_environment(path),
        cwd="/",
        **_ids(uid),
    )


def docker_started(path: Path, *words: str, uid: int | None = None) -> subprocess.Popen[bytes]:
    """Start the docker CLI on that socket, with pipes."""
    return subprocess.Popen(
        ["docker", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=docker_environment(path),
        cwd="/",
        bufsize=0,
        **_ids(uid),
    )


def _ids(uid: int | None) -> dict[str, Any]:
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


def image_tar() -> bytes:
    """A root file system of one program: busybox-static."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return made.getvalue()


@contextlib.contextmanager
def engine(kind: Kind, path: Path) -> Iterator[Engine]:
    """That engine on ``path``, with IMAGE, in the usual private folder; see servers.private_folder."""
    log = path.parent / f"{kind}.log"
    group = control_ids()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", _SCRIPTS[kind], "sh", str(path), str(group)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), cwd="/",
        )  # fmt: skip
    made = Engine(kind, path, log)
    try:
        _wait_ready(process, made)
        os.chown(path, 0, group)
        path.chmod(0o660)
        made.docker("import", "-", IMAGE, data=image_tar())
        yield made
        if left := made.docker("ps", "--all", "--quiet", "--no-trunc").decode().split():
            made.docker("rm", "--force", *left)  # so that it removes their cgroups
    finally:
        # The first process of its namespace: the kernel ends all the others with it, and unshare ends after them.
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], made: Engine) -> None:
    end = time.monotonic() + START_SECONDS
    while not _answers(made.socket):
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"{made.kind} does not answer: {made.log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.02)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        if probe.connect_ex(str(path)) != 0:
            return False
        with contextlib.suppress(OSError):
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return probe.recv(64).startswith(b"HTTP/1.0 200")
        return False
