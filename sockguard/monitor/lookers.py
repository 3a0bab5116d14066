"""Processes that look at programs' files, one file each at a time. The path is a peer's choice, and where it leads, a
file system may never answer (a dead server, an automounter, FUSE); the monitor has one thread, which all wait for.

A looker is forked when it is needed, holds nothing but its channel and CAP_SYS_PTRACE, and serves again once it has
answered. One that is stuck is left to the kernel when the monitor ends.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import Final, NoReturn, cast

from sockguard.identity.process import Program, compare
from sockguard.privsep import channel, rights
from sockguard.privsep.messages import LOOKER_TO_MONITOR, MONITOR_TO_LOOKER, Look, Looked, Seen

MAX_LOOKERS: Final = 32
"""Alive at once. Control lets a user have two of them at work (server/looks.py)."""


@dataclass(slots=True)
class _Looker:
    """``job``: control's number for what it is looking at, and the path; None while it waits for work."""

    pid: int
    sock: socket.socket
    job: tuple[int, str] | None = None


class Lookers:
    """Those of one monitor. ``poll``: is told of their channels."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._lookers: dict[int, _Looker] = {}  # by descriptor
        self._ended: set[int] = set()

    def __contains__(self, fd: int) -> bool:
        return fd in self._lookers

    def look(self, number: int, found: Program) -> bool:
        """Have somebody look; ``heard`` gives the answer. False when all are at work. The pidfd stays the caller's."""
        looker = next((each for each in self._lookers.values() if each.job is None), None)
        if looker is None:
            if len(self._lookers) >= MAX_LOOKERS:
                return False
            looker = self._fork()
        looker.job = number, found.path
        try:
            channel.send(looker.sock, Look(found.pid, found.path), [found.pidfd])
        except OSError:  # it has ended; ``heard`` says so
            return looker.sock.fileno() in self._lookers
        return True

    def heard(self, fd: int) -> Looked | None:
        """What that looker has to say, which is readable; None when that is nothing for control."""
        looker = self._lookers[fd]
        try:
            received = channel.receive(looker.sock, LOOKER_TO_MONITOR)
        except OSError:
            received = None
        job, looker.job = looker.job, None
        if received is None:
            self._poll.unregister(fd)
            del self._lookers[fd]
            looker.sock.close()
            self._ended.add(looker.pid)
            self.reap()
            reason = "the process that looked at its program has ended"
        else:
            reason = cast(Seen, received[0]).unknown
        if job is None:
            return None
        number, path = job
        return Looked(number, "" if reason else path, reason)

    def reap(self) -> None:
        """Forget those that have ended."""
        self._ended = {pid for pid in self._ended if not os.waitpid(pid, os.WNOHANG)[0]}

    def end(self) -> None:
        """They end by themselves once nobody has the other end of their channel."""
        for looker in self._lookers.values():
            looker.sock.close()
        self._lookers.clear()

    def _fork(self) -> _Looker:
        ours, theirs = channel.pair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the monitor
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    _look_for_ever(theirs)
                finally:
                    os._exit(1)  # whatever happens in it, it does not go on as the monitor
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        ours.setblocking(False)
        looker = _Looker(pid, ours)
        self._lookers[ours.fileno()] = looker
        self._poll.register(ours.fileno(), select.POLLIN)
        return looker


def _look_for_ever(sock: socket.socket) -> NoReturn:
    """In the child. Whatever it is asked about, the pidfd pins."""
    os.closerange(0, sock.fileno())
    os.closerange(sock.fileno() + 1, rights.open_files_limit())
    rights.harden("sockguard-look")
    rights.keep_capabilities({rights.CAP_SYS_PTRACE})
    while (received := channel.receive(sock, MONITOR_TO_LOOKER)) is not None:
        look, (pidfd,) = cast(Look, received[0]), received[1]
        fault = compare(pidfd, look.pid, look.path)
        os.close(pidfd)
        channel.send(sock, Seen(fault.reason if fault else ""))
    os._exit(0)
