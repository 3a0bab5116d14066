"""What is said to a carrier and to the master, and what a carrier answers. One packet each (SOCK_SEQPACKET).

    relay → carrier    CARRY · TAKE · SEND · DROP
    carrier → relay    report, of all but DROP: what was done; then, of each job, free: what it had to close is closed
    relay → master     START and a slot
    anyone → master    DISPOSE and sockets, then GO once they are closed here: on a channel of their own

A carrier keeps the descriptors that TAKE has brought under a number, in their order, until SEND or DROP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

_JOB: Final = struct.Struct("<BQIqB")
_REPORT: Final = struct.Struct("<BBBII")

MAX_PART: Final = 64 * 1024
"""Bytes that one SEND can bring along."""

READY: Final = b"R"
START: Final = b"S"
DISPOSE: Final = b"D"
GO: Final = b"G"
"""To and from the master. DISPOSE comes with as many sockets as MAX_DISPOSED allows. Whoever receives them keeps them
until GO has come, so that nobody but it can be the last that has them."""

MAX_DISPOSED: Final = 128
"""Sockets in one DISPOSE."""


class Op(IntEnum):
    """What a carrier is to do.

    CARRY  (source, target): pass on the message with descriptors that is first in ``source``, its bytes up to ``count``
    TAKE   (source): receive ``count`` bytes, and keep the descriptors that come with them under ``number``
    SEND   (target): send the bytes that come along, with the first ``count`` descriptors that are kept under ``number``
    DROP   (): close the first ``count`` of these
    """

    CARRY = 1
    TAKE = 2
    SEND = 3
    DROP = 4


class Problem(IntEnum):
    """Why a job was not done. Nothing was taken or sent then."""

    NONE = 0
    NOT_THERE = 1  # nothing is there to be read
    FULL = 2  # the target has no room
    FOR_NOW = 3  # the kernel has no memory, or too many descriptors are on their way
    GONE = 4  # the target takes nothing any more (EPIPE)
    RESET = 5  # the same, and its peer closed with bytes unread (ECONNRESET)
    TOO_LARGE = 6  # a record larger than SO_SNDBUF of the target (EMSGSIZE)
    CUT = 7  # descriptors were lost for want of open files
    SENDER = 8  # another uid has sent it
    FAILED = 9  # anything else
    STUCK = 10  # never from a carrier: it does not come back, or there is none to be had


@dataclass(frozen=True, slots=True)
class Job:
    """One job. sender: the only uid that may have sent what CARRY and TAKE find, -1: any; records: SOCK_SEQPACKET."""

    op: Op
    number: int = 0
    count: int = 0
    sender: int = -1
    records: bool = False

    def encode(self) -> bytes:
        return _JOB.pack(self.op, self.number, self.count, self.sender, self.records)


class Report(NamedTuple):
    """What has become of a job.

    free   it is over, and there is nothing else to say; else the job is done but for what is still to be closed
    reset  the source was reset by its peer (ECONNRESET is told once)
    size   bytes that were passed on, taken or sent; fds: descriptors that were passed on or taken
    """

    free: bool
    problem: Problem
    reset: bool = False
    size: int = 0
    fds: int = 0

    def encode(self) -> bytes:
        return _REPORT.pack(self.free, self.problem, self.reset, self.size, self.fds)


JOB_BYTES: Final = _JOB.size
FREE: Final = Report(True, Problem.NONE).encode()


def read_job(data: bytes) -> tuple[Job, memoryview]:
    """A job, and the bytes that came along."""
    op, number, count, sender, records = _JOB.unpack_from(data)
    return Job(Op(op), number, count, sender, bool(records)), memoryview(data)[_JOB.size :]


def read_report(data: bytes) -> Report:
    free, problem, reset, size, fds = _REPORT.unpack(data)
    return Report(bool(free), Problem(problem), bool(reset), size, fds)
