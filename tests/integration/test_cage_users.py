"""Who makes the system calls that the cage allows: tests of real relays and carriers run under strace(1).

An entry that nobody makes there has to go from the lists of sandbox/policy.py, or to stand below with its reason.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from sockguard.privsep.sockopt import SO_PASSRIGHTS
from sockguard.sandbox import bpf, policy
from sockguard.sandbox.policy import CARRIERS, RELAY, Kind
from tests.support.daemon import REPO

pytestmark = pytest.mark.root

TRAFFIC = (
    "tests/unit/relay/test_bulk.py::test_descriptors_amid_much[send_all-1]",
    *(
        f"tests/unit/relay/test_{name}.py"
        for name in ("inspected_cage", "like_a_socketpair", "records", "relay_loop", "urgent")
    ),
    "tests/unit/carriers",
)

ELSEWHERE = {
    "epoll_pwait": "for libcs and architectures without epoll_wait",
    "ppoll": "for architectures without poll",
    "clock_gettime": "for kernels whose vDSO has no clock",
    "rt_sigprocmask": "fork of newer libcs (glibc 2.41)",
    "clock_nanosleep": "the master, where no process can be had",
    "restart_syscall": "the kernel's, when that sleep is stopped and continued",
    "mmap": "an arena of the interpreter's, when the last one is full; large blocks",
    "munmap": "the same",
    "futex": "where a lock is not free",
    "mremap": "realloc of a large block; small ones move by brk",
    "getrandom": "malloc of glibc, at its first use",
}
"""Entries that this machine need not use, and when another does, or this one does so seldom."""

_OPTIONS = {
    socket.SO_ERROR: "SO_ERROR",
    socket.SO_SNDBUF: "SO_SNDBUF",
    socket.SO_PASSCRED: "SO_PASSCRED",
    socket.SO_OOBINLINE: "SO_OOBINLINE",
    SO_PASSRIGHTS: rf"(?:SO_PASSRIGHTS|{SO_PASSRIGHTS:#x})",
}
VALUES = {
    "ioctl": {
        termios.FIONREAD: "FIONREAD",
        termios.FIONBIO: "FIONBIO",
        termios.TIOCOUTQ: "TIOCOUTQ",
    },
    "fcntl": {fcntl.F_GET_SEALS: "F_GET_SEALS", fcntl.F_SETPIPE_SZ: "F_SETPIPE_SZ"},
    "getsockopt": _OPTIONS,
    "setsockopt": _OPTIONS,
}
"""How strace writes the values of CHECKS."""

NAMES = {"sockguard-relay": RELAY, "sockguard-fds": CARRIERS}

_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, list[str]]:
    """What processes in a cage have called that was not refused, one call a line as strace writes it."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace")
    folder = tmp_path_factory.mktemp("calls")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TRAFFIC]
    command = [strace, "-ff", "-s", "16", "-o", str(folder / "of"), *tests]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    lines = {int(file.suffix[1:]): file.read_text(errors="replace").splitlines() for file in folder.iterdir()}
    found: dict[Kind, list[str]] = {RELAY: [], CARRIERS: []}
    for of in lines.values():
        kind = None
        for at, line in enumerate(of):
            named = re.match(r'prctl\(PR_SET_NAME, "(sockguard-[a-z]+)', line)
            kind = NAMES.get(named[1]) if named else kind
            if kind and line.startswith("seccomp(SECCOMP_SET_MODE_FILTER"):
                found[kind] += within(of[at + 1 :], lines)
                break
    return found


def within(own: list[str], others: dict[int, list[str]]) -> Iterator[str]:
    """A process in its cage, and those that it has forked."""
    for line in own:
        made = _CALL.match(line)
        if made is None:
            if line.startswith("exit_group("):
                yield line
        elif "EPERM" not in made[4]:
            yield line
            if made[1] == "clone" and int(made[3]) in others:
                yield from within(others[int(made[3])], others)


@pytest.mark.parametrize("kind", Kind)
def test_each_system_call_has_a_user(calls: dict[Kind, list[str]], kind: Kind) -> None:
    """No entry stands there for nobody."""
    used = {line.partition("(")[0] for line in calls[kind]}
    assert set(policy.ALLOWED[kind]) - used <= set(ELSEWHERE)
    assert used <= set(policy.ALLOWED[kind])


def test_each_value_has_a_user(calls: dict[Kind, list[str]]) -> None:
    """No argument is allowed that nobody gives."""
    unused = []
    for name, words in VALUES.items():
        lines = [line for line in calls[RELAY] if line.startswith(f"{name}(")]
        (check,) = (each for each in policy.CHECKS[RELAY][name] if isinstance(each, bpf.OneOf) and len(each.values) > 1)
        for value in check.values:
            word = re.compile(rf"\({'[^,]*, ' * check.index}{words[value]}\b")
            if not any(word.search(line) for line in lines):
                unused.append((name, words[value]))
    assert not unused
