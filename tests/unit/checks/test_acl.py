"""The binary form of ACLs, and what they grant, against the kernel's own answer where this runs as root."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.checks.acl import (
    READ,
    SEARCH,
    WRITE,
    XATTR,
    Access,
    Entry,
    Tag,
    from_mode,
    grants,
    parse,
    read,
)

NO_ID = 0xFFFFFFFF


def packed(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


BASE = ((1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID))
FULL = ((1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 1, 100), (16, 7, NO_ID), (32, 0, NO_ID))


def test_parse() -> None:
    """Every kind of entry is read with its permissions and its id."""
    assert parse(packed(*FULL)) == tuple(Entry(Tag(tag), perm, ident) for tag, perm, ident in FULL)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        packed(),
        packed(*BASE, version=1),
        packed(*BASE)[:-1],
        packed(*BASE) + b"\0",
        packed(*BASE[:-1]),
        packed(*BASE, BASE[0]),
        packed(*BASE, (3, 7, NO_ID)),
        packed(*BASE, (2, 7, 1000)),
        packed(*FULL, (2, 6, 1000)),
        packed(*FULL, (16, 7, NO_ID)),
        packed((1, 8, NO_ID), *BASE[1:]),
    ],
)
def test_what_the_kernel_would_not_accept_is_refused(raw: bytes) -> None:
    """A value that is cut short, of another version, incomplete or contradictory is an error, never a guess."""
    with pytest.raises(ValueError, match="ACL"):
        parse(raw)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda rest: packed(*FULL) + rest))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    """Whatever the bytes are: entries with one of each base kind, or ValueError."""
    try:
        entries = parse(raw)
    except ValueError:
        return
    assert [entry.tag for entry in entries].count(Tag.OWNER) == 1


def test_read(tmp_path: Path) -> None:
    """A file without an ACL has none; one that was set is read back."""
    file = tmp_path / "file"
    file.touch()
    assert read(str(file)) is None
    os.setxattr(file, XATTR, packed(*FULL))
    assert read(str(file)) == parse(packed(*FULL))


def test_mode() -> None:
    """The first class that somebody is in decides, even where a later one would give more."""
    access = Access(10, 20, from_mode(0o1057))
    assert not grants(access, 10, frozenset({20}), READ)
    assert grants(access, 11, frozenset({20}), READ | SEARCH)
    assert not grants(access, 11, frozenset({20}), WRITE)
    assert grants(access, None, frozenset(), READ | WRITE | SEARCH)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="takes other uids")
def test_grants_says_what_the_kernel_says(open_folder: Path) -> None:
    """For random owners, modes and ACLs, and processes of several ids, access(2) gives the same answers."""
    rng = random.Random(7)  # noqa: S311 - the same files in every run
    ids = (41001, 41002, 41003)
    files = []
    for number in range(300):
        file = open_folder / str(number)
        file.touch()
        os.chown(file, rng.choice(ids), rng.choice(ids))
        file.chmod(rng.randrange(0o1000))
        if number % 3:
            perms = [rng.choice((0, rng.randrange(8))) for _ in range(8)]
            named = [(2, perms[3], 41001), (2, perms[4], 41002), (8, perms[5], 41001), (8, perms[6], 41003)]
            some = sorted(rng.sample(named, rng.randrange(5)))
            mask = [(16, perms[7], NO_ID)] if some else []
            entries = [(1, perms[0], NO_ID), (4, perms[1], NO_ID), (32, perms[2], NO_ID), *some, *mask]
            order = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4, 32: 5}
            os.setxattr(file, XATTR, packed(*sorted(entries, key=lambda entry: (order[entry[0]], entry[2]))))
        files.append(file)
    wanted = (READ, WRITE, SEARCH, READ | WRITE, READ | WRITE | SEARCH)
    for uid in (*ids, 41009):
        for gids in ([41009], [41001], [41002, 41003], [41001, 41002, 41003]):
            real = in_a_process_of(uid, gids, files, wanted)
            ours = []
            for file in files:
                status = file.stat()
                access = Access(status.st_uid, status.st_gid, read(str(file)) or from_mode(status.st_mode))
                ours += [grants(access, uid, frozenset(gids), want) for want in wanted]
            assert ours == real


def in_a_process_of(uid: int, gids: list[int], files: list[Path], wanted: tuple[int, ...]) -> list[bool]:
    """What access(2) says to a process with these ids and no capability."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(gids[1:])
            os.setresgid(gids[0], gids[0], gids[0])
            os.setresuid(uid, uid, uid)
            os.write(writer, bytes(os.access(file, want) for file in files for want in wanted))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answers:
        found = [bool(one) for one in answers.read()]
    os.waitpid(child, 0)
    return found
