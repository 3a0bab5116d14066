"""Putting together a seccomp filter in classic BPF (linux/filter.h, linux/seccomp.h). Pure: instructions to bytes.

A program is a straight line: for each system call a test of its number, and behind it what to answer. The kernel
finds out by itself which calls are allowed whatever their arguments, and runs no filter for them (since Linux 5.11);
before, the line is walked from its start: so what is called most stands first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
ERRNO: Final = 0x00050000
"""SECCOMP_RET_*; an errno stands in the lower 16 bits."""

_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16
"""Offsets in struct seccomp_data; the lower half of an argument first (both architectures are little-endian)."""

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

Instruction = tuple[int, int, int, int]
"""code, instructions to skip if true, to skip if false, operand"""


@dataclass(frozen=True, slots=True)
class OneOf:
    """Argument ``index`` (from 0) must be one of ``values``. Only the lower 32 bits count: all that the kernel takes
    of an int or an unsigned int, and such an argument it has to be."""

    index: int
    values: tuple[int, ...]

    def test(self, refusal: int) -> list[Instruction]:
        count = len(self.values)
        tests = [(_EQUAL, count - place, 0, value) for place, value in enumerate(self.values)]
        return [_load_argument(self.index), *tests, (_RETURN, 0, 0, refusal)]


@dataclass(frozen=True, slots=True)
class Without:
    """Argument ``index`` must have none of ``bits``, which are among the lower 32."""

    index: int
    bits: int

    def test(self, refusal: int) -> list[Instruction]:
        return [_load_argument(self.index), (_ANY_BIT, 0, 1, self.bits), (_RETURN, 0, 0, refusal)]


@dataclass(frozen=True, slots=True)
class NoneOf:
    """Argument ``index`` must be none of ``values``, as in OneOf."""

    index: int
    values: tuple[int, ...]

    def test(self, refusal: int) -> list[Instruction]:
        count = len(self.values)
        tests = [(_EQUAL, count - 1 - place, 0, value) for place, value in enumerate(self.values[:-1])]
        return [_load_argument(self.index), *tests, (_EQUAL, 0, 1, self.values[-1]), (_RETURN, 0, 0, refusal)]


Check = OneOf | Without | NoneOf


def _load_argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def prologue(architecture: int, highest: int) -> list[Instruction]:
    """Kill on any other architecture (a 32-bit call in a 64-bit process has other numbers), and on a number above
    ``highest`` (x32 has its own); then load the number, for answer() to look at."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER, 0, 1, highest),
        (_RETURN, 0, 0, KILL_PROCESS),
    ]


def answer(number: int, action: int, checks: Sequence[Check] = (), refusal: int = KILL_PROCESS) -> list[Instruction]:
    """``action`` for the system call ``number`` if all ``checks`` hold, else ``refusal``; on to the next otherwise."""
    body = [instruction for check in checks for instruction in check.test(refusal)]
    body.append((_RETURN, 0, 0, action))
    return [(_EQUAL, 0, len(body), number), *body]


def above(number: int, action: int) -> list[Instruction]:
    """``action`` for every higher number."""
    return [(_GREATER, 0, 1, number), (_RETURN, 0, 0, action)]


def otherwise(action: int) -> list[Instruction]:
    return [(_RETURN, 0, 0, action)]


def assemble(program: Sequence[Instruction]) -> bytes:
    """An array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
