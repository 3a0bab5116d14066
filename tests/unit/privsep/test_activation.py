"""Sockets passed by systemd: only to the process they were meant for, by name, and not passed on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sockguard.privsep import activation

# In a process of its own, because the passed descriptors begin at 3 whatever is open there.
SCRIPT = """
import json, os, sys
from sockguard.privsep import activation
for number in (3, 4):
    os.dup2(os.open(os.devnull, os.O_RDONLY), number)
os.environ["LISTEN_PID"] = sys.argv[-1].replace("OWN", str(os.getpid()))
adopted = activation.adopt()
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps([adopted, left, [os.get_inheritable(fd) for fd in adopted.values()]]))
"""


def adopt(pid: str, fds: str, names: str) -> str:
    environment = {**os.environ, "LISTEN_FDS": fds, "LISTEN_FDNAMES": names, "LISTEN_PIDFDID": "7"}
    command = [sys.executable, "-c", SCRIPT, "--", pid]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("web:admin", '{"web": 3, "admin": 4}'),
        ("", '{"unknown": 3}'),
        ("web", '{"web": 3, "unknown": 4}'),
        ("same:same", '{"same": 3}'),
        (":b:c:d", '{"unknown": 3, "b": 4}'),
    ],
)
def test_names(names: str, expected: str) -> None:
    """Each descriptor by its name, "unknown" without one, the first of two of a name; none inheritable any more."""
    inheritable = str([False] * expected.count(":")).lower()
    assert adopt("OWN", "2", names) == f"[{expected}, [], {inheritable}]"


@pytest.mark.parametrize("pid", ["", "1", "OWN ", "-OWN"])
def test_of_another_process(pid: str) -> None:
    """What was passed to another process is not taken, and the variables go all the same."""
    assert adopt(pid, "2", "web:admin") == "[{}, [], []]"


@pytest.mark.parametrize("fds", ["", "x", "-1", "1.5", "²", "0"])
def test_no_number(fds: str) -> None:
    """A count that is no number means nothing was passed."""
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": fds, "LISTEN_FDNAMES": "web", "OTHER": "kept"}
    assert activation.adopt(environment) == {}
    assert environment == {"OTHER": "kept"}
