"""The runtime folder: made or given away only where it is nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sockguard.errors import SockguardError
from sockguard.privsep.runtime import prepare_runtime_folder

OWN = (os.geteuid(), os.getegid())


def refused(path: Path | str, uid: int = OWN[0], gid: int = OWN[1]) -> str:
    with pytest.raises(SockguardError) as caught:
        prepare_runtime_folder(str(path), uid, gid)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_it_is_made(folder: Path) -> None:
    """Mode 0755 under any umask; a second time changes nothing."""
    path = folder / "sockguard"
    before = os.umask(0o077)
    try:
        prepare_runtime_folder(str(path), *OWN)
        prepare_runtime_folder(f"{path}/", *OWN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert (path.stat().st_uid, path.stat().st_gid) == OWN


def test_a_mode_is_kept(folder: Path) -> None:
    """A folder that is there has the mode that somebody gave it."""
    path = folder / "sockguard"
    path.mkdir(mode=0o710)
    prepare_runtime_folder(str(path), *OWN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o710


@pytest.mark.root
def test_it_is_given_away(folder: Path) -> None:
    """Root's own folder, or a new one, goes to the uid; one that is already that uid's stays."""
    for name in ("made", "there"):
        path = folder / name
        if name == "there":
            path.mkdir()
        for _ in range(2):
            prepare_runtime_folder(str(path), 4242, 4343)
            assert (path.stat().st_uid, path.stat().st_gid) == (4242, 4343)


@pytest.mark.root
def test_somebody_elses_folder(folder: Path) -> None:
    """A third one's folder is neither taken nor changed."""
    path = folder / "sockguard"
    path.mkdir()
    os.chown(path, 4244, 4244)
    assert "belongs to uid 4244" in refused(path, 4242, 4242)
    assert path.stat().st_uid == 4244


@pytest.mark.root
def test_a_folder_beside_which_others_write(folder: Path) -> None:
    """In a folder that others can write, or own, nothing is made: they could put theirs in its place."""
    for mode, owner in ((0o1777, 0), (0o775, 0), (0o755, 4242)):
        folder.chmod(mode)
        os.chown(folder, owner, 0)
        assert "others can write" in refused(folder / "sockguard", 4242, 4242)
        assert not (folder / "sockguard").exists()


def test_a_symbolic_link(folder: Path) -> None:
    """It is not followed, and what it leads to is not changed."""
    target = folder / "target"
    target.mkdir(mode=0o700)
    (folder / "sockguard").symlink_to(target)
    (folder / "file").touch()
    assert "is no folder" in refused(folder / "sockguard")
    assert "is no folder" in refused(folder / "file")


def test_what_cannot_be_made(folder: Path) -> None:
    """The system's word, with the path; a relative path is none."""
    assert refused(folder / "a" / "b").endswith("the runtime folder cannot be made: No such file or directory")
    for path in ("sockguard", "/", "/x/..", ""):
        assert "not an absolute path" in refused(path)
