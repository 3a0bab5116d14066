"""Fuzz one parser, or all: ``python -m tests.fuzz [SECONDS [NAME ...]]``; seconds are for each. See targets.py.

Guided by coverage where atheris is installed (it has no wheel for every Python), else by chance. A parser that raises
what it must not ends the run, with the input that did it.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> int:
    """Return 0 when nothing was found."""
    seconds = int(arguments[0]) if arguments else 30
    names = arguments[1:] or list(TARGETS)
    guided = importlib.util.find_spec("atheris") is not None
    print("guided by coverage" if guided else "by chance: atheris is not installed", file=sys.stderr)
    for name in names:
        print(f"{name}: {seconds} s", file=sys.stderr, flush=True)
        if not (run_guided(name, seconds) if guided else run_by_chance(name, seconds)):
            return 1
    return 0


def run_by_chance(name: str, seconds: int) -> bool:
    """Mutate the seeds for so long; False, and the input told, when something was found."""
    target = TARGETS[name]
    rng = random.Random()  # noqa: S311  # not for secrets
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = mutated(target.seeds, rng)
        count += 1
        try:
            target.run(data)
        except BaseException:
            print(f"{name}: found with {data!r}", file=sys.stderr)
            raise
    print(f"{name}: {count} inputs", file=sys.stderr)
    return True


def run_guided(name: str, seconds: int) -> bool:
    """A process for each: libFuzzer ends the process that it runs in."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(TARGETS[name].seeds):
            Path(folder, str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=2048", "-verbosity=0", "-print_final_stats=1"]
        command = [sys.executable, "-m", "tests.fuzz.guided", name, *options, folder]
        return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
