"""Reading the configuration's bytes: which files, which are refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from sockguard.config import read
from sockguard.config.read import read_sources
from sockguard.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration that is in order: root's own (or ours), 0644 in 0755."""
    tmp_path.chmod(0o755)
    path = tmp_path / "sockguard.toml"
    path.write_bytes(b"main")
    path.chmod(0o644)
    return path


@pytest.fixture
def folder(file: Path) -> Path:
    """An empty sockguard.d beside it."""
    path = file.parent / "sockguard.d"
    path.mkdir(mode=0o755)
    return path


def _refusals(path: Path | str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_sources(str(path))
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_file_comes_first_then_the_folder_in_name_order(file: Path, folder: Path) -> None:
    """Only *.toml is read, and no hidden file such as an editor's lock."""
    for name in ("b.toml", "a.toml", "c.toml~", ".#a.toml", "README"):
        (folder / name).write_text(name)
    assert [(source.path, source.text) for source in read_sources(str(file))] == [
        (str(file), b"main"),
        (str(folder / "a.toml"), b"a.toml"),
        (str(folder / "b.toml"), b"b.toml"),
    ]


def test_no_folder_is_no_mistake(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sockguard.d is optional, and a bare file name is looked for in the working folder."""
    monkeypatch.chdir(file.parent)
    assert [source.path for source in read_sources("sockguard.toml")] == ["sockguard.toml"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.toml", "no such file"), ("none/none.toml", "no such file"), (".", "is a folder"), ("x\0y", "not a path")],
)
def test_what_cannot_be_read(file: Path, name: str, said: str) -> None:
    """A path that is no file is refused, in words."""
    assert said in _refusals(os.path.join(file.parent, name))[0]


def test_a_fifo_is_refused_and_not_waited_for(file: Path) -> None:
    """Opening never blocks."""
    file.unlink()
    os.mkfifo(file)
    assert _refusals(file) == [f"{file}: is not a regular file"]


def test_size_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of exactly the bound is read, one byte more is refused."""
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 1 << 20)
    file.write_bytes(b"#" * (1 << 20))
    assert len(read_sources(str(file))[0].text) == 1 << 20
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert _refusals(file) == [f"{file}: is larger than 1 MiB"]


def test_number_of_files_is_bounded(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with too many files is refused as a whole."""
    monkeypatch.setattr(read, "MAX_FOLDER_FILES", 1)
    for name in ("a.toml", "b.toml"):
        (folder / name).touch()
    assert _refusals(file) == [f"{folder}: holds more than 1 files"]


def test_every_bad_file_is_said(file: Path, folder: Path) -> None:
    """One bad file does not hide the next."""
    (folder / "a.toml").mkdir()
    (folder / "b.toml").symlink_to("nowhere")
    file.unlink()
    assert len(_refusals(file)) == 3


def test_a_name_that_cannot_be_printed_is_escaped(file: Path, folder: Path) -> None:
    """A mistake is one line of printable text, whatever a file is called."""
    (folder / "a\n\udcff.toml").mkdir()
    assert _refusals(file) == [rf"{folder}/a\n\udcff.toml: is a folder, not a file"]


@pytest.mark.root
class TestAsRoot:
    """Run as root, a file or folder that others can write is refused."""

    @pytest.mark.parametrize("which", ["file", "parent", "folder", "inside"])
    @pytest.mark.parametrize("mode", [0o002, 0o1002, 0o020])
    def test_writable_by_others(self, file: Path, folder: Path, which: str, mode: int) -> None:
        """World's write bit, sticky or not, and that of a group other than root's, in each of the four places."""
        inside = folder / "a.toml"
        inside.touch(0o644)
        path = {"file": file, "parent": file.parent, "folder": folder, "inside": inside}[which]
        if mode == 0o020:
            os.chown(path, 0, 4)
        path.chmod(path.stat().st_mode | mode)
        (said,) = _refusals(file)
        remedy = "folder of root's own" if mode == 0o1002 and path.is_dir() else "chmod go-w"  # chmod /tmp is no advice
        assert remedy in said
        assert said.startswith(f"{path}: ")

    @pytest.mark.parametrize("which", ["file", "parent", "folder"])
    def test_owned_by_another(self, file: Path, folder: Path, which: str) -> None:
        """An owner can always make it writable."""
        path = {"file": file, "parent": file.parent, "folder": folder}[which]
        os.chown(path, 12345, 0)
        (said,) = _refusals(file)
        assert "belongs to uid 12345" in said

    def test_root_s_own_group_may_write(self, file: Path) -> None:
        """0664 root:root is good: nobody but root is in that group without being as good as root."""
        file.chmod(0o664)
        assert read_sources(str(file))

    @pytest.mark.parametrize("which", ["file", "parent"])
    def test_an_acl_is_seen_behind_the_group_s_bits(self, file: Path, which: str) -> None:
        """user:12345:rw in an ACL shows as a group's write bit (acl(5)), and the group here is root's."""
        path = {"file": file, "parent": file.parent}[which]
        entries = [(0x01, 7, 0xFFFFFFFF), (0x02, 6, 12345), (0x04, 4, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF)]
        packed = [struct.pack("<HHI", *entry) for entry in [*entries, (0x20, 4, 0xFFFFFFFF)]]
        try:
            os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(packed))
        except OSError as error:
            pytest.skip(f"no ACLs here: {error}")
        assert _refusals(file) == [
            f"{path}: {'the folder ' if which == 'parent' else ''}can be written by those in its ACL; run: chmod go-w"
        ]

    def test_the_end_of_a_link_is_what_counts(self, file: Path, tmp_path: Path) -> None:
        """A link to a good file is good; one to a file of another is not."""
        link = file.parent / "link.toml"
        link.symlink_to(file)
        assert read_sources(str(link))[0].text == b"main"
        os.chown(file, 12345, 0)
        assert "belongs to uid 12345" in _refusals(link)[0]
