"""The relay's cage without entering it: what the filter answers, by an interpreter of its own, and what Cage says."""

from __future__ import annotations

import errno
import fcntl
import functools
import mmap
import os
import re
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from sockguard.errors import SockguardError
from sockguard.privsep.messages import Connections, Fault
from sockguard.relay import sandbox
from sockguard.relay.sandbox import Cage, bpf, landlock, libc, policy, standing
from sockguard.relay.sandbox.bpf import ALLOW, ERRNO, KILL_PROCESS
from sockguard.relay.sandbox.calls import NEWEST, NUMBERS
from tests.unit.relay.conftest import RelayUnderTest

REFUSE = ERRNO | errno.EPERM
UNKNOWN = ERRNO | errno.ENOSYS
ARCHITECTURES = policy.ARCHITECTURES
BOTH = pytest.mark.parametrize("name", ARCHITECTURES)


def run(code: bytes, number: int, audit: int, arguments: Sequence[int] = ()) -> int:
    """What a filter answers: classic BPF as far as filters use it, over struct seccomp_data (linux/seccomp.h)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = list(struct.iter_unpack("=HBBI", code))
    accumulator = at = 0
    while True:
        kind, if_true, if_false, operand = lines[at]
        at += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"instruction {kind:#x}")


@functools.cache
def code_for(name: str) -> bytes:
    return bpf.assemble(policy.program(ARCHITECTURES[name]))


def judge(name: str, number: int, *arguments: int) -> int:
    return run(code_for(name), number, ARCHITECTURES[name].audit, arguments)


def call(name: str, system_call: str, *arguments: int) -> int:
    number = ARCHITECTURES[name].number(system_call)
    assert number is not None
    return judge(name, number, *arguments)


@BOTH
def test_every_number_has_the_answer_of_its_list(name: str) -> None:
    """Each system call of each list gets that list's answer, and every other number is refused or unknown."""
    architecture = ARCHITECTURES[name]
    code = code_for(name)
    expected = {architecture.number(each): ALLOW for each in policy.ALLOWED if each not in policy.CHECKS}
    expected |= {architecture.number(each): KILL_PROCESS for each in policy.KILLED}
    checked = {architecture.number(each) for each in policy.CHECKS}
    for number in range(1024):
        if number not in checked:
            other = REFUSE if number <= NEWEST else UNKNOWN
            assert run(code, number, architecture.audit) == expected.get(number, other), number


def test_the_lists_do_not_overlap() -> None:
    """No call stands twice, and a check belongs to a call that is allowed; the hot ones stand first."""
    listed = [*policy.ALLOWED, *policy.KILLED]
    assert len(listed) == len(set(listed))
    assert set(policy.CHECKS) <= set(policy.ALLOWED)
    assert set(listed) == set(NUMBERS)
    assert policy.ALLOWED[:6] == ("epoll_wait", "epoll_pwait", "recvmsg", "sendto", "recvfrom", "sendmsg")


@BOTH
def test_arguments(name: str) -> None:
    """Each value on a list is allowed; its neighbours, other levels, and anything executable are refused."""
    for system_call, checks in policy.CHECKS.items():
        for check in checks:
            if isinstance(check, bpf.OneOf):
                others = [other.values[0] for other in checks if isinstance(other, bpf.OneOf) and other is not check]
                for value in range(max(check.values) + 5):
                    arguments = [0, *others, value] if check.index > len(others) else [0, value, *others]
                    answer = call(name, system_call, *arguments)
                    assert answer == (ALLOW if value in check.values else REFUSE), (system_call, arguments)
    for system_call in ("mmap", "mprotect"):
        for protection in range(8):
            answer = call(name, system_call, 0, 4096, protection)
            assert answer == (REFUSE if protection & mmap.PROT_EXEC else ALLOW)


@BOTH
def test_arguments_that_would_reach_others(name: str) -> None:
    """Whom a socket signals, and with what, cannot be set; nor can a filter or a device be put on a socket."""
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, 15, fcntl.F_NOTIFY, fcntl.F_SETLEASE, fcntl.F_ADD_SEALS):
        assert call(name, "fcntl", 0, command) == REFUSE
    for request in (0x8901, 0x8902, 0x5452, 0x5410, 0x5412):  # FIOSETOWN SIOCSPGRP FIOASYNC TIOCSPGRP TIOCSTI
        assert call(name, "ioctl", 0, request) == REFUSE
    for option in (26, 50, 25, 32, 33, 76):  # filters, a device, SO_*BUFFORCE, SO_PASSPIDFD
        assert call(name, "setsockopt", 0, socket.SOL_SOCKET, option) == REFUSE
    for option in (socket.SO_PEERCRED, 77):  # SO_PEERPIDFD
        assert call(name, "getsockopt", 0, socket.SOL_SOCKET, option) == REFUSE
    assert call(name, "setsockopt", 0, socket.IPPROTO_TCP, socket.SO_SNDBUF) == REFUSE
    # The kernel takes the lower half of these arguments; the upper one must not make another value of them.
    assert call(name, "fcntl", 0, (1 << 32) | fcntl.F_SETOWN) == REFUSE
    assert call(name, "mmap", 0, 4096, (1 << 32) | mmap.PROT_EXEC) == REFUSE


@BOTH
def test_other_ways_in_are_killed(name: str) -> None:
    """32-bit calls, x32 calls and negative numbers end the process, whatever they would have meant."""
    code = code_for(name)
    for audit in (0x40000003, 0x40000028, *(a.audit for n, a in ARCHITECTURES.items() if n != name)):  # i386, arm
        for number in (0, 1, 232, 22):
            assert run(code, number, audit) == KILL_PROCESS
    assert judge(name, -1) == KILL_PROCESS
    if name == "x86_64":
        for number in (0, 1, 45, 47, 232, 520):
            assert judge(name, 0x40000000 + number) == KILL_PROCESS


def test_numbers_are_those_of_the_kernel() -> None:
    """The table agrees with the headers of this machine, where they are installed."""
    for column, path, prefix in (
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "__NR_"),
        (1, "/usr/include/asm-generic/unistd.h", "__NR(?:3264)?_"),
    ):
        header = Path(path)
        if not header.exists():
            continue
        kernels = dict(re.findall(rf"^#define {prefix}(\w+)\s+(\d+)$", header.read_text(), re.M))
        for name, numbers in NUMBERS.items():
            expected = kernels.get(name)
            assert numbers[column] == (int(expected) if expected else None), name


@pytest.mark.parametrize(
    ("version", "values"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (8, (0xFFFF, 3, 3)),
        (9, (0x1FFFF, 3, 3)),
        (99, (0x1FFFF, 3, 3)),
    ],
)
def test_landlock_handles_all_that_an_abi_knows(version: int, values: tuple[int, ...]) -> None:
    """Every right of that ABI and no newer one, in a structure as long as that kernel has it (linux/landlock.h)."""
    assert landlock.attributes(version) == struct.pack(f"={len(values)}Q", *values)


def test_cage_names() -> None:
    """Parts that hold and parts that do not, each by its name; Landlock with its ABI."""
    assert Cage().names() == ()
    assert Cage().absent() == sandbox.PARTS
    cage = Cage(1, 1, 1, 1, 7, 0)
    assert cage.names() == ("no_new_privs", "no_capabilities", "not_dumpable", "limits", "landlock 7")
    assert cage.absent() == ("seccomp",)


def test_the_null_cage_holds_nothing() -> None:
    """Without parts nothing is entered, and nothing is said to hold."""
    assert sandbox.enter(()) == Cage()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have left idle threads in this process, which enters nothing here."""
    monkeypatch.setattr(standing, "check_single_thread", lambda: None)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("part", "answer"), [("no_new_privs", 0), ("not_dumpable", 1), ("not_dumpable", 2)])
def test_what_does_not_stand_is_not_taken_for_granted(monkeypatch: pytest.MonkeyPatch, part: str, answer: int) -> None:
    """What should have been given up before, and by the kernel's answer was not: the cage is not closed."""
    monkeypatch.setattr(libc, "prctl", lambda _: answer)
    with pytest.raises(SockguardError, match=f"cannot be closed: {part}"):
        sandbox.enter((part,))


@pytest.mark.usefixtures("one_thread")
def test_capabilities_that_are_left_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in any set that counts is one too many."""
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        sets = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0000000000000000")
        monkeypatch.setattr(standing, "_status", lambda sets=sets, name=name: {**sets, name: "0000000000000080"})
        with pytest.raises(SockguardError, match="no_capabilities: capabilities are left"):
            sandbox.enter(("no_capabilities",))


@pytest.mark.usefixtures("one_thread")
def test_a_part_that_fails_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has a part and refuses it: no relay, instead of one in half a cage."""

    def fail() -> int:
        raise OSError(errno.ENOMEM, "no room")

    monkeypatch.setitem(sandbox._PARTS, "seccomp", fail)
    with pytest.raises(SockguardError, match=r"cannot be closed: seccomp: .*no room"):
        sandbox.enter(("seccomp",))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_without_landlock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is absent, and that is no fault."""

    def missing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(landlock, "syscall", missing)
    assert landlock.enter() == 0


def test_a_second_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay outside: nothing is entered."""
    monkeypatch.setitem(sandbox._PARTS, "seccomp", lambda: 1)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="one thread"):
            sandbox.enter(("seccomp",))
    finally:
        end.set()
        thread.join()


def test_hello_tells_what_holds(relay: RelayUnderTest) -> None:
    """A relay names the parts of its cage before it is handed anything, and the kernel agrees."""
    parts = relay.cage.split(",")
    status = Path(f"/proc/{relay.pid}/status").read_text()
    assert set(parts) >= {"no_new_privs", "no_capabilities", "not_dumpable", "limits"}
    assert ("seccomp" in parts) == ("Seccomp:\t2" in status)
    assert (f"landlock {landlock.abi()}" in parts) == bool(landlock.abi())


def test_a_fault_in_the_cage_is_told(relay: RelayUnderTest) -> None:
    """A loop that raises where no file can be opened any more still says where, with the lines of its traceback."""
    relay.configure(1, {})
    ends = os.pipe()
    relay.send(Connections(((1, 1, 0, 0, 0),)), *ends)  # these are no sockets
    for end in ends:
        os.close(end)
    message = relay.receive()
    assert isinstance(message, Fault), message
    assert re.search(r'File ".*/relay/loop\.py", line \d+, in _take', message.text)
    assert message.text.rstrip().endswith("OSError: [Errno 88] Socket operation on non-socket")
    assert relay.wait() == 1
