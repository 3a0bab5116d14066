"""A daemon whose file changes while it runs, and the commands that an operator gives it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.daemon import REPO, Daemon, Event

COMMAND_SECONDS = 60.0


def sockguard(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command line of sockguard's, run to its end; text of standard output and standard error."""
    return subprocess.run(
        [sys.executable, "-m", "sockguard", *map(str, arguments)],
        **{"capture_output": True, "text": True, "check": False, "cwd": REPO, "timeout": COMMAND_SECONDS, **options},
    )


def proxy(folder: Path, name: str, rules: str = "allow = [{ users = [4242] }]", **replaced: str) -> str:
    """The table of a proxy that listens on the path of its name; keywords replace listen and backend."""
    places = {"listen": str(folder / name), "backend": str(folder / "private"), **replaced}
    return f'[proxy.{name}]\nlisten = "{places["listen"]}"\nbackend = "{places["backend"]}"\n{rules}\n'


@dataclass(frozen=True, slots=True)
class Subject:
    """A running daemon, by its file, its control socket and its events."""

    daemon: Daemon
    folder: Path

    @property
    def control(self) -> Path:
        return self.folder / "run" / "control.sock"

    def write(self, *tables: str) -> None:
        """The file is this from now on; the daemon has not read it."""
        self.daemon.config.write_text("[daemon]\nrelays = 2\n" + "".join(tables))

    def command(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """An operator's command to this daemon."""
        return sockguard(*arguments, "--control", self.control, **options)

    def reload(self, *tables: str) -> Event:
        """Write the file and have it read: that must succeed. Gives the event that says so."""
        after = self.now()
        self.write(*tables)
        done = self.command("reload")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        return self.event("reloaded", after)

    def refused(self, *tables: str) -> list[str]:
        """Write the file and have it read: that must be refused, everywhere alike. Gives the lines that say why."""
        after, generation = self.now(), self.status()["generation"]
        self.write(*tables)
        done = self.command("reload")
        assert (done.returncode, done.stdout) == (2, ""), done
        lines = done.stderr.splitlines()
        assert self.event("reload_failed", after)["mistakes"] == lines
        status = self.status()
        assert status["generation"] == generation
        assert (status["last_reload"]["ok"], status["last_reload"]["errors"]) == (False, lines)
        return lines

    def status(self) -> dict[str, Any]:
        """What ``status --json`` prints."""
        done = self.command("status", "--json")
        assert (done.returncode, done.stderr) == (0, ""), done
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def connections(self) -> list[dict[str, Any]]:
        """What ``status --connections --json`` prints."""
        found: list[dict[str, Any]] = json.loads(self.command("status", "--connections", "--json").stdout)[
            "connections"
        ]
        return found

    def now(self) -> int:
        """The number of the last event so far."""
        return len(self.daemon.lines)

    def event(self, name: str, after: int, **fields: object) -> Event:
        """The first event of that name with a number above ``after`` and these fields; waits for it."""
        return self.daemon.wait_for(
            name, lambda event: event["seq"] > after and all(event.get(key) == fields[key] for key in fields)
        )
