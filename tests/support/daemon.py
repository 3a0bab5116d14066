"""The real daemon, as a process of its own, with its audit events as they come."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
EVENT_SECONDS = 15.0

Event = dict[str, Any]


class Daemon:
    """A running sockguard. ``events()`` are all audit events so far; ``wait_for`` waits for one that fits."""

    def __init__(self, config: Path, *arguments: str, **popen: Any) -> None:
        self.config = config
        self.errors = config.with_suffix(".stderr")
        self._err = self.errors.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sockguard", "--config", str(config), *arguments],
            **{
                "env": {**os.environ, "RUNTIME_DIRECTORY": str(config.parent / "run")},  # a control socket of its own
                "stdout": subprocess.PIPE,
                "stderr": self._err,
                "cwd": REPO,
                "start_new_session": True,
                **popen,
            },
        )
        self.lines: list[bytes] = []
        self._new: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        if self.process.stdout is not None:
            self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._new.put(None)

    def events(self, name: str | None = None) -> list[Event]:
        found = [json.loads(line) for line in list(self.lines)]
        return [event for event in found if name in (None, event["event"])]

    def wait_for(
        self, name: str, fits: Callable[[Event], bool] = lambda _: True, seconds: float = EVENT_SECONDS
    ) -> Event:
        """The first event of that name that fits. Fails with everything there is, if none comes."""
        end = time.monotonic() + seconds
        while True:
            for event in self.events(name):
                if fits(event):
                    return event
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no such {name}; events: {self.events()}\nstderr: {self.stderr()}")
            with contextlib.suppress(queue.Empty):
                self._new.get(timeout=min(left, 0.5))

    def stderr(self) -> str:
        return self.errors.read_text(errors="replace")

    def pids(self) -> dict[str, list[int]]:
        """The daemon's processes by their name: sockguard, sockguard-ctl, sockguard-relay."""
        found: dict[str, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getsid(int(entry.name)) == self.process.pid:
                        found.setdefault((entry / "comm").read_text().strip(), []).append(int(entry.name))
        return found

    def wait_ready(self, *sockets: str | Path) -> None:
        """Until each of these sockets is listened on."""
        end = time.monotonic() + START_SECONDS
        for path in sockets:
            while not _listened_on(str(path)):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"the daemon did not start ({self.process.poll()}): {self.stderr()}")
                time.sleep(0.02)

    def stop(self, *, wait: float = 40.0) -> int:
        """SIGTERM, and wait for the end. Gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"the daemon did not end: {self.stderr()}") from None
        finally:
            self._err.close()
        if self.process.stdout is not None:
            self._reader.join(30)
            self.process.stdout.close()
        return status


def _listened_on(path: str) -> bool:
    shown = path if path.startswith("@") else re.escape(path)
    # proc(5): flags of a listener; SOCK_STREAM or SOCK_SEQPACKET
    pattern = re.compile(rf" 00010000 000[15] 01 +\d+ {shown}$", re.M)
    return bool(pattern.search(Path("/proc/net/unix").read_text(errors="replace")))


@contextlib.contextmanager
def running(config: Path, *sockets: str | Path, **popen: Any) -> Iterator[Daemon]:
    """The daemon with that file, ready on these sockets; ended afterwards, and it must have ended well."""
    daemon = Daemon(config, **popen)
    try:
        daemon.wait_ready(*sockets)
        yield daemon
    finally:
        status = daemon.stop()
    assert status == 0, daemon.stderr()
