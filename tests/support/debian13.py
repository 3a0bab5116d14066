"""Debian 13 of its own packages, Python among them, for systemd-nspawn to boot: made once, kept in the checkout.

`make clean` removes it; then the next run makes it of the packages of that day. Needs root and debootstrap.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.daemon import REPO
from tests.support.nspawn import System

_FOLDER: Final = REPO / ".debian-13"
_SECONDS: Final = 900.0  # to make it, over a slow network
_PROGRAMS: Final = ("dbus", "dbus-user-session", "libpam-systemd", "polkitd", "procps", "socat", "systemd-container")
_SYSTEM: Final = ("systemd", "systemd-sysv", "systemd-timesyncd", *_PROGRAMS)
_LIBRARIES: Final = ("trio", "tomli", "structlog", "pydantic", "h11", "prometheus-client")  # as README.md has it
_PYTHON: Final = ("python3-venv", "python3-setuptools", *(f"python3-{name}" for name in _LIBRARIES))
_DEBOOTSTRAP: Final = ("debootstrap", "--variant=minbase", f"--include={','.join((*_SYSTEM, *_PYTHON))}", "trixie")
_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "sockguard")
_INSTALL: Final = """
python3 -m venv --system-site-packages /opt/sockguard
/opt/sockguard/bin/pip --quiet install --no-index --no-build-isolation /opt/sockguard-source
ln -s /opt/sockguard/bin/sockguard /usr/bin/sockguard
"""


def _files() -> Path:
    """The root of its files; for no one to write in. Takes a minute the first time."""
    root = _FOLDER / hashlib.sha256(" ".join(_DEBOOTSTRAP).encode()).hexdigest()[:16]
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            for old in _FOLDER.iterdir():
                if old.is_dir():
                    _run("rm", "--recursive", "--one-file-system", str(old))
            unfinished = root.with_suffix(".unfinished")
            _run(*_DEBOOTSTRAP, str(unfinished))
            unfinished.rename(root)
    return root


def _install(root: Path) -> None:
    """The checkout, as README.md has it installed where Debian's packages have all that it needs: nothing is fetched,
    and pip refuses packages that are too old for it.
    """
    source = root / "opt/sockguard-source"
    source.mkdir(parents=True)
    for name in _SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, source)
    _run("chroot", str(root), "/bin/sh", "-ec", _INSTALL)


def _environment() -> dict[str, str]:
    """This one, for a proxy on the way to the packages; without what has pip or Python look at other places."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={**_environment(), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        cwd="/",
    )
    if done.returncode:
        raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout[-4000:]}")


# systemd-nspawn(1): cgroups of version 2 alone, as Debian 13 has them by itself; the 257 of it warns of any other.
DEBIAN_13: Final = System(_files, _install, {"UNIFIED_CGROUP_HIERARCHY": "1"})
