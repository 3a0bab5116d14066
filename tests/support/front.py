"""Programs that stand in a chain with sockguard, before it or behind it, at their defaults."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.support.dbus import dbus_daemon
from tests.support.servers import as_uid, ended, environment, serving_process

STOP_SECONDS: Final = 30.0

_NGINX: Final = Path("/etc/nginx/nginx.conf")
_PROXYD: Final = "/usr/lib/systemd/systemd-socket-proxyd"

_HAPROXY: Final = """
defaults
    mode tcp
    timeout connect 60s
    timeout client 60s
    timeout server 60s
    {options}

listen chain
    bind unix@{path} mode 666
    server next unix@{backend}
"""


@contextlib.contextmanager
def nginx(path: Path, server: str) -> Iterator[None]:
    """nginx on ``path``, set up as Debian does, `sendfile on` among it. server: what stands in its server block."""
    config = path.with_suffix(".conf")
    config.write_text(_nginx_file(path, server))
    command = ["nginx", "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
    with serving_process(command, path) as process:
        try:
            yield
        finally:  # its workers would stay if it were killed
            process.terminate()
            process.wait(STOP_SECONDS)


def _nginx_file(path: Path, server: str) -> str:
    """The installed file, with our server for the sites, and places of its own for what it writes."""
    text = _NGINX.read_text()
    for line, replacement in (
        (r"pid .*;", f"pid {path}.pid;"),
        (r"error_log .*;", "error_log stderr;"),
        (r"access_log .*;", "access_log off;"),
        (r"include .*/conf\.d/.*;", ""),
        (r"include .*/sites-enabled/.*;", f"server {{\nlisten unix:{path};\n{server}\n}}"),
    ):
        text, count = re.subn(rf"^\s*{line}$", replacement, text, flags=re.M)
        assert count == 1, f"{_NGINX} has no line like {line}"
    assert "sendfile on;" in text
    return text


def haproxy(path: Path, backend: Path, *options: str) -> contextlib.AbstractContextManager[object]:
    """HAProxy on ``path``, which moves bytes to and from ``backend``. options: lines of its defaults section."""
    config = path.with_suffix(".cfg")
    config.write_text(_HAPROXY.format(path=path, backend=backend, options="\n    ".join(options)))
    return serving_process(["haproxy", "-db", "-f", str(config)], path)


@contextlib.contextmanager
def socket_proxyd(path: Path, backend: Path) -> Iterator[None]:
    """systemd-socket-proxyd, given a listener on ``path`` as systemd would (sd_listen_fds(3))."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        number = listener.fileno()
        process = subprocess.Popen(
            ["bash", "-c", f"export LISTEN_PID=$$; exec {_PROXYD} {shlex.quote(str(backend))} 3<&{number}"],
            pass_fds=[number],
            env={**environment(), "LISTEN_FDS": "1"},
            cwd="/",
        )
    with ended(process):
        yield


@contextlib.contextmanager
def pipewire_pulse(private: Path, uid: int) -> Iterator[Path]:
    """PipeWire's PulseAudio server with all that it needs, run by that user, whose folder ``private`` is. Gives its
    socket. There is no sound card: what is played goes to the null sink that it makes then."""
    with ExitStack() as made:
        bus = made.enter_context(dbus_daemon(private / "bus", uid))
        variables = [f"XDG_RUNTIME_DIR={private}", f"HOME={private}", f"DBUS_SESSION_BUS_ADDRESS={bus.address}"]
        session = [*as_uid(uid), "env", *variables]
        made.enter_context(serving_process([*session, "pipewire"], private / "pipewire-0"))
        log = made.enter_context((private / "log").open("ab"))
        manager = subprocess.Popen([*session, "wireplumber"], stderr=log, env=environment(), cwd="/")
        made.enter_context(ended(manager))
        path = private / "pulse" / "native"
        path.parent.mkdir()
        os.chown(path.parent, uid, -1)
        made.enter_context(serving_process([*session, "pipewire-pulse"], path))
        path.parent.chmod(0o711)
        yield path
