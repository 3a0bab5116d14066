"""HTTP services to stand behind the guard: one that keeps what reaches it byte for byte, and real ones.

The recording service is a fake because no real one tells what it was sent, or answers with doubtful framing on demand.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import socket
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers import serving_process
from tests.support.services import serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
READ_SECONDS = 15.0
UNREAD_SECONDS = 10.0

# RFC 9112 without anything that it leaves open: what a serialiser of ours writes, and nothing else.
_HEAD = re.compile(
    rb"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?P<target>/[!-~]*) HTTP/1\.1\r\n"
    rb"(?P<fields>(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?\r\n)*)\r\n"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)\r\n")


@dataclass(slots=True)
class Seen:
    """A request as it reached the service. ``raw``: all its bytes, with the body as framed; ``whole``: to its end."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    raw: bytes
    whole: bool = False

    def values(self, name: str) -> list[str]:
        """Of the fields of that name, in lower case."""
        return [value for key, value in self.fields if key == name]


class NotCanonicalError(Exception):
    """Something reached the service that is no request as the guard should write one."""


class LeaveError(Exception):
    """Raised by an answer that has dealt with the rest of the connection itself."""


class Wire:
    """One connection to the service. ``raw``: all that has come on it; ``ended``: it has been dealt with."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.raw = b""
        self.ended = False
        self._used = 0

    def more(self) -> bool:
        """Wait for more bytes. False at their end."""
        data = self.sock.recv(65536)
        self.raw += data
        return bool(data)

    @property
    def ahead(self) -> bytes:
        """What has come and is no part of what was read so far."""
        return self.raw[self._used :]

    def _match(self, pattern: re.Pattern[bytes], until: bytes) -> re.Match[bytes] | None:
        while until not in self.ahead:
            if not self.more():
                if self._used == len(self.raw):
                    return None
                raise NotCanonicalError(f"cut short: {self.ahead!r}")
        found = pattern.match(self.raw, self._used)
        if not found:
            raise NotCanonicalError(repr(self.ahead[:2000]))
        self._used = found.end()
        return found

    def _take(self, count: int) -> bytes:
        while len(self.raw) < self._used + count:
            if not self.more():
                raise NotCanonicalError("the body is cut short")
        self._used += count
        return self.raw[self._used - count : self._used]

    def head(self) -> Seen | None:
        """The next request without its body; None at the end of the connection."""
        start = self._used
        found = self._match(_HEAD, b"\r\n\r\n")
        if not found:
            return None
        lines = found["fields"].decode("latin-1").split("\r\n")[:-1]
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return Seen(found["method"].decode(), found["target"].decode(), fields, b"", self.raw[start : self._used])

    def body(self, seen: Seen) -> None:
        """Read its body; raises NotCanonicalError for framing that leaves a doubt."""
        start = self._used
        lengths, codings = seen.values("content-length"), seen.values("transfer-encoding")
        if len(lengths) + len(codings) > 1 or codings not in ([], ["chunked"]):
            raise NotCanonicalError(f"framing: {lengths} {codings}")
        if lengths:
            if not re.fullmatch(r"\d+", lengths[0]):
                raise NotCanonicalError(f"length: {lengths}")
            seen.body = self._take(int(lengths[0]))
        elif codings:
            while size := self._chunk():
                seen.body += self._take(size)
                self._end_of_line()
            self._end_of_line()  # no trailers
        seen.raw += self.raw[start : self._used]
        seen.whole = True

    def _chunk(self) -> int:
        found = self._match(_CHUNK, b"\r\n")
        if not found:
            raise NotCanonicalError("no last chunk")
        return int(found[1], 16)

    def _end_of_line(self) -> None:
        if self._take(2) != b"\r\n":
            raise NotCanonicalError("a chunk that is longer than it says")


Answer = Callable[[Wire, Seen], None]
"""Answers one request on the wire; for a body that it wants it calls ``wire.body``."""


def plainly(wire: Wire, seen: Seen) -> None:
    """Read the body, answer 200 with a body of three bytes."""
    wire.body(seen)
    wire.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" if seen.method == "HEAD" else OK)


@dataclass(slots=True)
class Recorder:
    """What has reached the service: requests in order, and each thing that was none."""

    answer: Answer = plainly
    requests: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        with self._lock:
            self.wires.append(wire)
        try:
            while seen := wire.head():
                with self._lock:
                    self.requests.append(seen)
                self.answer(wire, seen)
        except LeaveError:
            sock.shutdown(socket.SHUT_RDWR)
        except NotCanonicalError as fault:
            with self._lock:
                self.faults.append(str(fault))
        finally:
            wire.ended = True

    def clear(self) -> None:
        with self._lock:
            self.requests.clear()
            self.faults.clear()
            self.wires.clear()

    @property
    def lines(self) -> list[str]:
        """Each request as "METHOD target"."""
        return [f"{seen.method} {seen.target}" for seen in self.requests]


@contextlib.contextmanager
def recording(path: Path, answer: Answer = plainly) -> Iterator[Recorder]:
    recorder = Recorder(answer)
    with serving(path, recorder):
        yield recorder


_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what came, in order; bodies here hold no such line."""
    return [int(code) for code in _STATUS.findall(answer)]


def talk(path: Path, *parts: bytes, answers: int = 1, half_close: bool = False) -> bytes:
    """Send these bytes as they are, each part once the one before has been read, and give all that comes to the end.

    Once that many answers have begun, the client sends its end (at once if ``half_close``): what stands in the way of
    another answer is gone then, so that there is none that would have come later.
    """
    got = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READ_SECONDS)
        sock.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number, part in enumerate(parts):
                if number:
                    _wait_read(sock)
                sock.sendall(part)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += data
                if not half_close and len(statuses(got)) >= answers:
                    half_close = True
                    sock.shutdown(socket.SHUT_WR)
    return got


def _wait_read(sock: socket.socket) -> None:
    """Until the other side has read all (SIOCOUTQ, unix(7)), or seems to have stopped reading."""
    end = time.monotonic() + UNREAD_SECONDS
    unread = array("i", [1])
    while unread[0] and time.monotonic() < end:
        fcntl.ioctl(sock, termios.TIOCOUTQ, unread)


# ── real services ──

_PROGRAMS = Path(__file__).with_name("http_programs.py")


def uvicorn(path: Path) -> contextlib.AbstractContextManager[object]:
    """uvicorn (h11) with the application asgi of http_programs.py."""
    return _python(path, "-m", "uvicorn", "--log-level", "warning", "--http", "h11", "--no-date-header",
                   "--timeout-keep-alive", "60",
                   "--uds", str(path), "--app-dir", str(_PROGRAMS.parent), "http_programs:asgi")  # fmt: skip


def gunicorn(path: Path) -> contextlib.AbstractContextManager[object]:
    """gunicorn (its own reader of HTTP) with the application wsgi of http_programs.py."""
    return _python(path, "-m", "gunicorn", "--log-level", "warning", "--threads", "4", "--no-control-socket",
                   "--keep-alive", "60",
                   "--bind", f"unix:{path}", "--chdir", str(_PROGRAMS.parent), "http_programs:wsgi")  # fmt: skip


def aiohttp(path: Path) -> contextlib.AbstractContextManager[object]:
    """aiohttp's server (llhttp) with the handler of http_programs.py."""
    return _python(path, str(_PROGRAMS), str(path))


def _python(path: Path, *words: str) -> contextlib.AbstractContextManager[object]:
    return serving_process([sys.executable, *words], path)
