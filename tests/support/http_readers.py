"""Services that say what they have read: for each request that they run, a line with its method and path.

As a module: how to start each. As a program: ``http_readers.py NAME SOCKET`` serves one of them itself; ``wsgi`` is for
gunicorn.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socketserver
import sys
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

_HERE = Path(__file__)


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """A WSGI application (PEP 3333) that goes by PATH_INFO, as they all do."""
    text = f"ran {environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and DELETE without a look at the body, and goes by the path that urlparse finds, as handlers commonly
    do.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with Path(self.server.server_address + ".ran").open("a") as ran:  # type: ignore[operator]
            ran.write(f"{self.command} {self.path}\n")
        text = f"ran {self.command} {urlparse(self.path).path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_DELETE = do_HEAD = do_OPTIONS = do_TRACE = do_PURGE = do_get = do_GET

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        pass


def _http_server(path: str) -> None:
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    Server(path, _Handler).serve_forever()


def _werkzeug(path: str) -> None:
    """An application of werkzeug, which says the path of the rule that its routing found."""
    from werkzeug.routing import Map, Rule
    from werkzeug.serving import run_simple
    from werkzeug.wrappers import Request, Response

    rules = Map([Rule(one, endpoint=one, methods=["GET", "DELETE"]) for one in ("/admin", "/public")])

    @Request.application
    def application(request: Request) -> Response:
        endpoint, _ = rules.bind_to_environ(request.environ).match()
        return Response(f"ran {request.method} {endpoint}\n")

    run_simple(f"unix://{path}", 0, application, threaded=True)


# Express's router is path-to-regexp with its defaults: no case, and a slash at the end or not.
_NODE = r"""
const http = require('node:http');
const route = /^\/admin\/?$/i;
http.createServer((request, response) => {
  const path = request.url.split('?')[0];
  const text = `ran ${request.method} ${route.test(path) ? '/admin' : path}\n`;
  response.setHeader('Content-Length', text.length);
  response.end(request.method === 'HEAD' ? undefined : text);
}).listen(process.argv[1]);
"""


def gunicorn(path: Path) -> contextlib.AbstractContextManager[object]:
    return _serve(path, sys.executable, "-m", "gunicorn", "--log-level", "warning", "--threads", "2",
                  "--no-control-socket", "--bind", f"unix:{path}", "--chdir", str(_HERE.parent),
                  "http_readers:wsgi")  # fmt: skip


def http_server(path: Path) -> contextlib.AbstractContextManager[object]:
    return _serve(path, sys.executable, str(_HERE), "http_server", str(path))


def werkzeug(path: Path) -> contextlib.AbstractContextManager[object]:
    return _serve(path, sys.executable, str(_HERE), "werkzeug", str(path))


def node(path: Path) -> contextlib.AbstractContextManager[object]:
    program = shutil.which("node")
    assert program, "node is not installed: apt-get install nodejs"
    return _serve(path, program, "-e", _NODE, str(path))


def nginx_dav(path: Path) -> contextlib.AbstractContextManager[object]:
    """nginx with WebDAV's COPY and MOVE on a folder beside its socket, with public/a in it."""
    folder = path.parent
    for name in ("public", "secret"):
        (folder / "www" / name).mkdir(parents=True)
    (folder / "www" / "public" / "a").write_text("a\n")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"user root; daemon off; pid {folder}/pid; events {{}} http {{ access_log off; {temporary}"
        f" server {{ listen unix:{path}; root {folder}/www; dav_methods COPY MOVE; }} }}"
    )
    return _serve(path, "nginx", "-e", "stderr", "-c", f"{folder}/nginx.conf")


def _serve(path: Path, *command: str) -> contextlib.AbstractContextManager[object]:
    from tests.support.servers import serving_process  # not where this runs as a program

    return serving_process(command, path)


def ran(path: Path) -> list[str]:
    """What the http_server at that path has run."""
    file = Path(f"{path}.ran")
    return file.read_text().splitlines() if file.exists() else []


if __name__ == "__main__":
    os.umask(0o077)
    {"http_server": _http_server, "werkzeug": _werkzeug}[sys.argv[1]](sys.argv[2])
