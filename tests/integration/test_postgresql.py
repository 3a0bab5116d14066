"""PostgreSQL behind sockguard: psql cannot tell, whether the server works, fails or goes away."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers import ALLOWED, Guarded, Postgresql, ended, guarded, postgresql

pytestmark = pytest.mark.root

PSQL = ("psql", "--no-psqlrc", "--host=DIR", "--username=postgres", "--no-align", "--tuples-only")
COPY_BYTES = 100 * 1000 * 1000
SECONDS = 20.0


@pytest.fixture
def cluster(folder: Path) -> Iterator[Postgresql]:
    with postgresql(folder) as server:
        yield server


@pytest.fixture
def guard(folder: Path, cluster: Postgresql) -> Iterator[Guarded]:
    with guarded(folder, Postgresql.SOCKET) as server:
        yield server


def wait_for_sleepers(guard: Guarded, count: int) -> None:
    """Until that many pg_sleep queries run in the server."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
    end = time.monotonic() + SECONDS
    while (seen := guard.client(*PSQL, "-c", query)).stdout.strip() != str(count).encode():
        assert time.monotonic() < end, f"not {count} queries that sleep, but {seen}"
        time.sleep(0.05)


def line_of(process: subprocess.Popen[bytes], expected: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == expected


def write(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def test_queries_errors_and_denial(guard: Guarded) -> None:
    """Results, notices and errors, short and of a megabyte, are those of the server itself; a denied user has none."""
    guard.compare(*PSQL, "-c", "SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i")
    guard.compare(*PSQL, "-c", "DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 1000000); END $$")
    script = b"""
        CREATE TEMP TABLE t (i integer PRIMARY KEY);
        BEGIN;
        INSERT INTO t SELECT generate_series(1, 200000);
        INSERT INTO t VALUES (7);
        SELECT count(*) FROM t;
        COMMIT;
        SELECT count(*) FROM t;
        """
    failed = guard.compare(*PSQL, "--echo-errors", data=script)
    assert b"duplicate key value" in failed.stderr
    assert b"current transaction is aborted" in failed.stderr
    assert failed.stdout.endswith(b"ROLLBACK\n0\n")

    guard.refused(*PSQL, "-c", "SELECT 1", says=rb"server closed the connection unexpectedly|could not (send|receive)")


def test_copy_of_100_megabytes_each_way(folder: Path, guard: Guarded) -> None:
    """What goes in comes out, byte for byte, and the counts in the events cover it."""
    work = folder / "work"
    work.mkdir()
    os.chown(work, ALLOWED, ALLOWED)
    rows = re.sub(rb"(.{999})", rb"\1\n", os.urandom(COPY_BYTES // 2).hex().encode()) + b"\n"
    (work / "in").write_bytes(rows)
    script = f"""\\set ON_ERROR_STOP on
        CREATE UNLOGGED TABLE t (line text);
        \\copy t from '{work}/in'
        \\copy t to '{work}/out'
        """
    done = guard.client(*PSQL, data=script.encode())
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((work / "out").read_bytes()).digest() == hashlib.sha256(rows).digest()
    closed = guard.daemon.wait_for("connection_closed")
    assert closed["bytes_from_client"] > len(rows) > COPY_BYTES
    assert closed["bytes_from_backend"] > len(rows)
    assert (closed["outcome"], closed["rule"]) == ("closed", "the one")


def test_notifications_and_cancel(guard: Guarded) -> None:
    """What the server sends unasked arrives, and Ctrl-C, which is a second connection, stops a query."""
    with ended(guard.start(*PSQL)) as listener:
        write(listener, b"LISTEN news;\n\\echo listening\n")
        line_of(listener, b"LISTEN")
        line_of(listener, b"listening")
        assert guard.client(*PSQL, "-c", f"NOTIFY news, '{'n' * 7000}'").returncode == 0
        output, _ = listener.communicate(b"SELECT 1;\n", SECONDS)
        assert b'notification "news" with payload "' + b"n" * 7000 + b'"' in output
    with ended(guard.start(*PSQL, "-c", "SELECT pg_sleep(600)")) as sleeper:
        wait_for_sleepers(guard, 1)
        sleeper.send_signal(signal.SIGINT)
        output, errors = sleeper.communicate(timeout=SECONDS)
    assert (sleeper.returncode, output) == (1, b"")
    assert errors == b"Cancel request sent\nERROR:  canceling statement due to user request\n"
    cancel = guard.daemon.wait_for("connection_closed", lambda event: event["bytes_from_backend"] == 0)
    assert cancel["bytes_from_client"] >= 16  # a CancelRequest (PostgreSQL protocol 3.0, 53.7), which has no answer
    assert cancel["outcome"] == "closed"


def test_server_that_goes_away(guard: Guarded, cluster: Postgresql) -> None:
    """In mid-query, a client is told what it would be told without the guard; later ones that there is no server."""
    with ExitStack() as stack:
        sleep = (*PSQL, "-c", "SELECT pg_sleep(600)")
        ours, direct = (stack.enter_context(ended(guard.start(*sleep, direct=way))) for way in (False, True))
        wait_for_sleepers(guard, 2)
        cluster.stop("immediate")
        said, expected = ours.communicate(timeout=SECONDS), direct.communicate(timeout=SECONDS)
    assert said == expected
    assert b"server closed the connection unexpectedly" in said[1]
    assert ours.returncode == direct.returncode == 2
    closed = guard.daemon.wait_for("connection_closed", lambda event: event["pid"] == ours.pid)
    assert closed["outcome"] == "closed"  # the server ended its stream in an orderly way: it had read everything

    down = guard.client(*PSQL, "-c", "SELECT 1")
    assert (down.returncode, down.stdout) == (2, b"")
    closed = guard.daemon.wait_for("connection_closed", lambda event: event["outcome"] == "backend_unavailable")
    assert closed["reason"] in ("No such file or directory", "Connection refused")
    cluster.start()
    guard.compare(*PSQL, "-c", "SELECT 2")
