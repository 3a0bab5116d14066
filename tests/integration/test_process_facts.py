"""Rules on programs and units: what of a client's process counts, and that what cannot be known lets nobody in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.identities import PYTHON, Client, Guard, guarding, open_folder, run_tool, stopped

pytestmark = pytest.mark.root

UNIT = f"sgtest{os.getpid()}.service"
USER_UNIT = f"/user.slice/user-4242.slice/user@4242.service/app.slice/{UNIT}"

CONFIG = """
[proxy.exact]
allow = [{{ users = ["*"], executables = ["{bin}/honest"] }}]
[proxy.glob]
allow = [{{ users = [4242], executables = ["{bin}/h*t"] }}]
[proxy.not-evil]
allow = [{{ users = ["*"] }}]
deny = [{{ executables = ["{bin}/evil"] }}]
[proxy.unit]
allow = [{{ users = ["*"], units = ["{unit}"] }}]
[proxy.unit-path]
allow = [{{ users = ["*"], units = ["/system.slice/{unit}"] }}]
[proxy.user-unit]
allow = [{{ users = [4242], units = ["/user.slice/user-*.slice/user@*.service/app.slice/{unit}"] }}]
[proxy.not-unit]
allow = [{{ users = ["*"] }}]
deny = [{{ units = ["{unit}"] }}]
"""


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with open_folder() as folder:
        (folder / "bin").mkdir()
        for name in ("honest", "evil"):
            shutil.copy(PYTHON, folder / "bin" / name)
        with guarding(folder, CONFIG.format(bin=folder / "bin", unit=UNIT)) as guard:
            yield guard


def programs(guard: Guard) -> tuple[Path, Path]:
    return guard.folder / "bin" / "honest", guard.folder / "bin" / "evil"


def unknown(reason: str) -> dict[str, str]:
    """What an event says of a client whose program cannot be known, where a deny on programs stands."""
    rule = "not-evil.deny[0]"
    return {"rule": rule, "reason": f"denied by {rule}: its condition on executables cannot be known ({reason})"}


def test_program_by_path_and_by_glob(guard: Guard) -> None:
    """The program that a rule names is let in under any uid, another is not; a user that the rule lacks is not."""
    honest, evil = programs(guard)
    for uid in (4242, 0):
        with Client(uid, uid, program=honest) as client:
            guard.admits("exact", client.meet, rule="exact.allow[0]", uid=uid, gid=uid, executable=str(honest))
        with Client(uid, uid, program=evil) as client:
            guard.denies("exact", client.meet, uid=uid, gid=uid, executable=str(evil))
    for program, uid, good in ((honest, 4242, True), (evil, 4242, False), (honest, 4243, False)):
        with Client(uid, uid, program=program) as client:
            if good:
                guard.admits("glob", client.meet, rule="glob.allow[0]", uid=uid, executable=str(program))
            else:
                guard.denies("glob", client.meet, uid=uid, executable=str(program))


def test_denied_program(guard: Guard) -> None:
    """A deny on a program keeps that one out and no other."""
    honest, evil = programs(guard)
    with Client(4242, 4242, program=honest) as client:
        guard.admits("not-evil", client.meet, rule="not-evil.allow[0]", uid=4242, executable=str(honest))
    with Client(4242, 4242, program=evil) as client:
        rule = "not-evil.deny[0]"
        guard.denies("not-evil", client.meet, rule=rule, reason=f"denied by {rule}", uid=4242, executable=str(evil))


@pytest.mark.parametrize("honest_first", [True, False])
def test_exec_and_setuid_between_connect_and_accept(guard: Guard, honest_first: bool) -> None:
    """The uid is that of connect(), whatever the client has become since. The program is the one that runs when the
    connection is accepted: an exec in between shows the later one, for better or worse. So `executables` narrows a
    rule and is no authentication."""
    honest, evil = programs(guard)
    first, second = (honest, evil) if honest_first else (evil, honest)
    after = guard.now()
    with Client(program=first) as client:
        assert client.do("effective", 4242) == "done"
        with stopped(guard.control()):
            assert client.do("connect", guard.path("exact")) == "done"
            assert client.do("become", 4243, 4243) == "done"
            assert client.do("exec", second) == "ready"
        event = guard.verdict("exact", after)
        assert (event["uid"], event["executable"]) == (4242, str(second))
        if honest_first:
            assert (event["event"], event["rule"], event["cause"]) == ("connection_denied", None, "rules")
            assert client.do("ask") == "closed"
        else:
            assert (event["event"], event["rule"]) == ("connection_admitted", "exact.allow[0]")
            assert client.do("ask") == "ping"


def test_exec_after_admission_is_not_looked_at(guard: Guard) -> None:
    """The verdict stands for the connection: a program that hands its connection on by exec has done so."""
    honest, evil = programs(guard)
    with Client(4242, 4242, program=honest) as client:
        guard.admits("exact", client.meet, rule="exact.allow[0]", uid=4242, executable=str(honest))
        assert client.do("exec", evil) == "ready"
        assert client.do("ask") == "ping"


def test_client_that_has_gone_has_no_program(guard: Guard) -> None:
    """Of a client that ended before it was accepted no program is known: no rule on one admits it, any denies it."""
    honest, _ = programs(guard)
    after = guard.now()
    with stopped(guard.control()):
        for proxy in ("exact", "not-evil"):
            with Client(4242, 4242, program=honest) as client:
                assert client.do("connect", guard.path(proxy)) == "done"
    allow, deny = (guard.verdict(proxy, after) for proxy in ("exact", "not-evil"))
    assert (allow["event"], allow["uid"], allow["rule"]) == ("connection_denied", 4242, None)
    expected = {"event": "connection_denied", "uid": 4242, **unknown("the process has gone")}
    assert {key: deny[key] for key in expected} == expected
    assert "executable" not in allow
    assert "executable" not in deny


@pytest.mark.parametrize("way", ["replaced", "deleted", "deleted-and-named-so"])
def test_program_file_that_is_no_longer_there(guard: Guard, way: str) -> None:
    """A client whose program's file was replaced or deleted while it ran is unknown: who knows what it runs now?"""
    honest, evil = programs(guard)
    spare = honest.with_name("spare")
    os.link(honest, spare)
    named = Path(f"{honest} (deleted)")  # what /proc/PID/exe says then; a file of that name is another one
    reasons = {
        "replaced": f"its program {named} cannot be found at that path: No such file or directory",
        "deleted-and-named-so": f"another file is at the path of its program {named}",
    }
    try:
        shutil.copy(evil, honest.with_name("new"))
        with Client(4242, 4242, program=honest) as client, Client(4242, 4242, program=honest) as second:
            if way == "replaced":
                honest.with_name("new").rename(honest)
            else:
                honest.unlink()
            if way == "deleted-and-named-so":
                shutil.copy(evil, named)
            event = guard.denies("exact", client.meet, uid=4242)
            assert "executable" not in event
            guard.denies("not-evil", second.meet, **unknown(reasons.get(way, reasons["replaced"])), uid=4242)
    finally:
        honest.with_name("new").unlink(missing_ok=True)
        named.unlink(missing_ok=True)
        spare.replace(honest)


def test_other_file_mounted_over_the_program(guard: Guard) -> None:
    """In a mount namespace of its own a client can have any file at an allowed path: it is known by its inode."""
    honest, evil = programs(guard)
    over = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", evil, honest]
    as_4242 = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
    before = [*map(str, over), *as_4242]
    with Client(program=honest, before=before) as client:
        event = guard.denies("exact", client.meet, uid=4242, gid=4242)
        assert "executable" not in event
    with Client(program=honest, before=before) as client:
        reason = f"another file is at the path of its program {honest}"
        guard.denies("not-evil", client.meet, **unknown(reason), uid=4242)


def test_without_the_capability_other_users_programs_are_unknown(folder: Path) -> None:
    """Where the monitor has no CAP_SYS_PTRACE, rules on programs admit nobody of another uid, and a deny denies."""
    weak = folder / "weak"
    weak.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-sys_ptrace {sys.executable} "$@"\n')
    weak.chmod(0o755)
    config = f"""
[proxy.exact]
allow = [{{ users = ["*"], executables = ["{PYTHON}"] }}]
[proxy.not-evil]
allow = [{{ users = ["*"] }}]
deny = [{{ executables = ["/evil"] }}]
"""
    with guarding(folder, config, executable=str(weak)) as guard:
        with Client(4242, 4242) as client:
            guard.denies("exact", client.meet, uid=4242)
        with Client(4242, 4242) as client:
            reason = "reading another user's program needs CAP_SYS_PTRACE"
            guard.denies("not-evil", client.meet, **unknown(reason), uid=4242)


# ── units ──


@contextmanager
def hierarchies(folder: Path) -> Iterator[list[Path]]:
    """Our own mounts of the cgroup hierarchies that systemd may use here: each shows the whole, writable."""
    kinds = {"0::": ("cgroup2", "rw"), "name=systemd:": ("cgroup", "none,name=systemd")}
    with ExitStack() as mounted:
        found: list[Path] = []
        for mark, (kind, options) in kinds.items():
            if mark in Path("/proc/self/cgroup").read_text():
                place = folder / f"hierarchy{len(found)}"
                place.mkdir()
                run_tool("mount", "-t", kind, "-o", options, "none", str(place))
                mounted.callback(run_tool, "umount", str(place))
                found.append(place)
        assert found, "this kernel has neither cgroup version 2 nor systemd's version 1 hierarchy"
        yield found


@contextmanager
def member(hierarchy: Path, unit: str) -> Iterator[Client]:
    """A client of uid 4242 in that cgroup, which is made for it and removed with all that was made on the way."""
    made = []
    for place in [*reversed((hierarchy / unit[1:]).parents), hierarchy / unit[1:]]:
        if not place.exists():
            place.mkdir()
            made.append(place)
    try:
        with Client(4242, 4242) as client:
            (hierarchy / unit[1:] / "cgroup.procs").write_text(str(client.pid))
            yield client
    finally:
        for place in reversed(made):
            place.rmdir()


def test_units(guard: Guard, folder: Path) -> None:
    """A bare name is the unit that the system manager started, and whatever is below it; a user's unit of that name is
    another one, which only its whole path names. In each hierarchy that this machine has."""
    unit = f"/system.slice/{UNIT}"
    with hierarchies(folder) as found:
        for hierarchy in found:
            for inside in (unit, f"{unit}/payload", f"/system.slice/system-sgtest.slice/{UNIT}", f"/{UNIT}"):
                with member(hierarchy, inside) as client:
                    guard.admits("unit", client.meet, rule="unit.allow[0]", uid=4242, gid=4242, unit=UNIT)
                with member(hierarchy, inside) as client:
                    rule = "not-unit.deny[0]"
                    guard.denies("not-unit", client.meet, rule=rule, reason=f"denied by {rule}", uid=4242, unit=UNIT)
            with member(hierarchy, unit) as client:
                guard.admits("unit-path", client.meet, rule="unit-path.allow[0]", uid=4242, unit=UNIT)
            with member(hierarchy, f"{unit}/payload") as client:  # a path is the whole path
                guard.denies("unit-path", client.meet, uid=4242, unit=UNIT)
            with member(hierarchy, f"/system.slice/other.service/{UNIT}") as client:
                guard.denies("unit", client.meet, uid=4242, unit="other.service")
            for proxy in ("unit", "unit-path"):
                with member(hierarchy, USER_UNIT) as client:
                    guard.denies(proxy, client.meet, uid=4242, unit=USER_UNIT)
            with member(hierarchy, USER_UNIT) as client:
                guard.admits("user-unit", client.meet, rule="user-unit.allow[0]", uid=4242, unit=USER_UNIT)
