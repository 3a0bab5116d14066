"""dockerd and podman behind the guard, used by the docker CLI as three users; tests/support/docker_commands.py."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.containers import IMAGE, KINDS, Kind, docker, docker_environment, docker_started
from tests.support.docker_commands import (
    CI,
    COMMANDS,
    OPERATOR,
    READER,
    READER_RULES,
    Command,
    Guarded,
    Result,
    guarded_engine,
)
from tests.support.reloading import sockguard
from tests.support.servers import ended

pytestmark = pytest.mark.root

SECONDS = 20.0
MUTE = ("attach", "cp", "exec")
"""Commands of which the CLI, at some of their requests, shows the status of an answer but not its text."""


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[Kind, Guarded]]:
    with contextlib.ExitStack() as made:
        yield {kind: made.enter_context(guarded_engine(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def guarded(request: pytest.FixtureRequest, engines: dict[Kind, Guarded]) -> Guarded:
    return engines[request.param]


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of its output, which has to come while it runs."""
    assert process.stdout is not None
    line, end = b"", time.monotonic() + SECONDS
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0], line
        data = os.read(process.stdout.fileno(), 1)
        assert data, (line, process.stderr.read() if process.stderr else b"")
        line += data
    return line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name.replace("\xa0", "_"))
def test_each_command_passes_or_is_refused(engines: dict[Kind, Guarded], command: Command) -> None:
    """For the operator the CLI shows what it shows without the guard; others get that, or a denial that is recorded.
    On both engines, at the same time."""
    with ThreadPoolExecutor(len(engines)) as pool:
        for kind, (direct, users) in zip(
            engines, pool.map(lambda one: one.run(command), engines.values()), strict=True
        ):
            for user, (done, denied) in users.items():
                check(command, (kind, user, done), direct, denied)


def check(command: Command, what: tuple[Kind, str, Result], direct: Result, denied: list[str]) -> None:
    _, user, done = what
    if user == "operator" or user in command.may:
        assert not denied, what
        assert done.status == direct.status, what
        if command.same:
            assert done == direct, what
    else:
        assert denied, what
        assert done.status != 0, what
        if command.words[0] not in MUTE:
            assert "sockguard" in (done.errors + done.output).decode(), what


def test_logs_are_followed_as_they_come(guarded: Guarded) -> None:
    """Each line of a running container arrives when it is written, and the end when the container ends."""
    script = "echo one; while ! test -e /tmp/go; do sleep 0.05; done; echo two"
    guarded.engine.docker("run", "--detach", "--name", "talker", "--network", "none", IMAGE, "sh", "-c", script)
    try:
        with ended(docker_started(guarded.public, "logs", "--follow", "talker", uid=READER)) as logs:
            assert line_of(logs) == b"one\n"
            guarded.engine.docker("exec", "talker", "touch", "/tmp/go")
            assert logs.communicate(timeout=SECONDS) == (b"two\n", b"")
            assert logs.returncode == 0
    finally:
        guarded.engine.docker("rm", "--force", "talker")


def test_a_reload_while_logs_are_followed(guarded: Guarded) -> None:
    """A stream goes on where the new rules allow it, and is cut where they do not."""
    script = "echo one; while ! test -e /tmp/go; do sleep 0.05; done; echo two; sleep 100"
    before = guarded.daemon.config.read_text()
    as_well = before.replace(f"http = {READER_RULES}", 'http = ["GET,HEAD /_ping", "GET /containers/{id}/{what}"]')
    only_ping = before.replace(f"http = {READER_RULES}", 'http = ["GET,HEAD /_ping"]')
    assert len({before, as_well, only_ping}) == 3
    guarded.engine.docker("run", "--detach", "--name", "teller", "--network", "none", IMAGE, "sh", "-c", script)
    try:
        with ended(docker_started(guarded.public, "logs", "--follow", "teller", uid=READER)) as logs:
            assert line_of(logs) == b"one\n"
            reload(guarded, as_well)
            assert b"sockguard" in docker(guarded.public, "ps", uid=READER).stderr
            guarded.engine.docker("exec", "teller", "touch", "/tmp/go")
            assert line_of(logs) == b"two\n"
            reload(guarded, only_ping)
            logs.communicate(timeout=SECONDS)
            revoked = guarded.daemon.wait_for("connection_closed", lambda event: event["outcome"] == "revoked")
            assert revoked["uid"] == READER
    finally:
        reload(guarded, before)
        guarded.engine.docker("rm", "--force", "teller")


def reload(guarded: Guarded, text: str) -> None:
    guarded.daemon.config.write_text(text)
    done = sockguard("reload", "--control", guarded.daemon.config.with_name("run") / "control.sock")
    assert done.returncode == 0, done.stderr


def test_events_arrive_while_they_happen(guarded: Guarded) -> None:
    """What another user does is told to a reader at once; the stream ends when the reader ends it."""
    words = ("events", "--filter", "container=news", "--filter", "event=create", "--format", "{{.Action}}")
    with ended(docker_started(guarded.public, *words, uid=READER)) as events:
        end, seen = time.monotonic() + SECONDS, False
        while not seen and time.monotonic() < end:  # the CLI does not say when it listens
            made = docker(guarded.public, "create", "--name", "news", "--network", "none", IMAGE, "true", uid=OPERATOR)
            if made.returncode == 0:
                guarded.engine.docker("rm", "--force", "news")
            else:  # podman 4.3 may keep a name for a while after its container has gone
                assert b"that name is already in use" in made.stderr, made.stderr
            assert events.stdout is not None
            seen = bool(select.select([events.stdout], [], [], 0.2)[0])
        assert line_of(events) == b"create\n"
        events.send_signal(signal.SIGINT)
        events.communicate(timeout=SECONDS)


def test_input_and_output_of_an_exec_each_at_its_time(guarded: Guarded) -> None:
    """What is typed is answered line by line; output goes on after the end of the input."""
    script = "while read line; do echo got $line; done; sleep 0.2; echo after the end"
    with ended(docker_started(guarded.public, "exec", "-i", "web", "sh", "-c", script, uid=CI)) as process:
        assert process.stdin is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            assert line_of(process) == b"got " + word + b"\n"
        assert process.communicate(timeout=SECONDS) == (b"after the end\n", b"")
        assert process.returncode == 0


def test_a_terminal(guarded: Guarded) -> None:
    """``run -it`` has a terminal of the size of the user's, and what is typed at it is answered."""
    master, slave = pty.openpty()
    # Not --rm: podman 4.3 forgets the status of what it has removed.
    words = ("docker", "run", "--name", "typed", "-it", "--network", "none", IMAGE, "sh")
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        stack.callback(guarded.engine.docker, "rm", "--force", "typed")
        process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env=docker_environment(guarded.public), cwd="/",
            user=CI, group=CI, extra_groups=[], start_new_session=True,
        )  # fmt: skip
        stack.enter_context(ended(process))
        os.close(slave)
        said = b""

        def until(text: bytes) -> None:
            nonlocal said
            end = time.monotonic() + SECONDS
            while text not in said:
                assert select.select([master], [], [], max(0.0, end - time.monotonic()))[0], said
                said += os.read(master, 4096)

        until(b"# ")
        os.write(master, b"test -t 0 && echo it is a $((6 * 7))\n")
        until(b"it is a 42")
        os.write(master, b"exit 3\n")
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while os.read(master, 4096):
                pass
        assert process.wait(SECONDS) == 3


def test_large_bodies_both_ways(guarded: Guarded) -> None:
    """Fifty megabytes into a container and out of it again are the same bytes."""
    big = os.urandom(1 << 20) * 50
    done = docker(guarded.public, "exec", "-i", "web", "md5sum", uid=CI, data=big)
    expected = subprocess.run(["md5sum"], input=big, capture_output=True, check=True).stdout
    assert done.stdout == expected
    words = ("run", "--rm", "-i", "--network", "none", IMAGE, "cat")
    assert docker(guarded.public, *words, uid=CI, data=big[: 20 << 20]).stdout == big[: 20 << 20]
