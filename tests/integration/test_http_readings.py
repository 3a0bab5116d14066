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
from tests.support.http_services import talk
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
