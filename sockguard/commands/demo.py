"""`sockguard demo`: a guarded HTTP service in a temporary folder; connections and requests that pass and that do not.

Real parts: the daemon is this very program, run with a real configuration; the service is Python's own HTTP server
on a private socket; the clients are processes of their own. Without root every client has one uid, so the rules
differ from socket to socket; as root, clients of other uids connect as well.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import http.client
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sockguard.errors import EXIT_OK, EXIT_WORLD, SockguardError

_START_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 5.0
_OTHER_UID: Final = 4242  # needs no account: the kernel knows numbers
_GROUP: Final = 4300


@dataclass(frozen=True, slots=True)
class Client:
    """Who connects where, and what has to come of it."""

    label: str
    proxy: str
    uid: int
    groups: tuple[int, ...]
    passes: bool
    request: str = "GET /"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="guard a small service in a temporary folder and show what passes and what does not",
        description="Needs no privilege and no configuration; leaves nothing behind. "
        "Exit status: 0 if every verdict was as it should be.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Show the main job. Gives 0 if every verdict was as it should be, else 1."""
    with tempfile.TemporaryDirectory(prefix="sockguard-demo-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103  # clients of other uids come through; the private folder is another matter
        private = os.path.join(folder, "private")
        os.mkdir(private, 0o700)
        backend = os.path.join(private, "web.sock")
        clients = _clients()
        text = _configuration(folder, backend)
        file = os.path.join(folder, "sockguard.toml")
        with open(file, "w") as out:
            out.write(text)
        print("A small HTTP service listens on a private socket; sockguard guards it with this file:\n")
        print("".join(f"    {line}\n" for line in text.splitlines()))
        with _service(backend):
            _let_control_through(private, backend)
            with _daemon(file, folder, len(_proxies(text))) as lines:
                good = sum([_show(client, folder, lines) for client in clients])
    print(f"\n{good} of {len(clients)} verdicts were as they should be.")
    if os.geteuid():
        print("Run it as root to see clients of other users, too.")
    return EXIT_OK if good == len(clients) else EXIT_WORLD


def _let_control_through(private: str, backend: str) -> None:
    """As root, where there is a group sockguard, control runs in it and not as root: as for any service behind it."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            group = grp.getgrnam("sockguard").gr_gid
            for path, mode in ((private, 0o710), (backend, 0o660)):
                os.chown(path, 0, group)
                os.chmod(path, mode)


def _clients() -> list[Client]:
    own = os.geteuid()
    groups = tuple(os.getgroups())
    clients = [
        Client("you, where your uid is allowed", "mine", own, groups, True),
        Client("you, where only another uid is", "theirs", own, groups, False),
        Client("you, where a deny beats the allow", "denied", own, groups, False),
        Client("you, a request that a rule names", "judged", own, groups, True, "GET /status"),
        Client("you, a request that none names", "judged", own, groups, False, "DELETE /status"),
    ]
    if own == 0:
        clients += [
            Client(f"uid {_OTHER_UID}, where only root is allowed", "mine", _OTHER_UID, (), False),
            Client(f"uid {_OTHER_UID}, where it is allowed", "theirs", _OTHER_UID, (), True),
            Client(f"uid {_OTHER_UID + 1}, where a group is", "group", _OTHER_UID + 1, (), False),
            Client(f"uid {_OTHER_UID + 1} with that group", "group", _OTHER_UID + 1, (_GROUP,), True),
        ]
    return clients


def _configuration(folder: str, backend: str) -> str:
    own = os.geteuid()
    other = _OTHER_UID if own != _OTHER_UID else _OTHER_UID + 1
    rules = {
        "mine": f"[[proxy.mine.allow]]\nusers = [{own}]\n",
        "theirs": f"[[proxy.theirs.allow]]\nusers = [{other}]\n",
        "denied": '[[proxy.denied.allow]]\nusers = ["*"]\n\n'
        f'[[proxy.denied.deny]]\nname = "not-{own}"\nusers = [{own}]\n',
    }
    if own == 0:
        rules["group"] = f"[[proxy.group.allow]]\ngroups = [{_GROUP}]\n"
    rules["judged"] = f'[[proxy.judged.allow]]\nusers = [{own}]\nhttp  = ["GET /status"]\n'
    protocols = {"judged": 'protocol = "http"\n'}
    proxies = [
        f'[proxy.{name}]\nlisten = "{folder}/{name}.sock"\nbackend = "{backend}"\n{protocols.get(name, "")}\n{text}'
        for name, text in rules.items()
    ]
    return "\n".join(proxies)


def _proxies(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[proxy.")]


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"hello from the private socket\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The audit events tell what happens here."""

    def address_string(self) -> str:
        return "unix"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def _service(path: str) -> Iterator[None]:
    with _Server(path, _Hello) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def _daemon(file: str, folder: str, sockets: int) -> Iterator[Iterator[dict[str, object]]]:
    """The daemon, ready; gives its audit events as they come."""
    command = [sys.executable, "-m", "sockguard", "--config", file]
    errors = os.path.join(folder, "errors")
    with open(errors, "wb") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err) as process:
        try:
            end = time.monotonic() + _START_SECONDS
            while sum(name.endswith(".sock") for name in os.listdir(folder)) < sockets:
                if process.poll() is not None or time.monotonic() > end:
                    with open(errors, errors="replace") as told:
                        raise SockguardError(f"the daemon did not start:\n{told.read()}")
                time.sleep(0.02)
            yield map(json.loads, process.stdout or ())
        finally:
            process.send_signal(signal.SIGTERM)


def _show(client: Client, folder: str, events: Iterator[dict[str, object]]) -> bool:
    answer = _ask(client, os.path.join(folder, f"{client.proxy}.sock"))
    passed = "hello" in answer
    refused = not passed and answer.startswith('{"message"')
    awaited = ("request_denied",) if refused else ("connection_admitted", "connection_denied")
    event = next(e for e in events if e["event"] in awaited)
    reason = event.get("reason") or f"allowed by {event['rule']}"
    word = "passed" if passed else "refused" if refused else "closed"
    print(f"{word:<7}  {client.label:<40} {client.proxy:<7} {reason}")
    if passed != client.passes:
        print(f"        expected {'to pass' if client.passes else 'to be closed'}; the client saw: {answer}")
    return passed == client.passes


def _ask(client: Client, path: str) -> str:
    """What a process of that uid gets for its request: the body, or what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if client.uid != os.geteuid():
                os.setgroups(client.groups)
                os.setresgid(client.uid, client.uid, client.uid)
                os.setresuid(client.uid, client.uid, client.uid)
            os.write(writer, _get(path, *client.request.split()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, errors="replace") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def _get(path: str, method: str, target: str) -> str:
    connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_SECONDS)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_ANSWER_SECONDS)
        connection.sock.connect(path)
        connection.request(method, target)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
