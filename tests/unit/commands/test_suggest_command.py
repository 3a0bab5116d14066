"""The command around the suggestions: what it reads, where it prints, how it ends."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli

from sockguard.commands import suggest
from sockguard.errors import SockguardError

DENIED = {"event": "connection_denied", "cause": "rules", "rule": None, "proxy": "pg", "uid": 7, "gid": 0, "user": None}


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    suggest.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["suggest", *arguments])
    status = args.run(args)
    assert isinstance(status, int)
    return status


def log(folder: Path, *lines: Any) -> str:
    file = folder / "audit.json"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("".join(f"{line}\n" for line in texts))
    return str(file)


def test_rules_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clean log gives TOML on standard output and nothing else."""
    assert run("--by", "user", log(tmp_path, DENIED)) == 0
    out, err = capsys.readouterr()
    assert tomli.loads(out) == {"proxy": {"pg": {"allow": [{"users": [7]}]}}}
    assert err == ""


def test_group_names_are_this_machine_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gid is named by the group database."""
    assert run("--by", "group", log(tmp_path, DENIED)) == 0
    assert tomli.loads(capsys.readouterr().out)["proxy"]["pg"]["allow"] == [{"groups": ["root"]}]


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file the events come from standard input, the last line with or without its end."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(DENIED).encode())))
    assert run("--by", "user") == 0
    assert "users = [7]" in capsys.readouterr().out


def test_malformed_lines_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that are no events are counted on standard error, and the rest is used."""
    assert run("--by", "user", log(tmp_path, "oops", DENIED, "{}")) == 0
    out, err = capsys.readouterr()
    assert "users = [7]" in out
    assert err == "sockguard suggest: 2 lines are no audit event; left out\n"


def test_no_event_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without any event is a mistake of the command line, not an empty set of rules."""
    assert run("--by", "user", log(tmp_path, "oops")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no audit event in the input" in err


def test_events_of_other_kinds_are_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log in which nobody connected is good, and asks for no rule."""
    assert run("--by", "user", log(tmp_path, {"event": "reloaded"})) == 0
    out = capsys.readouterr().out
    assert tomli.loads(out) == {}
    assert "no allow rule would change anything" in out


@pytest.mark.parametrize("over", [1, suggest.MAX_LINE, suggest.MAX_LINE + 1, 3 * suggest.MAX_LINE])
def test_too_long_a_line(over: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line past the bound is one malformed line, even where it begins like an event; the next is read as usual."""
    text = json.dumps(DENIED | {"uid": 8})
    long = text + " " * (suggest.MAX_LINE - len(text) + over - 1) + "x"
    assert run("--by", "user", log(tmp_path, long, DENIED)) == 0
    out, err = capsys.readouterr()
    assert "users = [7]\n" in out
    assert "1 line is no audit event" in err


@pytest.mark.parametrize("name", ["absent", "nul\0"])
def test_unreadable_file(name: str, tmp_path: Path) -> None:
    """A file that cannot be read is the world's fault, and named."""
    with pytest.raises(SockguardError, match=r"absent|nul"):
        run("--by", "user", str(tmp_path / name))
