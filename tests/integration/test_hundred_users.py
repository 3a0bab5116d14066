"""A hundred users work against PostgreSQL and redis while the file behind it all is changed, broken and mended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import running
from tests.support.reloading import Subject
from tests.support.servers import Postgresql, as_uid, environment, postgresql, private_folder, redis

pytestmark = pytest.mark.root

FIRST, USERS = 5000, 100
STAY, GO = "5000-5049", "5050-5099"
SECONDS = 180.0

# What each user does all the time: a client program, a new connection each time; the time before it, and how it went.
LOOP = """
while [ -e "$1/work" ]; do
    now=$(date +%s.%N)
    if {client} >/dev/null 2>&1; then echo "$now ok"; else echo "$now no"; fi
    sleep 0.7
done
"""
CLIENTS = (
    'redis-cli -e -s "$1/public/redis" INCR "$(id -u)"',
    'psql -X -h "$1/public" -U postgres -c "select 1"',
)


class Work:
    """What one user's loop has printed so far."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.uid = uid
        self.stays = uid <= int(STAY.split("-")[1])
        self._out = folder / f"out-{uid}"
        client = CLIENTS[uid % 2]
        with self._out.open("wb") as out:
            command = [*as_uid(uid), "sh", "-c", LOOP.replace("{client}", client), "sh", str(folder)]
            self.process = subprocess.Popen(command, stdout=out, stdin=subprocess.DEVNULL, env=environment(), cwd="/")

    def seen(self, after: float, before: float = float("inf")) -> list[str]:
        """How the rounds went that began in that time."""
        rounds = [line.split() for line in self._out.read_text().splitlines() if line.count(" ") == 1]
        return [word for moment, word in rounds if after < float(moment) < before]


@contextmanager
def working(folder: Path) -> Iterator[list[Work]]:
    (folder / "work").touch()
    works = [Work(folder, FIRST + number) for number in range(USERS)]
    try:
        yield works
    finally:
        (folder / "work").unlink()
        for work in works:
            work.process.wait(SECONDS)


def all_see(works: list[Work], word: str, after: float) -> None:
    """Wait until each of them has had a round after that moment, and it went so."""
    end = time.monotonic() + SECONDS
    while late := [work.uid for work in works if word not in work.seen(after)]:
        assert time.monotonic() < end, f"no {word} of uids {late}"
        time.sleep(0.1)


def tables(folder: Path, users: str) -> str:
    text = ""
    for name, public, private in (("redis", "redis", "redis.sock"), ("pg", Postgresql.SOCKET, Postgresql.SOCKET)):
        where = folder / ("private" if name == "pg" else "redis/private")
        text += f'[proxy.{name}]\nlisten = "{folder}/public/{public}"\nbackend = "{where}/{private}"\n'
        text += f"[[proxy.{name}.allow]]\nusers = [{users}]\n"
    return text


@pytest.mark.timeout(900)  # on two busy processors a round of a hundred clients takes its time
def test_a_hundred_users_and_one_administrator(folder: Path) -> None:
    """Who keeps the right never notices; who loses it is refused from the reload on, whatever is broken meanwhile,
    and is served again from the reload that gives it back."""
    everybody, some = f'"{STAY}", "{GO}"', f'"{STAY}"'
    (folder / "public").mkdir()
    (folder / "redis").mkdir()
    file = folder / "sockguard.toml"
    with ExitStack() as stack:
        stack.enter_context(postgresql(folder))
        stack.enter_context(redis(private_folder(folder / "redis", "redis") / "redis.sock"))
        file.write_text(tables(folder, everybody))
        daemon = stack.enter_context(running(file, folder / "public/redis", folder / "public" / Postgresql.SOCKET))
        subject = Subject(daemon, folder)
        works = stack.enter_context(working(folder))
        stay, go = [w for w in works if w.stays], [w for w in works if not w.stays]
        all_see(works, "ok", 0)

        taking = time.time()
        subject.reload(tables(folder, some))
        taken = time.time()
        all_see(go, "no", taken)
        lines = subject.refused(tables(folder, '"nobdy"'))
        assert [line.split(": ", 2)[2] for line in lines] == ["unknown user 'nobdy'; did you mean 'nobody'?"] * 2
        broken = time.time()
        all_see(go, "no", broken)
        all_see(stay, "ok", broken)
        mending = time.time()
        subject.reload(tables(folder, everybody))
        mended = time.time()
        all_see(works, "ok", mended)
    for work in stay:
        assert set(work.seen(0)) == {"ok"}, work.uid
    for work in go:
        # The last round of each time may have run into the next one.
        assert set(work.seen(0, taking)[:-1]) <= {"ok"}, work.uid
        assert set(work.seen(taken, mending)[:-1]) <= {"no"}, work.uid
        assert set(work.seen(mended)) == {"ok"}, work.uid
    denied = {event["uid"] for event in daemon.events("connection_denied")}
    assert denied == {work.uid for work in go}
