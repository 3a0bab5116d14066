"""A relay that is taken over from its first moment in the cage: run as a file, with what to try as its arguments.

Everything before is sockguard.relay.process itself, with a master of carriers that was started as boot.py starts it;
in place of its loop stands one attempt to get out, and its result goes back over the channel: "done", or "errno N".
Whoever is killed says nothing.

    taken_over.py CHANNEL START_UID ACCOUNT PARTS ATTEMPT VICTIM_PID VICTIM_ADDRESS FOLDER PORT
"""

from __future__ import annotations

import _thread
import ctypes
import fcntl
import functools
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from sockguard import sandbox
from sockguard.carriers import master, pool
from sockguard.privsep import spawn
from sockguard.privsep.messages import encode
from sockguard.privsep.packets import Message
from sockguard.privsep.pipe import Outlet
from sockguard.relay import process
from sockguard.sandbox.calls import NUMBERS
from sockguard.sandbox.libc import syscall
from sockguard.sandbox.policy import ARCHITECTURES

CLONE_FILES = 0x400  # an unshare that needs no privilege
FIOSETOWN = 0x8901
PTRACE_SEIZE = 0x4206
PR_SET_DUMPABLE = 4
COLUMN = ARCHITECTURES[os.uname().machine].column
MODULE = "a_module_that_nobody_has_loaded"

libc = ctypes.CDLL(None, use_errno=True)


def raw(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    number = NUMBERS[name][COLUMN]
    assert number is not None
    return syscall(number, *arguments)


class Hands:
    """What the relay holds when it is taken over: descriptors of every kind, as a client may have passed them."""

    def __init__(self, victim: str, address: str, folder: str, port: str) -> None:
        self.victim = int(victim)
        self.address = int(address)
        self.folder = folder
        self.port = int(port)
        self.stream, self.fresh = (socket.socket(socket.AF_UNIX) for _ in range(2))
        self.datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.tcp = socket.socket(socket.AF_INET)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract name of the kernel's choice
        self.listener.listen()
        self.caller = socket.socket(socket.AF_UNIX)
        self.caller.connect(self.listener.getsockname())
        self.near, self.far = socket.socketpair()
        self.pipe = os.pipe()
        self.file = os.open(f"{folder}/file", os.O_RDWR)
        self.pidfd = os.pidfd_open(self.victim)
        self.channel = -1  # one by which it passes descriptors on
        self.page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def abstract(self) -> str:
        return "\0" + self.folder


# ── attempts that end another process: its death is looked at, too ──


def by_kill(hands: Hands) -> None:
    os.kill(hands.victim, signal.SIGKILL)


def by_tgkill(hands: Hands) -> None:
    raw("tgkill", hands.victim, hands.victim, signal.SIGKILL)


def by_pidfd(hands: Hands) -> None:
    raw("pidfd_send_signal", hands.pidfd, signal.SIGKILL, None, 0)


def by_socket_owner(hands: Hands) -> None:
    """The kernel sends a signal of one's choice when a socket becomes readable (fcntl(2), F_SETSIG)."""
    fcntl.fcntl(hands.near, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(hands.near, fcntl.F_SETOWN, hands.victim)
    fcntl.fcntl(hands.near, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    hands.far.send(b"x")


def by_socket_owner_ioctl(hands: Hands) -> None:
    fcntl.ioctl(hands.near, FIOSETOWN, struct.pack("i", hands.victim))
    fcntl.fcntl(hands.near, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(hands.near, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    hands.far.send(b"x")


ENDING: dict[str, Callable[[Hands], object]] = {
    f.__name__: f for f in (by_kill, by_tgkill, by_pidfd, by_socket_owner, by_socket_owner_ioctl)
}

# ── all others ──


def fork(_: Hands) -> None:
    if os.fork() == 0:
        os._exit(0)


def thread(_: Hands) -> None:
    started = _thread.allocate_lock()
    started.acquire()
    _thread.start_new_thread(started.release, ())
    started.acquire(timeout=10)


def execute(_: Hands) -> None:
    os.execv("/bin/sh", ["sh", "-c", "exit 42"])  # noqa: S606  # the test knows that status


def read_memory(hands: Hands) -> None:
    here = ctypes.create_string_buffer(4)
    local = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(here), 4), 16)
    there = ctypes.create_string_buffer(struct.pack("@PN", hands.address, 4), 16)
    assert raw("process_vm_readv", hands.victim, local, 1, there, 1, 0) == 4
    assert here.raw == b"here"


def protect_executable(hands: Hands) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(hands.page))
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC) == -1:
        raise OSError(ctypes.get_errno(), "mprotect")


def splice_into_a_file(hands: Hands) -> None:
    hands.far.send(b"text")
    os.splice(hands.near.fileno(), hands.pipe[1], 4)
    os.splice(hands.pipe[0], hands.file, 4)


def prctl_dumpable(_: Hands) -> None:
    if libc.prctl(PR_SET_DUMPABLE, *map(ctypes.c_ulong, (1, 0, 0, 0))) == -1:
        raise OSError(ctypes.get_errno(), "prctl")


OTHERS: dict[str, Callable[[Hands], object]] = {
    # files
    "open": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "stat": lambda _: os.stat("/etc/passwd"),
    "listdir": lambda _: os.listdir("/"),
    "mkdir": lambda hands: os.mkdir(f"{hands.folder}/made"),
    "write_a_passed_file": lambda hands: os.write(hands.file, b"text"),
    "truncate_a_passed_file": lambda hands: os.ftruncate(hands.file, 1),
    "splice_into_a_passed_file": splice_into_a_file,
    "memfd": lambda _: os.memfd_create("code"),
    # its ways to control: whatever takes the number of the pipe could be written to
    "close_its_channel": lambda _: os.close(spawn.CHANNEL_FD),
    "close_its_pipe": lambda _: os.close(spawn.OUTLET_FD),
    "a_file_for_its_pipe": lambda hands: os.dup2(hands.file, spawn.OUTLET_FD),
    # sockets
    "socket": lambda _: socket.socket(socket.AF_UNIX),
    "socketpair": lambda _: socket.socketpair(),
    "connect_path": lambda hands: hands.stream.connect(f"{hands.folder}/service"),
    "connect_abstract": lambda hands: hands.stream.connect(hands.abstract),
    "connect_tcp": lambda hands: hands.tcp.connect(("127.0.0.1", hands.port)),
    "sendto_path": lambda hands: hands.datagram.sendto(b"x", f"{hands.folder}/d"),
    "sendmsg_path": lambda hands: hands.datagram.sendmsg([b"x"], [], 0, f"{hands.folder}/d"),
    "sendto_abstract": lambda hands: hands.datagram.sendto(b"x", hands.abstract + "d"),
    "sendmsg_abstract": lambda hands: hands.datagram.sendmsg([b"x"], [], 0, hands.abstract + "d"),
    "message_to_a_peer": lambda hands: hands.near.sendmsg([b"x"]),
    "close_a_channel_to_carriers": lambda hands: os.close(hands.channel),
    "bind": lambda hands: hands.fresh.bind(""),
    "listen": lambda hands: hands.listener.listen(9),
    "accept": lambda hands: hands.listener.accept(),
    "peer_credentials": lambda hands: hands.caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12),
    # processes and programs
    "fork": fork,
    "thread": thread,
    "exec": execute,
    "ptrace": lambda hands: raw("ptrace", PTRACE_SEIZE, hands.victim, None, 0),
    "pidfd_open": lambda hands: os.pidfd_open(hands.victim),
    "pidfd_getfd": lambda hands: raw("pidfd_getfd", hands.pidfd, 0, 0),
    "process_vm_readv": read_memory,
    "proc_mem": lambda hands: os.open(f"/proc/{hands.victim}/mem", os.O_RDONLY),
    "proc_fd": lambda hands: os.listdir(f"/proc/{hands.victim}/fd"),
    "prlimit": lambda hands: resource.prlimit(hands.victim, resource.RLIMIT_CORE, (0, 0)),
    "setpriority": lambda hands: os.setpriority(os.PRIO_PROCESS, hands.victim, 5),
    "sched_setaffinity": lambda hands: os.sched_setaffinity(hands.victim, os.sched_getaffinity(0)),
    # itself
    "setrlimit": lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)),
    "mmap_executable": lambda _: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "mprotect_executable": protect_executable,
    "become_dumpable": prctl_dumpable,
    "setresuid": lambda _: os.setresuid(-1, -1, -1),
    "unshare": lambda _: raw("unshare", CLONE_FILES),
    "import": lambda _: __import__(MODULE),
}


class OverTheChannel(Outlet):
    """What the relay says comes over its channel (a stand-in: one way out, for its messages and for the result)."""

    def send(self, message: Message) -> None:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, spawn.CHANNEL_FD)
        control.send(encode(message))
        control.detach()


def taken_over(hands: Hands, attempt: str, said_by: socket.socket) -> type:
    """What stands in place of the relay's loop. said_by: a copy of its channel, whatever becomes of that."""

    class Attacker:
        def __init__(self, control: socket.socket, outlet: Outlet, carriers: master.Master, files: int) -> None:
            """As Loop."""

        def run(self) -> None:
            try:
                (ENDING | OTHERS)[attempt](hands)
            except OSError as error:
                result = f"errno {error.errno}"
            except ImportError:
                result = "no such module"
            except RuntimeError as error:  # all that _thread says
                result = str(error)
            else:
                result = "done"
            said_by.send(result.encode())

    return Attacker


def main() -> int:
    sock, uid, account, parts, attempt, *hands = sys.argv[1:]
    os.dup2(int(sock), spawn.CHANNEL_FD)
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), spawn.OUTLET_FD)
    if int(uid) >= 0:
        os.setgroups([])
        os.setresgid(*[int(uid)] * 3)
        os.setresuid(*[int(uid)] * 3)
    carriers = master.start(pool.SLOTS, spawn.parse_account(account))
    held = Hands(*hands)
    held.channel = carriers.slots[-1].fileno()
    sys.path.append(held.folder)
    sys.dont_write_bytecode = True
    entered = tuple(filter(None, parts.split(",")))
    vars(process)["Loop"] = taken_over(held, attempt, socket.socket(fileno=os.dup(spawn.CHANNEL_FD)))
    vars(process)["Outlet"] = OverTheChannel
    vars(sandbox)["enter"] = functools.partial(sandbox.enter, entered)
    return process.main([account, ""], carriers)


if __name__ == "__main__":
    sys.exit(main())
