"""Redis behind sockguard: pipelines, subscriptions and large values, and a server that closes, ends and restarts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import REPO, Event
from tests.support.servers import Guarded, ended, guarded, private_folder, redis

pytestmark = pytest.mark.root

CLI = ("redis-cli", "-s", "PATH")
PIPELINED = 100_000
SECONDS = 20.0
PATIENT = "import sockguard.server.backend as backend\nbackend.RESTART_SECONDS = 60.0\n"


@pytest.fixture
def private(folder: Path) -> Path:
    return private_folder(folder, "redis") / "redis.sock"


@pytest.fixture
def guard(folder: Path, private: Path) -> Iterator[Guarded]:
    """The guard alone: each test runs its server, or servers."""
    with guarded(folder, private.name) as server:
        yield server


def closed_by(guard: Guarded, pid: int) -> Event:
    return guard.daemon.wait_for("connection_closed", lambda event: event["pid"] == pid)


def test_commands_pipelines_and_denial(guard: Guarded, private: Path) -> None:
    """Answers are the server's own, one by one and 100,000 in a pipeline; a denied user gets an error of redis-cli."""
    with redis(private):
        assert guard.compare(*CLI, "SET", "key", "value").stdout == b"OK\n"
        assert guard.compare(*CLI, "GET", "key").stdout == b"value\n"
        guard.compare(*CLI, "NO SUCH COMMAND")

        commands = b"".join(b"SET key:%d %d\r\n" % (number, number) for number in range(PIPELINED))
        piped = guard.client(*CLI, "--pipe", data=commands)
        assert b"errors: 0, replies: %d\n" % PIPELINED in piped.stdout
        assert guard.client(*CLI, "DBSIZE").stdout == b"%d\n" % (PIPELINED + 1)
        sent = guard.daemon.wait_for("connection_closed", lambda event: event["bytes_from_client"] > len(commands))
        assert sent["bytes_from_backend"] >= len(b"+OK\r\n") * PIPELINED
        assert guard.compare(*CLI, data=b"".join(b"GET key:%d\n" % n for n in range(1000))).returncode == 0

        guard.refused(*CLI, "GET", "key", says=rb"Server closed the connection|reset by peer|Broken pipe")


def test_values_of_a_megabyte_and_a_short_benchmark(guard: Guarded, private: Path) -> None:
    """Large values come back as they went in, and 50 clients at a time, pipelined or not, have no error."""
    with redis(private):
        value = os.urandom(1 << 20)
        assert guard.client(*CLI, "-x", "SET", "big", data=value).stdout == b"OK\n"
        assert guard.compare(*CLI, "--raw", "GET", "big").stdout == value + b"\n"
        bench = ("redis-benchmark", "-s", "PATH", "-c", "50", "-n", "20000", "-t", "set,get", "--csv")
        for pipeline in ("1", "16"):
            done = guard.client(*bench, "-P", pipeline)
            assert done.returncode == 0
            assert re.findall(rb'^"(SET|GET)"', done.stdout, re.M) == [b"SET", b"GET"]
            assert b"rror" not in done.stdout + done.stderr
    assert {event["outcome"] for event in guard.daemon.events("connection_closed")} == {"closed"}


def test_subscribers_are_told_and_see_the_end(guard: Guarded, private: Path) -> None:
    """Messages arrive unasked; a connection that the server kills, or ends with, ends as it does without the guard."""
    for ending, answer in ((("CLIENT", "KILL", "TYPE", "pubsub"), b"2\n"), (("SHUTDOWN", "NOSAVE"), b"")):
        with redis(private), ExitStack() as stack:
            subscribers = [
                stack.enter_context(ended(guard.start(*CLI, "--no-raw", "SUBSCRIBE", "news", direct=direct)))
                for direct in (False, True)
            ]
            for subscriber in subscribers:
                assert subscriber.stdout is not None
                while b"(integer) 1" not in subscriber.stdout.readline():
                    assert subscriber.poll() is None
            assert guard.client(*CLI, "PUBLISH", "news", "m" * 1000).stdout == b"2\n"
            assert guard.client(*CLI, *ending).stdout == answer
            said, expected = (subscriber.communicate(timeout=SECONDS) for subscriber in subscribers)
            assert said == expected
            assert b"m" * 1000 in said[0]
            assert b"Server closed the connection" in b"".join(said)
            assert [subscriber.returncode for subscriber in subscribers] == [1, 1]
            closed = closed_by(guard, subscribers[0].pid)
            assert closed["outcome"] == "closed"  # by the server, in an orderly way: it had read everything


@pytest.fixture
def patient(folder: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """A guard that gives a server a minute to come back."""
    (folder / "sitecustomize.py").write_text(PATIENT)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPO}")
    with guarded(folder, private.name, 'connect_timeout = "60s"') as server:
        yield server


def test_restart_is_waited_out(patient: Guarded, private: Path) -> None:
    """A client that comes while the server restarts is served by the new one, and does not know."""
    guard = patient
    with redis(private):
        assert guard.client(*CLI, "PING").stdout == b"PONG\n"
    started = private.with_name("started.sock")
    with redis(started), ended(guard.start(*CLI, "PING")) as client:
        guard.daemon.wait_for("connection_admitted", lambda event: event["pid"] == client.pid)
        started.rename(private)  # from here on it listens: how long a server takes to start is not the test's matter
        assert client.communicate(timeout=SECONDS) == (b"PONG\n", b"")
        assert client.returncode == 0
        # The first that it made: redis-cli tries once more by itself.
        assert closed_by(guard, client.pid)["outcome"] == "closed"
