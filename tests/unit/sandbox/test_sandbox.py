"""The cages without entering them: what the filters answer, by an interpreter of its own, and what Cage says."""

from __future__ import annotations

import ast
import errno
import fcntl
import functools
import itertools
import mmap
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from sockguard import sandbox
from sockguard.errors import SockguardError
from sockguard.privsep import channel
from sockguard.privsep.messages import Connections, Fault
from sockguard.privsep.spawn import CHANNEL_FD, OUTLET_FD
from sockguard.sandbox import CARRIERS, RELAY, Cage, bpf, landlock, libc, limits, policy, standing
from sockguard.sandbox.bpf import ALLOW, ERRNO, KILL_PROCESS
from sockguard.sandbox.calls import NEWEST, NUMBERS
from sockguard.sandbox.policy import Kind
from tests.unit.relay.conftest import RelayUnderTest

REPO = Path(__file__).resolve().parents[3]
REFUSE = ERRNO | errno.EPERM
UNKNOWN = ERRNO | errno.ENOSYS
ARCHITECTURES = policy.ARCHITECTURES
BOTH = pytest.mark.parametrize("name", ARCHITECTURES)
CHANNELS = (9, 12, 255)


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
def code_for(name: str, kind: Kind = RELAY) -> bytes:
    return bpf.assemble(policy.program(ARCHITECTURES[name], kind, CHANNELS))


def judge(name: str, number: int, *arguments: int, kind: Kind = RELAY) -> int:
    return run(code_for(name, kind), number, ARCHITECTURES[name].audit, arguments)


def call(name: str, system_call: str, *arguments: int, kind: Kind = RELAY) -> int:
    number = ARCHITECTURES[name].number(system_call)
    assert number is not None
    return judge(name, number, *arguments, kind=kind)


@BOTH
def test_every_number_has_the_answer_of_its_list(name: str) -> None:
    """Each system call of each list gets that list's answer, and every other number is refused or unknown."""
    architecture = ARCHITECTURES[name]
    code = code_for(name)
    checks = {*policy.CHECKS[RELAY], "sendmsg", "close"}
    allowed = {each for each in policy.ALLOWED[RELAY] if each not in checks}
    expected = {architecture.number(each): ALLOW for each in allowed}
    expected |= {architecture.number(each): KILL_PROCESS for each in policy.KILLED}
    checked = {architecture.number(each) for each in checks}
    for number in range(1024):
        if number not in checked:
            other = REFUSE if number <= NEWEST else UNKNOWN
            assert run(code, number, architecture.audit) == expected.get(number, other), number


def test_the_lists_do_not_overlap() -> None:
    """No call stands twice, and a check belongs to a call that is allowed; the hot ones stand first."""
    assert len(policy.KILLED) == len(set(policy.KILLED))
    assert set(policy.ALLOWED) == set(policy.CHECKS) == set(Kind)
    for kind, allowed in policy.ALLOWED.items():
        assert set(policy.CHECKS[kind]) <= set(allowed)
        assert all(allowed.values())
        assert tuple(allowed)[:6] == ("epoll_wait", "epoll_pwait", "recvmsg", "sendto", "recvfrom", "sendmsg")
    assert not set(policy.ALLOWED[RELAY]) & set(policy.KILLED)
    assert set(policy.ALLOWED[CARRIERS]) & set(policy.KILLED) == {"clone", "socketpair"}
    assert {*policy.ALLOWED[RELAY], *policy.ALLOWED[CARRIERS], *policy.KILLED} == set(NUMBERS)


@BOTH
@pytest.mark.parametrize("kind", Kind)
def test_arguments(name: str, kind: Kind) -> None:
    """Each value on a list is allowed; its neighbours, other levels, and anything executable are refused."""
    for system_call, checks in policy.CHECKS[kind].items():
        for check in checks:
            if isinstance(check, bpf.OneOf) and check.index in (1, 2):
                others = [other.values[0] for other in checks if isinstance(other, bpf.OneOf) and other is not check]
                for value in range(max(check.values) + 5):
                    arguments = [0, *others, value] if check.index > len(others) else [0, value, *others]
                    answer = call(name, system_call, *arguments, kind=kind)
                    assert answer == (ALLOW if value in check.values else REFUSE), (system_call, arguments)
    for protection in range(8):
        answer = call(name, "mmap", 0, 4096, protection, kind=kind)
        assert answer == (REFUSE if protection & mmap.PROT_EXEC else ALLOW)


@BOTH
@pytest.mark.parametrize("kind", Kind)
def test_no_address_goes_with_sendto(name: str, kind: Kind) -> None:
    """Whatever pointer there is: with a length of 0 the kernel does not look at it. The length is an int."""
    for length in (0, 1, 2, 110, 1 << 31, (1 << 32) - 1):
        for argument in (length, (1 << 32) | length):
            for pointer in (0, 1 << 32, 0x7FFF_0000_0000):
                answer = call(name, "sendto", 7, 0x7FFF_0000_0000, 4, 0, pointer, argument, kind=kind)
                assert answer == (REFUSE if length else ALLOW)


@BOTH
def test_a_relay_sends_messages_to_carriers_and_nowhere_else(name: str) -> None:
    """An address in memory is nothing that a filter sees: sendmsg goes to channels alone. Carriers send to anybody."""
    for fd in (*range(64), 254, 255, 256, 1 << 16, (1 << 31) - 1, (1 << 32) - 1):
        for argument in (fd, (1 << 32) | fd):
            assert call(name, "sendmsg", argument, 0x7FFF_0000_0000) == (ALLOW if fd in CHANNELS else REFUSE)
            assert call(name, "sendmsg", argument, 0x7FFF_0000_0000, kind=CARRIERS) == ALLOW
    number = ARCHITECTURES[name].number("sendmsg")
    assert number is not None
    code = bpf.assemble(policy.program(ARCHITECTURES[name], RELAY))
    for fd in range(64):  # without carriers to nobody
        assert run(code, number, ARCHITECTURES[name].audit, (fd,)) == REFUSE
    for number in (307,) if name == "x86_64" else (269,):  # sendmmsg
        assert judge(name, number, CHANNELS[0]) == REFUSE


@BOTH
@pytest.mark.parametrize("kind", Kind)
def test_arguments_that_would_reach_others(name: str, kind: Kind) -> None:
    """Whom a socket signals, and with what, cannot be set; nor can a filter or a device be put on a socket."""
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, 15, fcntl.F_NOTIFY, fcntl.F_SETLEASE, fcntl.F_ADD_SEALS):
        assert call(name, "fcntl", 0, command, kind=kind) == REFUSE
    for request in (0x8901, 0x8902, 0x5452, 0x5410, 0x5412):  # FIOSETOWN SIOCSPGRP FIOASYNC TIOCSPGRP TIOCSTI
        assert call(name, "ioctl", 0, request, kind=kind) == REFUSE
    for option in (26, 50, 25, 32, 33, 76):  # filters, a device, SO_*BUFFORCE, SO_PASSPIDFD
        assert call(name, "setsockopt", 0, socket.SOL_SOCKET, option, kind=kind) == REFUSE
    for option in (socket.SO_PEERCRED, 77):  # SO_PEERPIDFD
        assert call(name, "getsockopt", 0, socket.SOL_SOCKET, option, kind=kind) == REFUSE
    assert call(name, "setsockopt", 0, socket.IPPROTO_TCP, socket.SO_SNDBUF, kind=kind) == REFUSE
    # The kernel takes the lower half of these arguments; the upper one must not make another value of them.
    assert call(name, "fcntl", 0, (1 << 32) | fcntl.F_SETOWN, kind=kind) == REFUSE
    assert call(name, "mmap", 0, 4096, (1 << 32) | mmap.PROT_EXEC, kind=kind) == REFUSE


@BOTH
def test_a_relay_writes_to_control_and_nowhere_else(name: str) -> None:
    """What it could write to besides are files that clients have passed, which send nothing; carriers write at all
    to nobody. Whatever stands in the upper half of a descriptor's number, which the kernel does not look at.
    """
    for fd in (*range(64), 255, 256, 1 << 16, (1 << 31) - 1, (1 << 32) - 1):
        for argument in (fd, (1 << 32) | fd):
            assert call(name, "write", argument, 0x7FFF_0000_0000, 4) == (ALLOW if fd == OUTLET_FD else REFUSE)
            assert call(name, "write", argument, 0x7FFF_0000_0000, 4, kind=CARRIERS) == REFUSE
    for kind in Kind:  # nor is there another call that writes (asm/unistd.h)
        for number in (18, 20, 296, 328) if name == "x86_64" else (68, 66, 70, 287):  # pwrite64 writev pwritev*
            assert judge(name, number, OUTLET_FD, kind=kind) == REFUSE


@BOTH
def test_a_relay_closes_all_but_its_ways_to_control(name: str) -> None:
    """Else their numbers could come to mean another file, to which it could write then. Carriers close anything."""
    for fd in (*range(64), 255, 256, 1 << 16, (1 << 31) - 1, (1 << 32) - 1):
        for argument in (fd, (1 << 32) | fd):
            assert call(name, "close", argument) == (REFUSE if fd in (CHANNEL_FD, OUTLET_FD, *CHANNELS) else ALLOW)
            assert call(name, "close", argument, kind=CARRIERS) == ALLOW
    for kind in Kind:  # dup2 dup3 close_range: nor is there another way to close one, or to put a file in its place
        for number in (33, 292, 436) if name == "x86_64" else (24, 436):
            assert judge(name, number, CHANNEL_FD, OUTLET_FD, kind=kind) == REFUSE


@pytest.mark.parametrize("index", [0, 3, 5])
@pytest.mark.parametrize("values", [(7,), (0, 7), (3, 4, 0xFFFFFFFF)], ids=str)
def test_none_of(index: int, values: tuple[int, ...]) -> None:
    """The answer is the refusal for each of the values, wherever it stands among them, and for no other; no other
    argument counts, nor the upper half of this one.
    """
    check = bpf.NoneOf(index, values)
    code = bpf.assemble([*bpf.prologue(1, 0xFFFF), *bpf.answer(9, ALLOW, (check,), REFUSE), *bpf.otherwise(UNKNOWN)])
    for value in {(each + offset) % (1 << 32) for each in (*values, 0) for offset in (-1, 0, 1)}:
        for argument in (value, (1 << 32) | value):
            arguments = [values[0]] * 6
            arguments[index] = argument
            assert run(code, 9, 1, arguments) == (REFUSE if value in values else ALLOW), argument
    assert run(code, 8, 1, [values[0]] * 6) == UNKNOWN


def test_a_check_behind_none_of_is_made() -> None:
    """None of several checks lets another be passed by."""
    checks = (bpf.NoneOf(0, (3, 4)), bpf.NoneOf(1, (5,)), bpf.OneOf(2, (6, 7)))
    code = bpf.assemble([*bpf.prologue(1, 0xFFFF), *bpf.answer(9, ALLOW, checks, REFUSE), *bpf.otherwise(UNKNOWN)])
    for arguments in itertools.product(range(9), repeat=3):
        allowed = arguments[0] not in (3, 4) and arguments[1] != 5 and arguments[2] in (6, 7)
        assert run(code, 9, 1, arguments) == (ALLOW if allowed else REFUSE), arguments


@BOTH
@pytest.mark.parametrize("kind", Kind)
def test_other_ways_in_are_killed(name: str, kind: Kind) -> None:
    """32-bit calls, x32 calls and negative numbers end the process, whatever they would have meant."""
    code = code_for(name, kind)
    for audit in (0x40000003, 0x40000028, *(a.audit for n, a in ARCHITECTURES.items() if n != name)):  # i386, arm
        for number in (0, 1, 232, 22):
            assert run(code, number, audit) == KILL_PROCESS
    assert judge(name, -1, kind=kind) == KILL_PROCESS
    if name == "x86_64":
        for number in (0, 1, 45, 47, 232, 520):
            assert judge(name, 0x40000000 + number, kind=kind) == KILL_PROCESS


# linux/sched.h, CLONE_*: what fork(3) of libc asks for, with the signal that tells of the end in the lowest byte.
FORK = signal.SIGCHLD | 0x00200000 | 0x01000000  # CHILD_CLEARTID, CHILD_SETTID
SHARED = {"VM": 0x100, "FS": 0x200, "FILES": 0x400, "SIGHAND": 0x800, "VFORK": 0x4000, "THREAD": 0x10000}
OTHERS = {"PTRACE": 0x2000, "PARENT": 0x8000}
NAMESPACES = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


@BOTH
def test_every_number_of_carriers_has_the_answer_of_its_list(name: str) -> None:
    """They are allowed and killed for what relays are, but for what forking takes, and for what relays tell."""
    architecture = ARCHITECTURES[name]
    code = code_for(name, CARRIERS)
    checks = policy.CHECKS[CARRIERS]
    allowed = {each for each in policy.ALLOWED[CARRIERS] if each not in checks}
    expected = {architecture.number(each): KILL_PROCESS for each in policy.KILLED}
    expected |= {architecture.number(each): ALLOW for each in allowed}
    expected[architecture.number("clone3")] = UNKNOWN
    checked = {architecture.number(each) for each in checks}
    for number in range(1024):
        if number not in checked:
            other = REFUSE if number <= NEWEST else UNKNOWN
            assert run(code, number, architecture.audit) == expected.get(number, other), number


@BOTH
def test_carriers_fork(name: str) -> None:
    """A fork as libc makes it, with clone; relays are killed for it, and for whatever is made that way."""
    assert call(name, "clone", FORK, kind=CARRIERS) == ALLOW
    assert call(name, "clone", signal.SIGCHLD, kind=CARRIERS) == ALLOW
    assert call(name, "wait4", kind=CARRIERS) == ALLOW
    for flags in (FORK, signal.SIGCHLD, SHARED["VM"], NAMESPACES["NEWUSER"]):
        assert call(name, "clone", flags) == KILL_PROCESS
    assert call(name, "wait4") == REFUSE


@BOTH
@pytest.mark.parametrize("flag", [*SHARED, *OTHERS, *NAMESPACES])
def test_carriers_make_nothing_but_processes(name: str, flag: str) -> None:
    """No thread, nothing that shares memory, files or handlers, no namespace, no child of somebody else's, whatever
    is asked for beside it.
    """
    bit = {**SHARED, **OTHERS, **NAMESPACES}[flag]
    for flags in (bit, bit | FORK, bit | signal.SIGCHLD, 0xFFFFFFFF, bit | (1 << 32)):
        assert call(name, "clone", flags, kind=CARRIERS) == REFUSE


@BOTH
def test_clone3_is_not_there_for_carriers(name: str) -> None:
    """Its flags are in memory, where no filter sees them: libc goes on with clone. Relays are killed for it."""
    for arguments in ((), (0, 88), (0x7FFF_0000_0000, 88)):
        assert call(name, "clone3", *arguments, kind=CARRIERS) == UNKNOWN
        assert call(name, "clone3", *arguments) == KILL_PROCESS


def test_carriers_are_killed_for_what_is_no_fork() -> None:
    """vfork, new programs, other identities and namespaces are no part of it."""
    for name, system_call in itertools.product(
        ARCHITECTURES,
        ("execve", "execveat", "fork", "vfork", "unshare", "setns", "kill", "socket", "connect", "accept4"),
    ):
        number = ARCHITECTURES[name].number(system_call)
        assert number is None or judge(name, number, kind=CARRIERS) == KILL_PROCESS


IN_CARRIERS_CAGE = f"""
import ctypes, os, socket, sys, _thread
sys.path.append({str(REPO)!r})
from sockguard.privsep import rights
from sockguard.sandbox import CARRIERS, enter
said_by = socket.socket(fileno=int(sys.argv[1]))
rights.harden("test")
rights.become(None)
cage = enter(kind=CARRIERS)
libc = ctypes.CDLL(None, use_errno=True)

def status(do):
    pid = os.fork()
    if not pid:
        do()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

said = [status(lambda: None), libc.syscall(ctypes.c_long(435), None, ctypes.c_ulong(88)), ctypes.get_errno()]
said.append(status(lambda: status(lambda: None)))  # carriers are forked by what was forked
said.append(status(lambda: os.execv("/bin/true", ["true"])))
said.append(status(lambda: libc.unshare(0)))
try:
    _thread.start_new_thread(print, ())
except RuntimeError:
    said.append("no thread")
try:
    os.write(1, b"text")
except PermissionError:
    said.append("no output")
said_by.send(repr((cage.seccomp, said)).encode())
os._exit(0)
"""


def test_a_process_in_the_cage_of_carriers() -> None:
    """The kernel agrees: it forks, and what it forks does; neither starts a thread or a program, leaves its
    namespaces, or writes.
    """
    ours, theirs = channel.pair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", IN_CARRIERS_CAGE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=60,
            check=True,
        )
        seccomp, said = ast.literal_eval(ours.recv(1000).decode())
    if seccomp:
        assert said == [7, -1, errno.ENOSYS, 7, -signal.SIGSYS, -signal.SIGSYS, "no thread", "no output"]
        assert (done.stdout, done.stderr) == (b"", b"")


IN_RELAYS_CAGE = f"""
import fcntl, os, socket, sys
sys.path.append({str(REPO)!r})
from sockguard.privsep import rights, spawn
from sockguard.sandbox import enter
pipe = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in os.pipe()]
os.dup2(int(sys.argv[1]), spawn.CHANNEL_FD)
os.dup2(pipe[1], spawn.OUTLET_FD)
rights.harden("test")
rights.become(None)
cage = enter()

def attempt(do, *arguments):
    try:
        return do(*arguments)
    except OSError as error:
        return -error.errno

said = [attempt(os.write, spawn.OUTLET_FD, b"text"), attempt(os.write, 1, b"text"), attempt(os.write, pipe[1], b"text")]
said += [attempt(os.close, spawn.CHANNEL_FD), attempt(os.close, spawn.OUTLET_FD), attempt(os.close, pipe[1])]
said += [attempt(os.dup2, 1, spawn.OUTLET_FD), attempt(os.closerange, 3, 5)]
said += [attempt(os.write, spawn.OUTLET_FD, b"text")]
socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, spawn.CHANNEL_FD).send(repr((cage.seccomp, said)).encode())
os._exit(0)
"""


def test_a_process_in_the_cage_of_relays() -> None:
    """The kernel agrees: it writes to control, and nowhere else, and keeps both ways to control whatever it tries."""
    ours, theirs = channel.pair()
    with ours, theirs:
        low = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", IN_RELAYS_CAGE, str(low)],
                pass_fds=[low],
                capture_output=True,
                timeout=60,
                check=True,
            )
        finally:
            os.close(low)
        seccomp, said = ast.literal_eval(ours.recv(1000).decode())
    if seccomp:
        refused = -errno.EPERM
        assert said == [4, refused, refused, refused, refused, None, refused, None, 4]
        assert (done.stdout, done.stderr) == (b"", b"")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered hard and soft; carriers can go on making processes."""
    lowered: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", lowered.__setitem__)
    assert limits.enter() == limits.enter(RELAY) == 1
    both = {resource.RLIMIT_FSIZE: (0, 0), resource.RLIMIT_CORE: (0, 0)}
    assert lowered == {resource.RLIMIT_NPROC: (0, 0), **both}
    lowered.clear()
    assert limits.enter(CARRIERS) == 1
    assert lowered == both


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
    cage = Cage(1, 1, 1, 1, 1, 7, 0)
    assert cage.names() == ("empty_root", "no_new_privs", "no_capabilities", "not_dumpable", "limits", "landlock 7")
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

    def fail(*_: object) -> int:
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
    monkeypatch.setitem(sandbox._PARTS, "seccomp", lambda *_: 1)
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
    relay.send(Connections(((1, 1, 0, 0, 0, 0),)), *ends)  # these are no sockets
    for end in ends:
        os.close(end)
    message = relay.receive()
    assert isinstance(message, Fault), message
    assert re.search(r'File ".*/relay/loop\.py", line \d+, in _take', message.text)
    assert message.text.rstrip().endswith("OSError: [Errno 88] Socket operation on non-socket")
    assert relay.wait() == 1
