"""The daemon started by an ordinary user: no monitor, one uid for everything, and what needs privilege is refused."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import exchange
from tests.support.daemon import REPO, Daemon, running
from tests.support.identities import (
    PYTHON,
    REFUSED,
    Client,
    Guard,
    account,
    capabilities,
    guarding,
    open_folder,
    reach_into,
    someone,
    status,
)
from tests.support.passing import parent_of
from tests.support.services import serving

pytestmark = pytest.mark.root

USER_NAME = f"sgt{os.getpid()}user"


def run_as(folder: Path, uid: int, gid: int) -> dict[str, Any]:
    """For Daemon: how to run it as that user.

    The interpreter, its packages or this repository may lie where only root can go. Then, in a mount namespace of the
    daemon's own, an empty folder is mounted over the closed one, and what is needed is mounted back into that.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPO}
    closed = {path: top for path in sorted(needed) if (top := closed_folder(path))}
    lines = ["#!/bin/sh -e"]
    for number, path in enumerate(closed):
        lines += [f"mkdir {folder}/mount{number}", f"mount --bind {path} {folder}/mount{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {top}" for top in sorted(set(closed.values()))]
    for number, path in enumerate(closed):
        lines += [f"mkdir -p {path}", f"mount --bind {folder}/mount{number} {path}"]
    become = f"setpriv --reuid={uid} --regid={gid} --clear-groups --inh-caps=-all"
    lines += [f"cd {REPO}", f'exec {become} {sys.executable} "$@"', ""]
    inside, start = folder / "inside", folder / "start"
    inside.write_text("\n".join(lines))
    start.write_text(f'#!/bin/sh\nexec unshare --mount {inside} "$@"\n')
    for script in (inside, start):
        script.chmod(0o755)
    return {"executable": str(start)}


def closed_folder(path: Path) -> Path | None:
    """The outermost folder on the way to ``path`` that others may not pass through."""
    return next((place for place in [*reversed(path.parents), path] if not place.stat().st_mode & stat.S_IXOTH), None)


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with open_folder() as folder, account(USER_NAME) as user:
        os.chown(folder, user.uid, user.gid)
        config = f"""
[proxy.own]
allow = [{{ users = ["{USER_NAME}", 4242] }}]
[proxy.program]
allow = [{{ users = ["*"], executables = ["{PYTHON}"] }}]
[proxy.no-program]
allow = [{{ users = ["*"] }}]
deny = [{{ executables = ["/evil"] }}]
"""
        with guarding(folder, config, **run_as(folder, user.uid, user.gid)) as guard:
            yield guard


def owner(guard: Guard) -> tuple[int, int]:
    found = guard.folder.stat()
    return found.st_uid, found.st_gid


def test_everything_runs_under_that_uid_without_rights(guard: Guard) -> None:
    """No monitor, no capability, no way to gain one; start says that control and relays are not separated."""
    pids = guard.daemon.pids()
    assert set(pids) == {"sockguard", "sockguard-relay", "sockguard-fds"}
    served = [*pids["sockguard"], *pids["sockguard-relay"]]
    assert sorted(map(parent_of, pids["sockguard-fds"])) == sorted(served)  # a master of each
    uid, gid = owner(guard)
    assert uid != 0
    for pid in [pid for several in pids.values() for pid in several]:
        found = status(pid)
        assert (set(found["Uid"].split()), set(found["Gid"].split())) == ({str(uid)}, {str(gid)})
        held = capabilities(pid)
        assert not held["CapEff"] | held["CapPrm"] | held["CapInh"] | held["CapAmb"]
        assert found["NoNewPrivs"] == "1"
        assert (found["Seccomp"] == "0") is (pid in pids["sockguard"])
    assert f"no separation: control and relays run under one uid ({uid})" in guard.daemon.stderr()


def test_under_one_uid_processes_still_cannot_reach_into_each_other(guard: Guard) -> None:
    """The relays' uid is control's, so only being non-dumpable keeps a relay that was taken over out of control."""
    for several in guard.daemon.pids().values():
        for pid in several:
            assert reach_into(pid, *owner(guard)) == REFUSED


def test_users_are_told_apart(guard: Guard) -> None:
    """Who has connected is the kernel's word, and needs no privilege."""
    uid, gid = owner(guard)
    guard.admits("own", someone(uid, gid), rule="own.allow[0]", uid=uid, gid=gid, user=USER_NAME)
    guard.admits("own", someone(4242), rule="own.allow[0]", uid=4242)
    guard.denies("own", someone(4243), uid=4243)
    guard.denies("own", someone(0), uid=0)


def test_programs_of_other_users_are_unknown(guard: Guard) -> None:
    """The own user's program can be read; another's cannot, so no rule on one admits it and any denies it."""
    uid, gid = owner(guard)
    with Client(uid, gid) as client:
        guard.admits("program", client.meet, rule="program.allow[0]", uid=uid, executable=PYTHON)
    with Client(4242, 4242) as client:
        guard.denies("program", client.meet, uid=4242)
    rule = "no-program.deny[0]"
    with Client(4242, 4242) as client:
        why = "its condition on executables cannot be known (reading another user's program needs CAP_SYS_PTRACE)"
        guard.denies("no-program", client.meet, rule=rule, reason=f"denied by {rule}: {why}", uid=4242)


def test_owner_of_a_socket_is_refused_by_name(folder: Path) -> None:
    """What needs privilege is refused at start, all of it in one go, with the remedy, and nothing is left bound."""
    os.chown(folder, 4242, 4242)
    config = folder / "sockguard.toml"
    config.write_text(
        "".join(
            f'[proxy.{name}]\nlisten = "{folder}/{name}"\nbackend = "/nowhere"\nallow = [{{ users = [0] }}]\n{line}\n'
            for name, line in (("plain", ""), ("owned", "owner = 4243"), ("grouped", "group = 4243"))
        )
    )
    daemon = Daemon(config, **run_as(folder, 4242, 4242))
    try:
        assert daemon.process.wait(20) == 1
    finally:
        daemon.stop()
    for name in ("owned", "grouped"):
        text = f"proxy.{name}.listen: {folder}/{name}: owner and group need CAP_CHOWN: start as root, or leave them out"
        assert text in daemon.stderr()
    assert not {"plain", "owned", "grouped"} & {path.name for path in folder.iterdir()}


def test_standard_error_that_is_closed(folder: Path) -> None:
    """Without a monitor it is control itself that was started so: it serves, and what it would say goes nowhere."""
    os.chown(folder, 4242, 4242)
    config = folder / "sockguard.toml"
    config.write_text(
        f'[proxy.p]\nlisten = "{folder}/public"\nbackend = "{folder}/private"\nallow = [{{ users = [0] }}]\n'
    )
    how = {**run_as(folder, 4242, 4242), "preexec_fn": lambda: os.close(2)}
    with serving(folder / "private"), running(config, folder / "public", **how):
        assert exchange(folder / "public", b"guarded\n") == "guarded"
