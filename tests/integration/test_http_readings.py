"""Services that read a request in another way than it is written, behind an `http` proxy: real ones, each in its own
way. An allow holds for what they run, and a deny is not passed by another spelling of the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import http_readers
from tests.support.daemon import Daemon, running
from tests.support.http_services import statuses, talk
from tests.support.http_wire import get
from tests.support.identities import open_folder
from tests.support.servers import private_folder

pytestmark = pytest.mark.root

PUBLIC = '[[proxy.http.allow]]\nusers = ["*"]\nhttp = ["GET,DELETE,HEAD /public", "GET /public/{p...}"]\n'


@dataclass(frozen=True, slots=True)
class Bed:
    public: Path
    private: Path
    daemon: Daemon

    def talk(self, request: bytes, answers: int = 1) -> bytes:
        return talk(self.public, request, answers=answers)

    def direct(self, request: bytes, answers: int = 1) -> bytes:
        """The same without the guard: that the service does read a request in its own way is part of each test."""
        return talk(self.private, request, answers=answers)


@contextlib.contextmanager
def guarding(serve: Callable[[Path], AbstractContextManager[object]], rules: str) -> Iterator[Bed]:
    with open_folder() as folder:
        private, public = private_folder(folder, 0) / "http.sock", folder / "public" / "http.sock"
        public.parent.mkdir()
        file = folder / "sockguard.toml"
        file.write_text(f'[proxy.http]\nlisten = "{public}"\nbackend = "{private}"\nprotocol = "http"\n{rules}')
        with serve(private):
            private.chmod(0o666)
            with running(file, public) as daemon:
                yield Bed(public, private, daemon)


def test_gunicorn_takes_a_field_for_the_path() -> None:
    """SCRIPT_NAME: /public takes /public off the path. The field goes no further, under no spelling; what comes with
    it is run as it was judged."""
    with guarding(http_readers.gunicorn, PUBLIC) as bed:
        request = get(b"/public/admin/secret", b"SCRIPT_NAME: /public", b"Connection: close")
        assert b"ran GET /admin/secret\n" in bed.direct(request)
        for name in (b"SCRIPT_NAME", b"script_name", b"Script_Name"):
            for fields in ((name + b": /public",), (name + b":", name + b": /public")):
                got = bed.talk(get(b"/public/admin/secret", *fields))
                assert b"ran GET /public/admin/secret\n" in got


SECRET = get(b"/secret", b"Connection: close")
FRAMES = [
    pytest.param((b"Content-Length: %d" % len(SECRET),), SECRET, id="length"),
    pytest.param((b"Transfer-Encoding: chunked",), b"%x\r\n%s\r\n0\r\n\r\n" % (len(SECRET), SECRET), id="chunked"),
]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"PURGE", b"get"])
@pytest.mark.parametrize(("fields", "body"), FRAMES)
def test_http_server_leaves_a_body_unread(method: bytes, fields: tuple[bytes, ...], body: bytes) -> None:
    """And runs it as its next request. The request is answered, its body is not run, and the client is told to send
    the next one over a new connection, which is answered as well."""
    rules = '[[proxy.http.allow]]\nusers = ["*"]\nhttp = ["* /public"]\n[[proxy.http.allow]]\nusers = [4499]\n'
    with guarding(http_readers.http_server, rules) as bed:
        request = get(b"/public", *fields, method=method) + body
        if fields[0].startswith(b"Content"):
            bed.direct(request, answers=2)
            assert http_readers.ran(bed.private) == [f"{method.decode()} /public", "GET /secret"]
        got = bed.talk(request + get(b"/public"))
        assert statuses(got) == [200]
        assert b"\r\nConnection: close\r\n" in got
        assert statuses(bed.talk(get(b"/public"))) == [200]
        assert http_readers.ran(bed.private)[-2:] == [f"{method.decode()} /public", "GET /public"]
        assert http_readers.ran(bed.private).count("GET /secret") <= 1, "only past the guard"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"QUERY"])
def test_a_connection_is_kept_behind_a_body_where_one_is_the_custom(method: bytes) -> None:
    with guarding(http_readers.gunicorn, '[[proxy.http.allow]]\nusers = ["*"]\n') as bed:
        request = get(b"/public", b"Content-Length: 3", method=method) + b"abc"
        assert statuses(bed.talk(request + request, answers=2)) == [200, 200]


def test_an_answer_arrives_though_nobody_reads_the_body() -> None:
    """http.server answers, and ends the connection with five megabytes unread."""
    with guarding(http_readers.http_server, '[[proxy.http.allow]]\nusers = ["*"]\n') as bed:
        for fields in ((b"Content-Length: 5000000",), (b"Transfer-Encoding: chunked",)):
            chunked = fields[0].startswith(b"Transfer")
            body = b"4c4b40\r\n" * chunked + bytes(5_000_000) + b"\r\n0\r\n\r\n" * chunked
            got = bed.talk(get(b"/public", *fields, method=b"DELETE") + body)
            assert got.endswith(b"ran DELETE /public\n")
            assert http_readers.ran(bed.private)[-1] == "DELETE /public"


ANYTHING = '[[proxy.http.allow]]\nusers = ["*"]\n[[proxy.http.deny]]\nusers = ["*"]\nhttp = '


@dataclass(frozen=True, slots=True)
class Spelling:
    """A service, a request line, and what the service runs of it; the rules deny that."""

    serve: str
    method: bytes
    target: bytes
    ran: bytes
    deny: str = "GET /admin"


SPELLINGS = [
    Spelling("werkzeug", b"delete", b"/public", b"ran DELETE /public\n", "DELETE /{any...}"),
    Spelling("werkzeug", b"Delete", b"/admin", b"ran DELETE /admin\n", "DELETE /admin"),
    Spelling("werkzeug", b"get", b"/admin", b"ran GET /admin\n"),
    Spelling("node", b"GET", b"/ADMIN", b"ran GET /admin\n"),
    Spelling("node", b"GET", b"/admin/", b"ran GET /admin\n"),
    Spelling("node", b"GET", b"/Admin/?x", b"ran GET /admin\n"),
    Spelling("http_server", b"GET", b"/admin;x", b"ran GET /admin\n"),
]


@pytest.mark.parametrize("one", SPELLINGS, ids=lambda one: f"{one.serve} {one.method.decode()} {one.target.decode()}")
def test_a_deny_is_not_passed_by_another_spelling(one: Spelling) -> None:
    """Of a method or path that the service takes for the one that is denied."""
    with guarding(getattr(http_readers, one.serve), f'{ANYTHING}["{one.deny}"]\n') as bed:
        request = get(one.target, b"Connection: close", method=one.method)
        assert one.ran in bed.direct(request)
        assert statuses(bed.talk(request)) == [403]
        bed.daemon.wait_for("request_denied")
        assert statuses(bed.talk(get(b"/public"))) == [200]


@pytest.mark.parametrize("target", [b"/public/;x/admin", b"/public/x%3Fy/admin", b"/public/%252e%252e/admin"])
def test_an_allow_holds_for_what_the_service_runs(target: bytes) -> None:
    """Names in a path do not take in what to a service is the end of it, or a way out."""
    with guarding(
        http_readers.http_server, '[[proxy.http.allow]]\nusers = ["*"]\nhttp = ["GET /public/{n}/admin"]\n'
    ) as bed:
        assert statuses(bed.direct(get(target, b"Connection: close"))) == [200]
        assert statuses(bed.talk(get(target))) == [403]
        assert statuses(bed.talk(get(b"/public/x/admin"))) == [200]


def test_nginx_takes_a_second_path_from_a_field() -> None:
    """COPY and MOVE of WebDAV write where Destination says: that is judged like the path of the request."""
    rules = (
        '[[proxy.http.allow]]\nusers = ["*"]\nhttp = ["COPY,MOVE,GET /public/{p...}", "GET /secret/{p...}"]\n'
        '[[proxy.http.deny]]\nusers = ["*"]\nhttp = ["* /public/no"]\n'
    )
    with guarding(http_readers.nginx_dav, rules) as bed:

        def copied(to: bytes, method: bytes = b"COPY") -> int:
            fields = (b"Destination: " + to,)
            return statuses(bed.talk(get(b"/public/a", *fields, method=method)))[0]

        copy = get(b"/public/a", b"Destination: /secret/direct", b"Connection: close", method=b"COPY")
        assert statuses(bed.direct(copy)) == [204]
        assert statuses(bed.direct(get(b"/secret/direct", b"Connection: close"))) == [200]
        for to in (
            b"/secret/b",
            b"http://x/secret/b",
            b"/public/no",
            b"http://x/public/NO",
            b"/public/%6eo",
            b"https://x/secret/b",
        ):
            assert copied(to) == 403
        for to in (b"/public/../secret/b", b"//secret/b", b"/public/%2e%2e/secret/b", b"ftp://x/b", b"b", b"/a b", b""):
            assert copied(to) == 400
        assert statuses(bed.talk(get(b"/secret/b"))) == [404]
        for to in (b"/public/b", b"http://x/public/c"):
            assert copied(to) == 204
            assert statuses(bed.talk(get(to.removeprefix(b"http://x")))) == [200]
