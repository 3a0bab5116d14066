"""sockguard check: what it prints where, and its exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from sockguard.commands import check

GOOD = (
    '[proxy.p]\nlisten="/l"\nbackend="/b"\n[[proxy.p.allow]]\nusers=[0]\n[[proxy.p.expect]]\nuid=0\nverdict="allow"\n'
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    tmp_path.chmod(0o755)
    path = tmp_path / "sockguard.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers())
    args = parser.parse_args(["check", *words])
    status = args.run(args)
    assert isinstance(status, int)
    return status


def test_a_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard output, and 0."""
    assert _run("--config", str(file)) == 0
    assert capsys.readouterr() == (f"{file}: good: 1 proxy, 1 rule, 1 expectation met\n", "")


def test_a_way_around_is_said(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend that others can reach is a warning on standard error, without --system too; the file is good for it."""
    open_to_all = folder / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    file.write_text(GOOD.replace("/b", f"{open_to_all}/socket"))
    for words in ([], ["--json"]):
        assert _run("--config", str(file), *words) == 0
        said = capsys.readouterr()
        assert f"warning: proxy.p.backend: anyone can make {open_to_all}/socket first" in said.err
        assert f"remedy: chmod go-w {open_to_all}\n" in said.err
        assert "warning" not in said.out
    assert _run("--config", str(file), "--system") == 1  # there it is a finding, and an error
    said = capsys.readouterr()
    assert said.err == ""
    assert f"error    proxy.p.backend: anyone can make {open_to_all}/socket first" in said.out


def test_a_bad_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mistake on standard error, nothing on standard output, and 2."""
    file.write_text(GOOD + "x = 1\ny = 2\n")
    assert _run("--config", str(file)) == 2
    assert capsys.readouterr() == (
        "",
        f"{file}:9: proxy.p.expect[0].x: unknown key\n{file}:10: proxy.p.expect[0].y: unknown key\n",
    )


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output, good or bad."""
    assert _run("--config", str(file), "--json") == 0
    counts = {"proxies": 1, "rules": 1, "expectations": 1}
    assert json.loads(capsys.readouterr().out) == {"ok": True, "file": str(file), "mistakes": [], **counts}
    file.write_text("x = 1")
    assert _run("--config", str(file), "--json") == 2
    mistake = {"file": str(file), "line": 1, "key": "x", "text": "unknown key"}
    assert json.loads(capsys.readouterr().out) == {"ok": False, "file": str(file), "mistakes": [mistake]}


def test_a_missing_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be read is the file's fault: 2."""
    assert _run("--config", f"{file}x") == 2
    assert capsys.readouterr().err == f"{file}x: no such file\n"
