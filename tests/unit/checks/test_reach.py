"""Who the backend's check must find, who it must trust, and what it says where it cannot see."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sockguard.checks.acl import XATTR
from sockguard.checks.members import Member
from sockguard.checks.reach import backend_findings
from sockguard.config.settings import Listen, ListenKind, Proxy
from sockguard.policy.lint import Finding

ME = os.geteuid()
SERVICE, GUARD, ALICE, BOB, EVE = 41001, 41002, 41003, 41004, 41005
GUARDS, STAFF, EMPTY = 42001, 42002, 42003
MEMBERS = {
    GUARDS: [Member("sockguard", GUARD)],
    STAFF: [Member("alice", ALICE), Member("bob", BOB)],
    SERVICE: [Member("service", SERVICE)],
}


def as_root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that gives files to other users."""
    skipped: Callable[..., None] = pytest.mark.skipif(ME != 0, reason="gives files to other users")(test)
    marked: Callable[..., None] = pytest.mark.root(skipped)
    return marked


def members_of(gid: int) -> list[Member]:
    return MEMBERS.get(gid, [])


def look(path: Path | str, gids: Sequence[int] = (GUARDS,)) -> list[Finding]:
    proxy = Proxy("pg", Listen(ListenKind.PATH, "/run/public.sock"), str(path), ())
    return backend_findings(proxy, frozenset({GUARD}), frozenset(gids), members_of=members_of)


def errors(path: Path | str, gids: Sequence[int] = (GUARDS,)) -> list[str]:
    return [finding.text for finding in look(path, gids) if finding.severity == "error"]


def texts(path: Path | str) -> list[str]:
    return [f"{finding.severity}: {finding.text}" for finding in look(path)]


def make_socket(path: Path, mode: int = 0o666) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.chmod(mode)
    return path


def make_folder(path: Path, mode: int, uid: int = -1, gid: int = -1) -> Path:
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def set_acl(path: Path, *named: tuple[int, int, int], mask: int = 7, group: int = 0) -> None:
    """named: (2 for a user or 8 for a group, permissions, id), in that order."""
    none = 0xFFFFFFFF
    users = [one for one in named if one[0] == 2]
    groups = [one for one in named if one[0] == 8]
    entries = [(1, 7, none), *users, (4, group, none), *groups, (16, mask, none), (32, 0, none)]
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, XATTR, raw)


# What an ordinary user can set up


def test_the_world(open_folder: Path) -> None:
    """A writable socket in open folders can be reached by anyone, and the remedy closes its folder."""
    make_folder(open_folder / "d", 0o755)
    path = make_socket(open_folder / "d" / "s")
    (found,) = look(path)
    assert (found.severity, found.subject) == ("error", "proxy.pg.backend")
    assert found.text == f"anyone can connect to {path}, around sockguard"
    assert found.remedy == f"chgrp {GUARDS} {path.parent} && chmod 0710 {path.parent}"


@pytest.mark.parametrize(("folder", "mode"), [(0o700, 0o777), (0o766, 0o777), (0o755, 0o755), (0o755, 0o600)])
def test_one_closed_door_is_enough(folder: int, mode: int, open_folder: Path) -> None:
    """Without search on the folder, or without write on the socket, the world is kept out."""
    make_folder(open_folder / "d", folder)
    path = make_socket(open_folder / "d" / "s", mode)
    assert not any("connect" in text for text in errors(path))


def test_a_door_further_up_is_enough(open_folder: Path) -> None:
    """Any folder of the way may be the one that keeps others out."""
    make_folder(open_folder / "shut", 0o700)
    make_folder(open_folder / "shut" / "d", 0o777)
    assert look(make_socket(open_folder / "shut" / "d" / "s")) == []


def test_a_writable_folder(open_folder: Path) -> None:
    """Who can write a folder of the way can replace what is in it, however closed the rest may be."""
    make_folder(open_folder / "d", 0o777)
    make_folder(open_folder / "d" / "e", 0o700)
    path = make_socket(open_folder / "d" / "e" / "s", 0o600)
    (found,) = look(path)
    assert found.text == f"anyone can replace {path.parent}: {open_folder / 'd'} is writable for them"
    assert (found.severity, found.remedy) == ("error", f"chmod go-w {open_folder / 'd'}")


def test_a_sticky_folder(open_folder: Path) -> None:
    """In a sticky folder others cannot replace a socket, but take its place while it is gone; nothing closes /tmp."""
    make_folder(open_folder / "d", 0o1777)
    (found,) = look(make_socket(open_folder / "d" / "s", 0o600))
    assert found.severity == "warning"
    assert "while the service is down" in found.text
    assert found.remedy.startswith("move the socket")


def test_the_remedy_for_a_shared_folder_is_to_leave_it(open_folder: Path) -> None:
    """No remedy tells anyone to close a folder that others need."""
    make_folder(open_folder / "d", 0o1777)
    for found in look(make_socket(open_folder / "d" / "s")):
        assert "chmod 0710 /" not in found.remedy
        assert (
            found.remedy == f"move the socket to a folder of its own: install -d -o SERVICE -g {GUARDS} -m 0710 FOLDER"
        )


def test_symlinks_are_followed_one_by_one(open_folder: Path) -> None:
    """The folder that holds a symlink counts as the one it leads to does, and the real path is what is reached."""
    for name in ("links", "real"):
        make_folder(open_folder / name, 0o755)
    make_socket(open_folder / "real" / "s")
    (open_folder / "links" / "up").symlink_to("../real")
    (open_folder / "links" / "abs").symlink_to(open_folder / "links" / "up")
    path = open_folder / "links" / "abs" / "." / "s"
    assert errors(path) == [f"anyone can connect to {open_folder / 'real' / 's'}, around sockguard"]
    (open_folder / "real").chmod(0o700)
    assert look(path) == []
    (open_folder / "links").chmod(0o777)
    assert [text.split(":")[0] for text in errors(path)] == [
        f"anyone can replace {open_folder / 'links' / 'abs'}",
        f"anyone can replace {open_folder / 'links' / 'up'}",
    ]


def test_a_closed_folder_before_a_symlink_keeps_nobody_out(open_folder: Path) -> None:
    """Others need not go by the symlink: they know the real path."""
    make_folder(open_folder / "shut", 0o700)
    make_folder(open_folder / "real", 0o755)
    make_socket(open_folder / "real" / "s")
    (open_folder / "shut" / "link").symlink_to(open_folder / "real" / "s")
    assert errors(open_folder / "shut" / "link") == [
        f"anyone can connect to {open_folder / 'real' / 's'}, around sockguard"
    ]


def test_parent_components(open_folder: Path) -> None:
    """'..' leaves the folder that the symlink led into, as the kernel does, not the one it stands in."""
    make_folder(open_folder / "a", 0o755)
    make_folder(open_folder / "a" / "b", 0o755)
    make_socket(open_folder / "a" / "s", 0o600)
    (open_folder / "link").symlink_to("a/b")
    assert look(f"{open_folder}/link/../s") == []
    assert look("/../.." + str(open_folder / "a" / "s")) == []


def test_a_loop_ends(open_folder: Path) -> None:
    """Symlinks that lead to each other are an error of the path."""
    (open_folder / "x").symlink_to("y")
    (open_folder / "y").symlink_to("x")
    assert "too many symlinks" in errors(open_folder / "x")[0]


def test_not_there_yet(open_folder: Path) -> None:
    """A backend that does not exist is a warning; what its folders say is said already."""
    make_folder(open_folder / "d", 0o755)
    path = open_folder / "d" / "s"
    assert texts(path) == [
        f"warning: no folder will keep anyone from {path}, only its own mode can",
        f"warning: {path} does not exist yet",
    ]
    (open_folder / "d").chmod(0o700)
    assert texts(path) == [f"warning: {path} does not exist yet"]
    (open_folder / "d").chmod(0o1777)
    assert errors(path) == [f"anyone can make {path} first: {open_folder / 'd'} is writable for them"]
    below = open_folder / "gone" / "s"
    assert texts(below) == [f"warning: {below.parent}, a folder on the way, does not exist yet"]


@pytest.mark.parametrize("path", ["", "@name", "relative/s"])
def test_what_is_no_path(path: str) -> None:
    """An abstract name or a relative path has no folder that could keep anyone out."""
    assert len(errors(path)) == 1


def test_what_is_no_socket(open_folder: Path) -> None:
    """A file, a folder, or a file where a folder should be is said to be just that."""
    (open_folder / "file").touch()
    assert errors(open_folder / "file") == [f"{open_folder / 'file'} is no socket"]
    assert errors(open_folder) == [f"{open_folder} is no socket"]
    assert errors("/") == ["/ is no socket"]
    assert errors(open_folder / "file" / "s") == [f"{open_folder / 'file'}, on the way, is no folder"]


def test_never_raises(open_folder: Path) -> None:
    """A path that no file can have is a finding, not an exception."""
    assert [finding.severity for finding in look("/nul\0")] == ["warning"]
    assert look("/" + "x" * 5000) != []


def test_names_of_files_stay_on_one_line(open_folder: Path) -> None:
    """A folder whose name holds line ends or colours cannot write findings of its own."""
    folder = make_folder(open_folder / "a\nerror \x1b[31m b", 0o777)
    for found in look(make_socket(folder / "s")):
        assert (found.text + found.remedy).isprintable()


def test_hard_links(open_folder: Path) -> None:
    """A socket that has a second name may be reachable by that."""
    make_folder(open_folder / "d", 0o700)
    path = make_socket(open_folder / "d" / "s")
    os.link(path, open_folder / "other")
    assert texts(path) == [f"warning: {path} has 2 hard links, of which only this one was looked at"]


def test_an_acl_that_is_masked_gives_nothing(open_folder: Path) -> None:
    """A named entry counts with the mask, not by itself."""
    make_folder(open_folder / "d", 0o700)
    path = make_socket(open_folder / "d" / "s")
    set_acl(path.parent, (2, 7, ALICE), mask=6)
    assert not any("connect" in text for text in errors(path))
    set_acl(path.parent, (2, 7, ALICE), mask=1)
    os.setxattr(path, XATTR, os.getxattr(path.parent, XATTR)[:4] + acl_for_all())
    assert errors(path) == [f"uid {ALICE} can connect to {path}, around sockguard"]
    assert look(path)[0].remedy.startswith(f"setfacl -b {path.parent} && chgrp")


def acl_for_all() -> bytes:
    return b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 32))


# What takes root to set up


def service_socket(folder: Path, gid: int, mode: int = 0o660) -> Path:
    """SERVICE:gid 0710 with a socket that the group may write."""
    make_folder(folder, 0o710, SERVICE, gid)
    path = make_socket(folder / "s", mode)
    os.chown(path, SERVICE, gid)
    return path


@as_root
def test_the_recommended_folder(open_folder: Path) -> None:
    """SERVICE:sockguard 0710 with a socket of that group: nothing to be said."""
    assert look(service_socket(open_folder / "d", GUARDS)) == []


@as_root
def test_another_member_of_our_own_group(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else is in the group sockguard gets through, and the remedy is to take them out of it."""
    monkeypatch.setitem(MEMBERS, GUARDS, [Member("sockguard", GUARD), Member("eve", EVE)])
    path = service_socket(open_folder / "d", GUARDS)
    assert errors(path) == [f"eve (group {GUARDS}) can connect to {path}, around sockguard"]
    assert look(path)[0].remedy == f"take eve out of {GUARDS}"


@as_root
def test_a_group_is_named_with_its_members(open_folder: Path) -> None:
    """Members of a foreign group get through, in one finding."""
    path = service_socket(open_folder / "d", STAFF)
    assert errors(path) == [f"alice, bob (group {STAFF}) can connect to {path}, around sockguard"]


@as_root
def test_groups_without_others(open_folder: Path) -> None:
    """The service's own group is no finding; one in which nobody is known is a warning."""
    assert look(service_socket(open_folder / "d", SERVICE)) == []
    path = service_socket(open_folder / "e", EMPTY)
    assert texts(path) == [
        f"warning: group {EMPTY} (of which no member is known here) can connect to {path}, around sockguard"
    ]


@as_root
def test_two_groups_are_passed_by_who_is_in_both(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of one group and a socket of another let through those who are in both, and only those."""
    monkeypatch.setitem(MEMBERS, EMPTY, [Member("bob", BOB), Member("eve", EVE)])
    path = service_socket(open_folder / "d", STAFF)
    os.chown(path, SERVICE, EMPTY)
    assert errors(path) == [f"bob (group {STAFF}, group {EMPTY}) can connect to {path}, around sockguard"]


@as_root
def test_a_group_that_gets_less_than_the_world(open_folder: Path) -> None:
    """0707 keeps the group out and the rest of the world not."""
    make_folder(open_folder / "d", 0o701, SERVICE, STAFF)
    path = make_socket(open_folder / "d" / "s")
    os.chown(path, SERVICE, SERVICE)
    assert errors(path) == [f"anyone can connect to {path}, around sockguard"]


@as_root
def test_acl_users_and_groups(open_folder: Path) -> None:
    """Whom an ACL lets in is found, and the remedy takes the ACL away."""
    path = service_socket(open_folder / "d", GUARDS)
    set_acl(path.parent, (2, 1, EVE), (8, 1, STAFF), group=1)
    set_acl(path, (2, 6, EVE), (8, 6, STAFF), group=6)
    assert errors(path) == [
        f"alice, bob (group {STAFF}) can connect to {path}, around sockguard",
        f"uid {EVE} can connect to {path}, around sockguard",
    ]
    assert all(found.remedy.startswith(f"setfacl -b {path.parent} && ") for found in look(path))


@as_root
def test_a_foreign_owner_on_the_way(open_folder: Path) -> None:
    """Who owns a folder of the way can open it whenever they like, whatever its mode says now."""
    make_folder(open_folder / "d", 0o000, EVE)
    path = service_socket(open_folder / "d" / "e", GUARDS)
    (found,) = look(path)
    assert found.text == f"uid {EVE} owns {open_folder / 'd'} and can replace {path.parent}"
    assert (found.severity, found.remedy) == ("error", f"chown root {open_folder / 'd'}")


@as_root
def test_a_sticky_folder_and_a_symlink_of_another(open_folder: Path) -> None:
    """Sticky or not, who owns a symlink in a folder that they can write can replace it."""
    path = service_socket(open_folder / "d", GUARDS)
    make_folder(open_folder / "t", 0o1777)
    (open_folder / "t" / "link").symlink_to(path)
    assert errors(open_folder / "t" / "link") == []
    os.lchown(open_folder / "t" / "link", EVE, EVE)
    assert errors(open_folder / "t" / "link") == [
        f"uid {EVE} can replace {open_folder / 't' / 'link'}, being its owner"
    ]


@as_root
def test_a_folder_that_a_group_can_write(open_folder: Path) -> None:
    """Group write on the socket's folder lets its members replace the socket; of our own group too."""
    path = service_socket(open_folder / "d", STAFF, 0o600)
    path.parent.chmod(0o730)
    assert errors(path) == [f"alice, bob (group {STAFF}) can replace {path}: {path.parent} is writable for them"]


@as_root
@pytest.mark.parametrize("case", ["world", "group", "acl", "writable", "owner"])
def test_the_remedies_work(case: str, open_folder: Path) -> None:
    """Doing what the remedies say leaves nothing to be found, and sockguard still gets through."""
    path = service_socket(open_folder / "a b'c", GUARDS)
    folder = path.parent
    if case == "world":
        folder.chmod(0o755)
        path.chmod(0o666)
    elif case == "group":
        os.chown(folder, -1, STAFF)
        path.chmod(0o666)
    elif case == "acl":
        set_acl(folder, (2, 3, EVE), group=1)
        path.chmod(0o666)
    elif case == "writable":
        folder.chmod(0o733)
    else:
        os.chown(folder, EVE, -1)
    assert errors(path) != []
    for found in look(path):
        subprocess.run(["sh", "-c", found.remedy], check=True)
    assert look(path) == []
    assert in_a_process_of(GUARD, [GUARDS], lambda: [str(permitted(path))]) == ["True"]


@as_root
def test_what_an_ordinary_user_sees(open_folder: Path) -> None:
    """Who may not look into a folder is told so, and gets no error that is none."""
    path = service_socket(open_folder / "d", GUARDS)
    make_folder(open_folder / "w", 0o777)
    make_folder(open_folder / "w" / "shut", 0o700, SERVICE)
    assert as_nobody(path) == [f"info: {path} cannot be seen from here: run as root"]
    shut = open_folder / "w" / "shut"
    assert as_nobody(shut / "s") == [
        f"error: anyone can replace {shut}: {shut.parent} is writable for them",
        f"info: {shut / 's'} cannot be seen from here: run as root",
    ]


def as_nobody(path: Path) -> list[str]:
    return in_a_process_of(EVE, [EVE], lambda: texts(path))


def in_a_process_of(uid: int, gids: list[int], look_there: Callable[[], list[str]]) -> list[str]:
    """What a function finds in a process with these ids and no capability."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(gids[1:])
            os.setresgid(gids[0], gids[0], gids[0])
            os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(look_there()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        found = json.loads(answer.read())
    os.waitpid(child, 0)
    assert isinstance(found, list)
    return found


@as_root
def test_the_kernel_lets_through_whom_we_say(open_folder: Path) -> None:
    """In random trees, each account gets through exactly where a finding names it, and a stranger where anyone does.

    Where anyone does, a group or an owner may still be kept out; nobody but those is.
    """
    rng = random.Random(11)  # noqa: S311 - the same trees in every run
    paths = [random_tree(open_folder / str(number), rng) for number in range(60)]
    accounts = {
        "alice": (ALICE, [ALICE, STAFF]),
        "bob": (BOB, [BOB, STAFF]),
        "eve": (EVE, [EVE]),
        "anyone": (49001, [49001]),
    }
    said = {path: [text for text in errors(path) if "can connect" in text] for path in paths}
    passed = 0
    for name, (uid, gids) in accounts.items():
        reached = in_a_process_of(uid, gids, lambda: [str(path) for path in paths if permitted(path)])
        passed += len(reached)
        for path in paths:
            if name == "anyone" or not said[path] or not said[path][0].startswith("anyone"):
                named = any(re.match(rf"(.*, )?({name}|uid {uid})[, ]", text) for text in said[path])
                assert named == (str(path) in reached), (name, path, said[path])
    assert 10 < passed < 230  # both answers occur


def random_tree(top: Path, rng: random.Random) -> Path:
    """Two folders and a socket of SERVICE or root, each with a random mode, group, and now and then an ACL."""
    make_folder(top, 0o755)
    make_folder(top / "d", 0o755)
    path = make_socket(top / "d" / "s")
    for one, wanted in ((top, 1), (top / "d", 1), (path, 2)):
        os.chown(one, rng.choice((0, SERVICE, ALICE)) if one is not path else SERVICE, rng.choice((STAFF, GUARDS)))
        bits = [rng.choice((0, wanted, wanted, 5 | wanted)) for _ in range(3)]
        one.chmod(bits[0] << 6 | bits[1] << 3 | bits[2])
        if rng.random() < 0.4:
            named = [(2, rng.choice((0, wanted)), EVE), (8, rng.choice((0, wanted)), STAFF)]
            set_acl(one, *named, mask=rng.choice((0, wanted, 7)), group=rng.choice((0, wanted)))
    return path


def permitted(path: Path) -> bool:
    """Whether connect(2) gets as far as finding that nobody listens."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except PermissionError:
            return False
        except ConnectionRefusedError:
            return True
    raise AssertionError("somebody listens")
