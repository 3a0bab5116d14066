"""One carrier: takes a job, does it, says so, and only then closes what it was passed, which may block it for good.

It holds no state but the descriptors it was told to keep, reads no protocol, and never blocks but in close(2).
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections import defaultdict, deque
from typing import Final

from sockguard.carriers.jobs import FREE, JOB_BYTES, MAX_PART, Job, Op, Problem, Report, read_job
from sockguard.privsep.ancillary import CONTROL_BYTES, CUT, PEEK, PEEK_LENGTH, READ, sender
from sockguard.privsep.channel import close_all, received_fds

_FOR_NOW: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
_PROBLEMS: Final = {
    errno.EAGAIN: Problem.FULL,
    errno.EPIPE: Problem.GONE,
    errno.ECONNRESET: Problem.RESET,
    errno.EMSGSIZE: Problem.TOO_LARGE,
    **dict.fromkeys(_FOR_NOW, Problem.FOR_NOW),
}
_SOCKETS: Final = socket.CMSG_SPACE(2 * array("i").itemsize)  # a job brings two at most
_NONE: Final = Report(False, Problem.FAILED)


def serve(jobs: socket.socket) -> None:
    """Do one job after another, until the other end of ``jobs`` is closed. Returns with descriptors open: exit then."""
    carrier = Carrier()
    while True:
        data, control, flags, _ = jobs.recvmsg(JOB_BYTES + MAX_PART, _SOCKETS, READ & ~socket.MSG_DONTWAIT)
        if not data:
            return
        given = received_fds(control)
        job, content = read_job(data)
        report = _NONE if flags & CUT else carrier.do(job, content, given)
        if job.op != Op.DROP:
            jobs.send(report.encode())
        close_all(given)  # the last of them, if the relay has ended the connection meanwhile
        carrier.close_what_is_done()
        jobs.send(FREE)


class Carrier:
    """Does jobs. Closes nothing before close_what_is_done."""

    def __init__(self) -> None:
        self._kept: defaultdict[int, deque[int]] = defaultdict(deque)
        self._done: list[int] = []
        self._view = memoryview(bytearray(MAX_PART))

    def do(self, job: Job, content: memoryview, given: list[int]) -> Report:
        """given: copies of the sockets that the job is about."""
        try:
            match job.op, given:
                case Op.CARRY, [source, target]:
                    return self._carry(job, source, target)
                case Op.TAKE, [source]:
                    return self._take(job, source)
                case Op.SEND, [target]:
                    return self._send(job, content, target)
                case Op.DROP, []:
                    self._done += self._first(job)
                    return _NONE
        except BlockingIOError:
            return Report(False, Problem.NOT_THERE)
        except OSError as error:
            return Report(False, _problem(error))
        return _NONE

    def close_what_is_done(self) -> None:
        done, self._done = self._done, []
        close_all(done)

    def _first(self, job: Job) -> list[int]:
        kept = self._kept[job.number]
        first = [kept.popleft() for _ in range(min(job.count, len(kept)))]
        if not kept:
            del self._kept[job.number]
        return first

    def _carry(self, job: Job, source: int, target: int) -> Report:
        """Peeked, sent, and only then taken, so that nothing is lost if the target has no room. What is taken is not
        closed by that: what the peek has given refers to the same files.
        """
        sock = _socket(source, records=job.records)
        reset = False
        try:
            if job.records:
                length, fds, problem, reset = self._peek_record(job, sock)
            else:
                length, control, flags, _ = sock.recvmsg_into([self._view[: job.count]], CONTROL_BYTES, PEEK)
                fds = received_fds(control)
                self._done += fds
                problem = _refusal(job, control, flags)
            if problem or not (length or fds):
                return Report(False, problem or Problem.NOT_THERE, reset)
            try:
                sent = _send_with(target, self._view[:length], fds)
            except OSError as error:
                return Report(False, _problem(error), reset, length)
            if job.records:
                try:
                    sock.recv(1)  # the rest of the record goes with its first byte
                except ConnectionResetError:
                    reset = True
                    sock.recv(1)
            else:
                self._discard(sock, sent)
            return Report(False, Problem.NONE, reset, sent, len(fds))
        finally:
            sock.detach()

    def _peek_record(self, job: Job, sock: socket.socket) -> tuple[int, list[int], Problem, bool]:
        if job.count > len(self._view):
            self._view = memoryview(bytearray(job.count))
        reset = False
        while True:
            try:
                length, control, flags, _ = sock.recvmsg_into([self._view], CONTROL_BYTES, PEEK_LENGTH)
                break
            except ConnectionResetError:  # is told before what is queued, and once
                reset = True
        fds = received_fds(control)
        self._done += fds
        problem = _refusal(job, control, flags)
        if not control:
            problem = Problem.NOT_THERE  # the end of the connection
        elif length > len(self._view):
            problem = Problem.FAILED
        return length, fds, problem, reset

    def _discard(self, sock: socket.socket, count: int) -> None:
        """Take bytes that were passed on."""
        while count:
            count -= sock.recv_into(self._view[:count], 0, READ)

    def _take(self, job: Job, source: int) -> Report:
        sock = _socket(source, records=False)
        try:
            length, control, flags, _ = sock.recvmsg_into([self._view[: job.count]], CONTROL_BYTES, READ)
        finally:
            sock.detach()
        fds = received_fds(control)
        problem = _refusal(job, control, flags)
        if problem:
            self._done += fds
            return Report(False, problem)
        if fds:
            self._kept[job.number] += fds
        return Report(False, Problem.NONE, False, length, len(fds))

    def _send(self, job: Job, content: memoryview, target: int) -> Report:
        kept = self._kept.get(job.number, ())
        fds = list(kept)[: job.count]
        try:
            sent = _send_with(target, content, fds)
        except OSError as error:
            return Report(False, _problem(error))
        self._done += self._first(job)
        return Report(False, Problem.NONE, False, sent, len(fds))


def _socket(fd: int, *, records: bool) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if records else socket.SOCK_STREAM, 0, fd)


def _send_with(target: int, data: memoryview, fds: list[int]) -> int:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock = _socket(target, records=False)
    try:
        return sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()


def _refusal(job: Job, control: list[tuple[int, int, bytes]], flags: int) -> Problem:
    if flags & CUT:
        return Problem.CUT
    if job.sender >= 0 and sender(control) != job.sender:
        return Problem.SENDER
    return Problem.NONE


def _problem(error: OSError) -> Problem:
    return _PROBLEMS.get(error.errno or 0, Problem.FAILED)


def main(jobs: socket.socket) -> None:
    """Serve, and exit without closing one by one: a process that exits waits for no SO_LINGER."""
    try:
        serve(jobs)
    except OSError:
        os._exit(1)
    os._exit(0)
