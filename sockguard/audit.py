"""Audit events: numbered, timed, one line each, written by a thread of their own so that a slow sink stops nobody.

Nothing passes unrecorded: the queue is bounded, and while it is full (`has_room` is false) no new connection is
accepted, and relays get no credits for requests (server/requests.py). Ends of connections that were admitted are always
taken, there are no more of them than live connections; and so are requests that credits have been given for.
Text in events is escaped to ASCII: whatever a client puts into a name, one event is one line.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from sockguard.identity.peer import Peer, Unchecked
from sockguard.policy.patterns import unit_of
from sockguard.words import shortened

Event = dict[str, object]
Encoder = Callable[[Event], str]

MAX_QUEUED: Final = 10_000
"""Events that wait for the sink before admission stops."""

_LOW_WATER: Final = MAX_QUEUED // 2
_LINES_PER_WRITE: Final = 200
_GATHER_SECONDS: Final = 0.002  # waking a thread for each event would cost the accept loop more than the event itself
_MANY: Final = 8  # events in that time: then each wake costs the accept loop more than these, so
_GATHER_MANY_SECONDS: Final = 0.02  # they are gathered for longer
_RETRY_SECONDS: Final = 1.0  # after a full disk: the sink may come back

to_json: Final[Encoder] = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def to_console(event: Event) -> str:
    """An event as a line for a person: time, what, where, then the rest as key=value."""
    fields = dict(event)
    moment = str(fields.pop("time"))[11:19]
    name = str(fields.pop("event"))
    fields.pop("seq")
    where = f"{fields.pop('proxy', '')}#{fields.pop('connection', '')}".strip("#")
    rest = " ".join(f"{key}={_shown(value)}" for key, value in fields.items() if value is not None)
    return f"{moment}  {name:<20} {where}  {rest}"


def _shown(value: object) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and value and not set(value) & set(' ="\\'):
        return value
    return to_json(value)  # type: ignore[arg-type]  # any JSON value will do


def peer_fields(peer: Peer) -> Event:
    """The peer in an event: ids always, names and process facts where they are known. A peer chooses what some of them
    are: these are cut to MAX_FACT bytes each, and say so.
    """
    fields: Event = {"uid": peer.uid, "gid": peer.gid, "user": peer.user, "pid": peer.pid}
    if isinstance(peer.executable, str):
        fields["executable"] = shortened(peer.executable)
    elif isinstance(peer.executable, Unchecked):
        fields["executable"] = shortened(peer.executable.path)
        fields["executable_checked"] = False
    if isinstance(peer.cgroup, str):
        fields["unit"] = shortened(unit_of(peer.cgroup) or peer.cgroup)
    if isinstance(peer.label, str):
        fields["label"] = shortened(peer.label)
    return fields


class _Clock:
    """The time for events. Most events of a second come in one in which others did: what they share is kept."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """UTC, ISO 8601, to the microsecond."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._text}.{nanoseconds // 1000:06d}Z"


class AuditLog:
    """The queue and its writer thread.

    fd            where lines go
    encode        to_json or to_console; another one holds for events from then on
    on_room       called in the writer's thread when the queue has drained after it was full
    on_failure    called there, once, when the sink is gone for good (EPIPE); what is queued then is lost
    """

    def __init__(self, fd: int, encode: Encoder, *, on_room: Callable[[], None], on_failure: Callable[[str], None]):
        self._fd = fd
        self.encode = encode
        self._on_room = on_room
        self._on_failure = on_failure
        self._queue: deque[str] = deque()  # encoded: what a thread does in Python, all others wait for
        self._wake = threading.Condition()
        self._closing = False
        self._was_full = False
        self._idle = True  # the writer waits, or is about to; it looks at the queue once more before it does
        self._seq = 0
        self._clock = _Clock()
        self.failed = False
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._seq

    @property
    def queued(self) -> int:
        """Events that are not written yet."""
        return len(self._queue)

    def has_room(self) -> bool:
        """May another connection be admitted? If not, on_room tells when."""
        if len(self._queue) < MAX_QUEUED:
            return True
        with self._wake:
            if len(self._queue) < MAX_QUEUED:
                return True
            self._was_full = True
        return False

    def emit(self, event: str, **fields: object) -> None:
        """Record an event. Never blocks. To be called from one thread only: ``seq`` has no gaps."""
        self._seq += 1
        record: Event = {
            "event": event,
            "time": self._clock.now(),
            "seq": self._seq,
            **fields,
        }
        self._queue.append(self.encode(record) + "\n")
        if self._idle:
            with self._wake:
                self._wake.notify()

    def close(self, seconds: float) -> bool:
        """Write what is queued, for at most that long. True when all of it was written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._queue and not self._thread.is_alive() and not self.failed

    def _write_all(self) -> None:
        many = False
        while True:
            with self._wake:
                self._idle = True
                while not self._queue and not self._closing:
                    self._wake.wait()
                self._idle = False
            if not self._queue:
                return
            if not self._closing and len(self._queue) < _LINES_PER_WRITE:
                time.sleep(_GATHER_MANY_SECONDS if many else _GATHER_SECONDS)
            batch = [self._queue[i] for i in range(min(len(self._queue), _LINES_PER_WRITE))]
            many = len(batch) >= _MANY
            if not self._write("".join(batch).encode("ascii", "backslashreplace")):
                return
            with self._wake:
                for _ in batch:
                    self._queue.popleft()
                room = self._was_full and len(self._queue) <= _LOW_WATER
                if room:
                    self._was_full = False
            if room:
                self._on_room()

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made our standard output non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except (BrokenPipeError, ConnectionResetError) as error:
                return self._fail(error)
            except OSError as error:
                if self._closing:
                    return self._fail(error)
                time.sleep(_RETRY_SECONDS)
        return True

    def _fail(self, error: OSError) -> bool:
        self.failed = True
        self._on_failure(f"audit events cannot be written to standard output: {error.strerror}")
        return False
