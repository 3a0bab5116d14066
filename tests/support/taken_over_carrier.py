"""A carrier that is taken over: run as a file, with the descriptor to answer on and what to try as its arguments.

All of it is the real one, master and cage included, but for what it does with a job: one attempt with the socket that
the job brought, as a client may have passed it. The answer is "done", or "errno N".

    taken_over_carrier.py ANSWER START_UID ACCOUNT PARTS ATTEMPT FOLDER
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from sockguard import sandbox
from sockguard.carriers import carrier, master
from sockguard.privsep import spawn

ATTEMPTS: dict[str, Callable[[socket.socket, str], object]] = {
    "sendto_path": lambda sock, folder: sock.sendto(b"x", f"{folder}/d"),
    "sendmsg_path": lambda sock, folder: sock.sendmsg([b"x"], [], 0, f"{folder}/d"),
    "connect_path": lambda sock, folder: sock.connect(f"{folder}/d"),
    "sendto_abstract": lambda sock, folder: sock.sendto(b"x", f"\0{folder}d"),
    "sendmsg_abstract": lambda sock, folder: sock.sendmsg([b"x"], [], 0, f"\0{folder}d"),
    "connect_abstract": lambda sock, folder: sock.connect(f"\0{folder}d"),
}


def main() -> int:
    answer, uid, account, parts, attempt, folder = sys.argv[1:]

    def attack(jobs: socket.socket) -> None:
        _, (fd,), _, _ = socket.recv_fds(jobs, 1, 1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, fd) as sock:
            try:
                ATTEMPTS[attempt](sock, folder)
            except OSError as error:
                jobs.send(f"errno {error.errno}".encode())
            else:
                jobs.send(b"done")

    vars(carrier)["serve"] = attack
    vars(master)["enter"] = functools.partial(sandbox.enter, tuple(filter(None, parts.split(","))))
    if int(uid) >= 0:
        os.setgroups([])
        os.setresgid(*[int(uid)] * 3)
        os.setresuid(*[int(uid)] * 3)
    carriers = master.start(1, spawn.parse_account(account))
    carriers.wait_ready()
    carriers.start(0)
    (slot,) = carriers.slots
    slot.setblocking(True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as weapon:
        socket.send_fds(slot, [b"x"], [weapon.fileno()])
    with socket.socket(fileno=int(answer)) as said_by:
        said_by.send(slot.recv(100) or b"killed")
    carriers.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
