"""Audit events: numbered without gaps, one line each, and never lost while anybody waits for them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard import audit
from sockguard.audit import MAX_QUEUED, AuditLog, peer_fields, to_console, to_json
from sockguard.identity.peer import NOT_ASKED, Peer, Unknown, unchecked
from sockguard.words import MAX_FACT

SECONDS = 20.0


class Log:
    """An AuditLog on a pipe, and what it called back."""

    def __init__(self, fd: int, encode: audit.Encoder = to_json) -> None:
        self.rooms = threading.Semaphore(0)
        self.failures: list[str] = []
        self.failed = threading.Event()
        self.log = AuditLog(fd, encode, on_room=self.rooms.release, on_failure=self._on_failure)

    def _on_failure(self, reason: str) -> None:
        self.failures.append(reason)
        self.failed.set()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


class Reader:
    """Reads events from a pipe, at least as many as are asked for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def read(self, count: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while len(events) < count:
            *lines, self._rest = (self._rest + os.read(self._fd, 1 << 16)).split(b"\n")
            events += map(json.loads, lines)
        return events


def test_each_time_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second, in the next, and when the clock was set back: as datetime writes them."""
    clock = audit._Clock()
    for moment in (
        "2026-12-31T23:59:58.000001", "2026-12-31T23:59:58.999999", "2027-01-01T00:00:00.000000",
        "2026-12-31T23:59:59.500000", "2026-12-31T23:59:59.500000",
    ):  # fmt: skip
        when = datetime.fromisoformat(f"{moment}+00:00")
        nanoseconds = int(when.timestamp()) * 1_000_000_000 + when.microsecond * 1000 + 999
        monkeypatch.setattr(time, "time_ns", lambda nanoseconds=nanoseconds: nanoseconds)
        assert clock.now() == f"{moment}Z"


def test_numbers_and_times(pipe: tuple[int, int]) -> None:
    """seq begins with 1 and has no gaps; time is UTC in ISO 8601; fields follow in their order."""
    log = Log(pipe[1]).log
    log.start()
    for number in range(3):
        log.emit("connection_denied", proxy="p", connection=number)
    assert log.close(SECONDS)
    os.close(pipe[1])
    with open(pipe[0], closefd=False) as file:
        events = [json.loads(line) for line in file]
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert [list(event) for event in events] == [["event", "time", "seq", "proxy", "connection"]] * 3
    for event in events:
        assert event["time"].endswith("Z")
        moment = datetime.fromisoformat(event["time"])
        assert moment.utcoffset() == timedelta(0)


TEXT = st.text() | st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))


@given(st.dictionaries(st.sampled_from(["executable", "label", "unit", "reason"]), TEXT), TEXT)
def test_one_event_is_one_line(fields: dict[str, str], user: str) -> None:
    """Whatever a client puts into a name, an event is one line of printable ASCII; JSON gives the text back."""
    event: audit.Event = {
        "event": "connection_denied",
        "time": "2026-01-01T00:00:00.000000Z",
        "seq": 1,
        "proxy": "p",
        "connection": 7,
        "user": user,
        **fields,
    }
    before = dict(event)
    for encode in (to_json, to_console):
        line = encode(event)
        assert line.isascii()
        assert line.isprintable()
    assert json.loads(to_json(event)) == event == before


def test_another_form(pipe: tuple[int, int]) -> None:
    """Events from then on have it; those before are written as they were told, and the numbers go on."""
    log = Log(pipe[1]).log
    log.emit("first")
    log.encode = to_console
    log.emit("second")
    log.encode = to_json
    log.emit("third")
    log.start()
    assert log.close(SECONDS)
    first, second, third = os.read(pipe[0], 1 << 16).splitlines()
    assert (json.loads(first)["seq"], json.loads(third)["seq"]) == (1, 3)
    assert second.split()[1:] == [b"second"]


def test_console_line() -> None:
    """A line for a person: time of day, what, which proxy and connection, the rest; a value cannot pose as a field."""
    event: audit.Event = {
        "event": "connection_denied",
        "time": "2026-01-01T12:34:56.000000Z",
        "seq": 9,
        "proxy": "docker",
        "connection": 7,
        "uid": 1000,
        "user": None,
        "rule": "a b",
        "executable": '/bin/x uid=0 "',
        "reason": "",
    }
    assert to_console(event) == (
        '12:34:56  connection_denied    docker#7  uid=1000 rule="a b" executable="/bin/x uid=0 \\"" reason=""'
    )
    assert to_console({"event": "relay_restarted", "time": event["time"], "seq": 1, "relay": 2}) == (
        "12:34:56  relay_restarted        relay=2"
    )


def test_peer_fields() -> None:
    """Ids always; program, unit and label only where they are known; a unit by its name."""
    bare = Peer(1, 2, frozenset({2}), pid=3)
    assert peer_fields(bare) == {"uid": 1, "gid": 2, "user": None, "pid": 3}
    unknown = Peer(1, 2, Unknown("x"), 3, "u", Unknown("gone"), Unknown("gone"), NOT_ASKED)
    assert peer_fields(unknown) == {"uid": 1, "gid": 2, "user": "u", "pid": 3}
    known = Peer(1, 2, frozenset({2}), 3, "u", "/bin/x", "/system.slice/cron.service", "label")
    assert peer_fields(known) == {
        **peer_fields(unknown),
        "executable": "/bin/x",
        "unit": "cron.service",
        "label": "label",
    }
    assert peer_fields(Peer(1, 2, frozenset({2}), cgroup="/user.slice/x"))["unit"] == "/user.slice/x"


def test_room(pipe: tuple[int, int]) -> None:
    """No room at MAX_QUEUED; on_room is called once, when half of it has drained; nothing is lost or out of order."""
    made = Log(pipe[1])
    log = made.log
    for number in range(MAX_QUEUED):
        assert log.has_room() == (number < MAX_QUEUED)
        log.emit("e")
    assert log.queued == MAX_QUEUED
    assert not log.has_room()
    log.emit("closed")  # ends of connections are always taken
    log.start()
    reader = Reader(pipe[0])
    read: list[dict[str, Any]] = []
    while not made.rooms.acquire(blocking=False):
        read += reader.read(1)
        assert len(read) <= MAX_QUEUED
    assert log.has_room()
    assert log.queued <= MAX_QUEUED // 2
    read += reader.read(MAX_QUEUED + 1 - len(read))
    assert [event["seq"] for event in read] == list(range(1, MAX_QUEUED + 2))
    assert log.close(SECONDS)
    assert not made.rooms.acquire(blocking=False)


def test_emit_does_not_wait_for_a_sink_that_blocks(pipe: tuple[int, int]) -> None:
    """With the writer stuck in write(), emit returns; close gives up in time and says that not all was written."""
    made = Log(pipe[1])
    made.log.start()
    for _ in range(2000):
        made.log.emit("e", text="x" * 100)
    assert not made.log.close(0.05)
    assert len(Reader(pipe[0]).read(2000)) == 2000
    assert made.log.close(SECONDS)
    assert made.failures == []


def test_close_writes_what_is_queued(pipe: tuple[int, int]) -> None:
    """Everything that was emitted before close is written before it returns."""
    made = Log(pipe[1])
    for _ in range(300):
        made.log.emit("e")
    made.log.start()
    assert made.log.close(SECONDS)
    os.close(pipe[1])
    with open(pipe[0], closefd=False) as file:
        assert len(list(file)) == 300


def test_close_of_a_log_that_never_started(pipe: tuple[int, int]) -> None:
    """No events: all is written. Events: it says that they are not."""
    made = Log(pipe[1])
    assert made.log.close(SECONDS)
    made.log.emit("e")
    assert not made.log.close(SECONDS)


def test_a_sink_that_does_not_block(pipe: tuple[int, int]) -> None:
    """A pipe that somebody made non-blocking is waited for: EAGAIN loses nothing."""
    os.set_blocking(pipe[1], False)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    made = Log(pipe[1])
    made.log.start()
    for _ in range(500):
        made.log.emit("e", text="x" * 100)
    events = Reader(pipe[0]).read(500)
    assert [event["seq"] for event in events] == list(range(1, 501))
    assert made.log.close(SECONDS)


def test_a_sink_that_has_gone(pipe: tuple[int, int]) -> None:
    """EPIPE is told once, with the reason, and close says that events were lost."""
    made = Log(pipe[1])
    made.log.start()
    os.close(pipe[0])
    for _ in range(3):
        made.log.emit("e")
    assert made.failed.wait(SECONDS)
    assert made.log.failed
    made.log.emit("e")
    assert not made.log.close(SECONDS)
    assert made.failures == ["audit events cannot be written to standard output: Broken pipe"]


def test_a_full_disk_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC is not the end: the very bytes that did not fit are written as soon as there is room, once."""
    monkeypatch.setattr(audit, "_RETRY_SECONDS", 0.01)
    written = bytearray()
    refused = 0

    def write(_: int, data: memoryview) -> int:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(data[:7])  # and no write takes all
        written.extend(part)
        return len(part)

    monkeypatch.setattr(os, "write", write)
    made = Log(1)
    made.log.start()
    for _ in range(5):
        made.log.emit("e")
    end = time.monotonic() + SECONDS
    while written.count(b"\n") < 5:
        assert time.monotonic() < end
    monkeypatch.undo()
    assert made.log.close(SECONDS)
    assert [json.loads(line)["seq"] for line in written.splitlines()] == [1, 2, 3, 4, 5]
    assert refused == 3
    assert made.failures == []


def test_a_full_disk_at_the_end(wait_for_full: Callable[[AuditLog], None]) -> None:
    """What no retry can write before the end is told as lost, not waited for (/dev/full: ENOSPC, for ever)."""
    fd = os.open("/dev/full", os.O_WRONLY)
    made = Log(fd)
    made.log.start()
    made.log.emit("e")
    wait_for_full(made.log)
    assert made.failures == []
    assert not made.log.close(SECONDS)
    assert made.failures == ["audit events cannot be written to standard output: No space left on device"]
    os.close(fd)


@pytest.fixture
def wait_for_full(monkeypatch: pytest.MonkeyPatch) -> Callable[[AuditLog], None]:
    """Until the writer has been refused at least once."""
    slept = threading.Event()
    real = time.sleep

    def sleep(seconds: float) -> None:
        if seconds == audit._RETRY_SECONDS:  # not the pause in which it gathers lines
            slept.set()
        real(min(seconds, 0.01))

    monkeypatch.setattr(time, "sleep", sleep)

    def wait(_: AuditLog) -> None:
        assert slept.wait(SECONDS)

    return wait


@pytest.mark.parametrize("character", ["a", "\n", "é", "\udcff", "😀", '"', "\\"])
def test_a_peers_facts_are_bounded(character: str) -> None:
    """A path of 4,095 characters, each escaped: the event says how many there were, and is not many kilobytes long."""
    text = "/" + 4094 * character
    fields = peer_fields(Peer(1, 2, frozenset(), 3, "u", text, text, text))
    for key in ("executable", "unit", "label"):
        shown, _, rest = str(fields[key]).partition("…")
        assert rest == f"({4094 if key == 'unit' else 4095} characters)"
        assert shown in text
    assert len(to_json(fields)) < 3 * (MAX_FACT + 100) + 200
    assert str(peer_fields(Peer(1, 2, frozenset(), 3, "u", unchecked(text)))["executable"]).endswith("characters)")


def test_a_short_fact_is_whole() -> None:
    for text in ('/bin/é😀\n"\\', "/" + "x" * (MAX_FACT - 1)):
        assert peer_fields(Peer(1, 2, frozenset(), executable=text))["executable"] == text


def test_an_unchecked_program_is_told_as_such() -> None:
    """The path is the peer's own word; that of one whose file has gone is not told."""
    fields = peer_fields(Peer(1, 2, frozenset(), executable=unchecked("/bin/x")))
    assert (fields["executable"], fields["executable_checked"]) == ("/bin/x", False)
    fields = peer_fields(Peer(1, 2, frozenset(), executable=unchecked("/bin/x (deleted)")))
    assert not fields.keys() & {"executable", "executable_checked"}
