"""Sealed memfds: what was read once cannot be changed by the one who wrote it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from sockguard.errors import ChannelError
from sockguard.privsep import memfd


@pytest.fixture
def fd() -> Iterator[int]:
    made = memfd.write("test", b"text")
    yield made
    os.close(made)


@pytest.mark.parametrize("data", [b"", b"x", b"\0\xff" * 1_000_000])
def test_round_trip(data: bytes) -> None:
    """All bytes come back, again and again, wherever the file's own offset stands."""
    made = memfd.write("test", data)
    try:
        assert memfd.read(made) == data
        assert memfd.read(made) == data
    finally:
        os.close(made)


def test_nobody_can_change_it(fd: int) -> None:
    """Writing, cutting, growing, mapping for writing and unsealing all fail, by any descriptor of it."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    changes: list[Callable[[int], object]] = [
        lambda each: os.pwrite(each, b"T", 0),
        lambda each: os.ftruncate(each, 1),
        lambda each: os.ftruncate(each, 100),
        lambda each: mmap.mmap(each, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close(),
        lambda each: fcntl.fcntl(each, fcntl.F_ADD_SEALS, 0),
    ]
    for change in changes:
        for each in (fd, again):
            with pytest.raises(PermissionError):
                change(each)
    os.close(again)
    assert memfd.read(fd) == b"text"


@pytest.mark.parametrize("left_out", ["SEAL", "SHRINK", "GROW", "WRITE"])
def test_each_seal_is_asked_for(left_out: str) -> None:
    """A memfd that lacks one seal is refused: its writer could change it while it is read."""
    seals = {"SEAL", "SHRINK", "GROW", "WRITE"} - {left_out}
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(made, b"text")
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, sum(getattr(fcntl, f"F_SEAL_{name}") for name in seals))
        with pytest.raises(ChannelError, match="not sealed"):
            memfd.read(made)
    finally:
        os.close(made)


def test_what_is_no_memfd_is_refused() -> None:
    """A pipe, a socket or a file of a disk is a ChannelError."""
    reader, writer = os.pipe()
    file = os.open(__file__, os.O_RDONLY)
    try:
        for each in (reader, file):
            with pytest.raises(ChannelError):
                memfd.read(each)
    finally:
        for each in (reader, writer, file):
            os.close(each)


def test_size_is_bounded() -> None:
    """A sealed memfd over MAX_TEXT is refused before a byte of it is read."""
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, memfd.MAX_TEXT + 1)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, memfd._SEALS)
        with pytest.raises(ChannelError, match="too large"):
            memfd.read(made)
    finally:
        os.close(made)


def test_it_does_not_survive_exec(fd: int) -> None:
    """A started program inherits none."""
    assert not os.get_inheritable(fd)
