"""Mounts a file whose close(2) never returns, serves it, and sends it: run as a program, by an ordinary user.

    fuse_program.py DEVICE FILE JOBS

DEVICE  /dev/fuse, or a node like it that everybody may open
FILE    what to mount it on, in a user and a mount namespace of its own
JOBS    a descriptor: sockets come over it, each with bytes that are to be sent over it together with the open file

The file is on a FUSE file system that answers everything but FLUSH, which each close of the file waits for, also that
at the end of a process. It serves until its standard input ends, or it is killed: then the kernel answers in its place
(fuse_abort_conn of fs/fuse/dev.c). Two processes, since whoever serves must not have the file open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import stat
import struct
import sys
from typing import Final, NoReturn

GETATTR, OPEN, FLUSH, INIT, FORGET, BATCH_FORGET, INTERRUPT = 3, 14, 25, 26, 2, 42, 36
"""enum fuse_opcode of linux/fuse.h."""

REQUEST: Final = struct.Struct("=IIQQ")  # struct fuse_in_header, as far as it matters
ANSWER: Final = struct.Struct("=IiQ")  # struct fuse_out_header
ENOSYS: Final = 38
REQUEST_BYTES: Final = 1 << 20

# The structs of the answers, fuse_init_out, fuse_attr_out and fuse_open_out. The file is the root of its file system.
INITIAL: Final = struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0)
ATTRIBUTES: Final = struct.pack(
    "=QIIQQQQQQIIIIIIIIII", 3600, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o666, 1, 0, 0, 0, 4096, 0
)
OPENED: Final = struct.pack("=QIi", 1, 0, 0)

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_namespaces() -> None:
    """Here this process may mount, whoever it is."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(device: int, path: str) -> None:
    options = f"fd={device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
    check(libc.mount(b"hanging", path.encode(), b"fuse", 0, options.encode()))


def answer(request: bytes) -> bytes:
    """Nothing, where there is to be no answer."""
    _, opcode, unique, _ = REQUEST.unpack_from(request)
    if opcode in (FLUSH, FORGET, BATCH_FORGET, INTERRUPT):
        return b""
    body = {INIT: INITIAL, GETATTR: ATTRIBUTES, OPEN: OPENED}.get(opcode)
    if body is None:
        return ANSWER.pack(ANSWER.size, -ENOSYS, unique)
    return ANSWER.pack(ANSWER.size + len(body), 0, unique) + body


def serve(device: int) -> None:
    """Until standard input ends."""
    poll = select.poll()
    for fd in (device, 0):
        poll.register(fd, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if 0 in ready:
            return
        with contextlib.suppress(FileNotFoundError, InterruptedError):  # the request was taken back
            said = answer(os.read(device, REQUEST_BYTES))
            if said:
                os.write(device, said)


def hold(path: str, jobs: socket.socket) -> NoReturn:
    """Open the file and send it."""
    check(libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0))
    file = os.open(path, os.O_RDONLY)
    jobs.send(b"0")
    while True:
        data, fds, _, _ = socket.recv_fds(jobs, 1 << 16, 1)
        if not data:
            os._exit(0)
        with socket.socket(fileno=fds[0]) as sock:
            try:
                problem = 0 if socket.send_fds(sock, [data], [file]) == len(data) else -1
            except OSError as error:
                problem = error.errno or -1
        jobs.send(str(problem).encode())


def main(device_path: str, path: str, descriptor: str) -> None:
    jobs = socket.socket(fileno=int(descriptor))
    own_namespaces()
    device = os.open(device_path, os.O_RDWR)
    mount(device, path)
    if os.fork() == 0:
        try:
            os.close(device)
            os.close(0)
            hold(path, jobs)
        finally:
            os._exit(1)
    jobs.close()
    serve(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
