"""The commands' side of the control socket: finds it, asks by HTTP, says in plain words what went wrong.

Standard library only, beyond tomli for the one key of the file: a command has to be quick, and to work while the file
is broken. What the daemon says is printed by ``clean`` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
from typing import Any, Final

from sockguard.commands.options import DEFAULT_CONFIG, add_config
from sockguard.config.runtime import ROOT_FOLDER, control_path
from sockguard.errors import SockguardError

ANSWER_SECONDS: Final = 30.0
"""How long the daemon may take for an answer."""
RELOAD_SECONDS: Final = 120.0
"""How long it may take to reload, which waits for every relay."""
MAX_ANSWER: Final = 256 * 1024 * 1024
"""Bytes of an answer."""

_MAX_FILE: Final = 4 * 1024 * 1024  # config.read.MAX_FILE_BYTES; that module checks more than is needed here
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config`` and ``--control``: two ways to the socket."""
    add_config(parser)
    parser.add_argument("--control", metavar="PATH", help="the control socket; default: as the configuration says")


def clean(text: object) -> str:
    """The daemon's text on one line, whatever it holds: what is not printable is escaped."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)


def find(args: argparse.Namespace) -> str:
    """The control socket's path for this command line. Raises SockguardError."""
    if args.control is not None:
        return str(args.control)
    path = control_path(_configured(args.config), os.environ, os.geteuid())
    if path is None:
        raise SockguardError(f'{clean(args.config)}: control = "": the daemon has no control socket')
    return path


def _configured(config: str) -> str | None:
    """``[daemon] control`` of the file. That it cannot be read is said, and then it counts as without the key."""
    import tomli

    try:
        with open(config, "rb") as file:
            text = file.read(_MAX_FILE)
    except FileNotFoundError:
        if config != DEFAULT_CONFIG:
            raise SockguardError(f"{clean(config)}: no such file; name the socket by --control PATH") from None
        return None
    except (OSError, ValueError) as error:
        _say_default(config, getattr(error, "strerror", None) or str(error))
        return None
    try:
        daemon = tomli.loads(text.decode()).get("daemon")
    except (ValueError, RecursionError) as error:
        _say_default(config, str(error))
        return None
    value = daemon.get("control") if isinstance(daemon, dict) else None
    return value if isinstance(value, str) else None


def _say_default(config: str, reason: str) -> None:
    print(f"sockguard: {clean(config)}: {clean(reason)}; trying the default control socket", file=sys.stderr)


class _Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ControlClient:
    """Asks one daemon. Keeps its connection from one question to the next, and makes a new one where it has gone."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._http = _Connection(path)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, *, seconds: float = ANSWER_SECONDS) -> tuple[int, Any]:
        """One question. Gives the status (403 excepted) and the JSON of the answer. Raises SockguardError."""
        kept = self._http.sock is not None
        try:
            return self._ask(method, path, seconds)
        except (ConnectionError, http.client.HTTPException) as error:
            self._http.close()
            if not kept or isinstance(error, ConnectionRefusedError):
                raise self._failure(error) from error
        except OSError as error:
            self._http.close()
            raise self._failure(error) from error
        try:  # the daemon let an idle connection go, or was restarted
            return self._ask(method, path, seconds)
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise self._failure(error) from error

    def _ask(self, method: str, path: str, seconds: float) -> tuple[int, Any]:
        if self._http.sock is None:
            self._http.connect()
        self._http.sock.settimeout(seconds)
        with contextlib.suppress(BrokenPipeError):  # turned away unread: the reason may be there all the same
            self._http.request(method, path)
        answer = self._http.getresponse()
        text = answer.read(MAX_ANSWER)
        if answer.length:  # read() says nothing of what did not come
            raise http.client.IncompleteRead(text, answer.length)
        if answer.read(1):
            raise SockguardError(f"{clean(self._path)}: the answer is longer than {MAX_ANSWER} bytes")
        server = answer.getheader("Server", "")
        if not server.startswith("sockguard/"):
            raise SockguardError(f"{clean(self._path)}: what listens there is not sockguard")
        try:
            value = json.loads(text)
        except ValueError:
            raise SockguardError(f"{clean(self._path)}: the answer is no JSON") from None
        if answer.status == _FORBIDDEN:
            raise self._failure(PermissionError())
        if answer.status == _NOT_FOUND and _error(value).startswith("no such path"):
            raise SockguardError(f"the daemon is an older one ({clean(server)}) and does not know this command")
        return answer.status, value

    def _failure(self, error: Exception) -> SockguardError:
        path = clean(self._path)
        match error:
            case PermissionError():
                return SockguardError(f"{path}: not permitted: only root and the daemon's own user may ask")
            case FileNotFoundError() | ConnectionRefusedError():
                text = f"no daemon listens at {path}"
                if os.geteuid() != 0 and not self._path.startswith(ROOT_FOLDER):
                    text += f"; the socket of root's daemon is in {ROOT_FOLDER}: ask as root, or give --control PATH"
                return SockguardError(text)
            case TimeoutError():
                return SockguardError(f"{path}: the daemon does not answer")
            case ConnectionError():
                return SockguardError(f"{path}: the daemon hung up without an answer")
            case OSError():
                return SockguardError(f"{path}: {error.strerror or error}")
        return SockguardError(f"{path}: what it says is not HTTP as sockguard speaks it ({type(error).__name__})")


def _error(value: object) -> str:
    text = value.get("error") if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""


def unexpected(status: int, value: object) -> SockguardError:
    """The error for an answer that the command has no use for."""
    return SockguardError(f"the daemon says: {clean(_error(value) or 'nothing that is understood')} (HTTP {status})")
