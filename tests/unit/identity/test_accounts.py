"""The account database: what it knows, and when it may ask."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from sockguard.errors import SockguardError
from sockguard.identity import accounts
from sockguard.identity.accounts import Accounts

USERS = [("root", 0, 0), ("toor", 0, 0), ("alice", 1000, 1000), ("bob", 1001, 100)]
GROUPS = [("root", 0), ("users", 100), ("people", 100), ("alice", 1000)]


def test_names_and_ids() -> None:
    """Names become ids; an id with several names goes by the first."""
    known = Accounts(USERS, GROUPS)
    assert (known.uid_of("alice"), known.uid_of("toor"), known.uid_of("carol")) == (1000, 0, None)
    assert (known.gid_of("people"), known.gid_of("nobody")) == (100, None)
    assert (known.name_of(0), known.name_of(1), known.group_name_of(100)) == ("root", None, "users")
    assert known.close_user_names() == ["root", "toor", "alice", "bob"]
    assert known.close_group_names() == ["root", "users", "people", "alice"]
    assert known.primary_of(1001) == (100, frozenset([100]))
    assert known.primary_of(4) is None


def test_the_machine_knows_who_we_are() -> None:
    """The snapshot has the running user, with the groups of a login."""
    known = Accounts.from_system()
    entry = pwd.getpwuid(os.getuid())
    assert known.uid_of(entry.pw_name) == entry.pw_uid
    assert known.primary_of(entry.pw_uid) == (
        entry.pw_gid,
        frozenset([entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)]),
    )
    assert known.primary_of(4_000_000_000) is None


def test_user_that_is_not_listed_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service need not list its users: uid_of asks, and from then on the name is known without asking."""
    known = Accounts(lookup=True)
    entry = pwd.getpwuid(0)
    assert known.name_of(0) is None
    assert known.uid_of(entry.pw_name) == 0

    def refuse(_name: object) -> pwd.struct_passwd:
        raise AssertionError("asked again")

    monkeypatch.setattr(pwd, "getpwnam", refuse)
    assert known.uid_of(entry.pw_name) == 0
    assert known.name_of(0) == entry.pw_name


def test_serving_a_connection_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """name_of, group_name_of and owner_of_subuid answer from memory, whatever they are asked."""
    known = Accounts.from_system()

    def refuse(*_: object) -> None:
        raise AssertionError("asked a name service")

    for module, function in [("pwd", "getpwuid"), ("pwd", "getpwnam"), ("grp", "getgrgid"), ("grp", "getgrnam")]:
        monkeypatch.setattr(f"sockguard.identity.accounts.{module}.{function}", refuse)
    for number in (0, 65534, 4_000_000_000):
        known.name_of(number)
        known.group_name_of(number)
        known.owner_of_subuid(number)


@pytest.mark.parametrize("name", ["no-such-user-here", "", "nul\0", "odd\udcff"])
def test_name_that_nobody_has(name: str) -> None:
    """An impossible name is no user and no group, and no error."""
    known = Accounts.from_system()
    assert known.uid_of(name) is None
    assert known.gid_of(name) is None


SUBUID = """\
alice:100000:65536
1001:165536:65536

# a comment
nobody-here:300000:65536
bob:x:5
bob:231072
bob:231072:0
bob:-5:10
bob:4294967290:100
bob:0:10
bob:\u0664:10
"""


@pytest.mark.parametrize(
    ("uid", "owner"),
    [
        (99_999, None),
        (100_000, 1000),
        (165_535, 1000),
        (165_536, 1001),
        (231_071, 1001),
        (231_072, None),
        (300_000, None),
        (4_294_967_291, None),
        (5, None),
        (0, None),
    ],
)
def test_owner_of_a_sub_uid(uid: int, owner: int | None) -> None:
    """Ranges begin and end where the file says; owners are names or numbers; lines that make no sense give nothing."""
    assert Accounts(USERS, GROUPS, SUBUID).owner_of_subuid(uid) == owner


def test_overlapping_ranges() -> None:
    """The range that begins last has the number; past its end the wider one has it again."""
    known = Accounts(USERS, (), "alice:100000:1000\nbob:100100:100\nbob:100300:1\n")
    asked = (100_099, 100_100, 100_199, 100_200, 100_300, 100_301, 100_999, 101_000)
    assert [known.owner_of_subuid(uid) for uid in asked] == [1000, 1001, 1001, 1000, 1001, 1000, 1000, None]


def test_subuid_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That is said: without it nobody would know whom sub-uids count for."""
    monkeypatch.setattr(accounts, "SUBUID_FILE", str(tmp_path))
    with pytest.raises(SockguardError, match="cannot be read: Is a directory"):
        Accounts.from_system()


def test_machine_without_subuid_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no owners."""
    monkeypatch.setattr(accounts, "SUBUID_FILE", "/nonexistent/subuid")
    assert Accounts.from_system().owner_of_subuid(100_000) is None
