"""Where the daemon meets its operator: the place of the control socket and of the metrics. Pure: touches no file.

The daemon and the commands work the places out here, each from the file and its own environment, and so agree.
"""

from __future__ import annotations

import ipaddress
import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sockguard.config import values
from sockguard.config.values import Bad
from sockguard.errors import SockguardError
from sockguard.words import quoted

SOCKET_NAME: Final = "control.sock"
ROOT_FOLDER: Final = "/run/sockguard"
"""Where root's daemon has its control socket, unless systemd gave it a runtime folder."""

_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """An IP address and a port for the metrics."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PathPlace:
    """The path of a UNIX socket for the metrics."""

    path: str


def control(value: object) -> str:
    """``[daemon] control``: an absolute path, or ``""`` for none. Raises Bad."""
    if value == "":
        return ""
    given = values.text(value)
    if given.startswith("@"):
        raise Bad("the control socket cannot be abstract: it would have no permissions; write a path")
    return values.socket_path(given)


def metrics(value: object) -> str:
    """``[daemon] metrics``: ``"ADDRESS:PORT"``, an absolute path, or ``""`` for none. Raises Bad."""
    if value == "":
        return ""
    given = values.text(value)
    metrics_place(given)
    return given


def metrics_place(given: str) -> TcpPlace | PathPlace:
    """The parts of a ``metrics`` value that is not empty. Raises Bad."""
    if given.startswith("/"):
        return PathPlace(values.socket_path(given))
    host, colon, port = given.rpartition(":")
    if not colon:
        raise Bad(f'must be "ADDRESS:PORT", such as "127.0.0.1:9469", or an absolute path; not {quoted(given)}')
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise Bad(f"{quoted(host)} is no IP address; a name is not looked up: write 127.0.0.1 or [::1]") from None
    if bracketed != (address.version == 6):
        raise Bad("an IPv6 address stands in brackets, and no other does: [::1]:9469")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= _MAX_PORT):
        raise Bad(f"the port must be from 1 to {_MAX_PORT}, not {quoted(port)}")
    return TcpPlace(str(address), int(port))


def control_path(configured: str | None, environ: Mapping[str, str], euid: int) -> str | None:
    """The path of the control socket; None where the file says ``""``.

    configured: ``[daemon] control`` as the file has it, None: not there. environ, euid: of the process that asks; under
    a monitor, control asks as its monitor would. Raises SockguardError where the file says nothing and there is no
    default place.
    """
    if configured is not None:
        return configured or None
    folder = runtime_folder(environ, euid)
    if folder is None:
        raise SockguardError(
            "there is no place for the control socket: set XDG_RUNTIME_DIR, or [daemon] control in the file"
        )
    return os.path.join(folder, SOCKET_NAME)


def runtime_folder(environ: Mapping[str, str], euid: int) -> str | None:
    """The folder of the default control socket; None where there is none.

    systemd's, if it made one (systemd.exec(5): RuntimeDirectory=; of several the first), else root's or the user's
    own. A path that is not absolute counts as not set (XDG Base Directory Specification).
    """
    given = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given.startswith("/"):
        return given
    if euid == 0:
        return ROOT_FOLDER
    own = environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(own, "sockguard") if own.startswith("/") else None
