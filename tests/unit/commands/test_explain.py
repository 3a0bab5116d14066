"""The explain command, on a real file and real processes: what it prints, and its exit status."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sockguard.commands import explain
from sockguard.errors import ConfigError, UsageError
from sockguard.identity import process
from sockguard.identity.peer import Unknown

ME = pwd.getpwuid(os.getuid()).pw_name
FILE = f"""\
[proxy.db]
listen = "{{folder}}/public.sock"
backend = "{{folder}}/private/db.sock"
[[proxy.db.allow]]
users = ["{ME}", 3000, "4000-4999"]
[[proxy.db.allow]]
name = "by group"
groups = [5000]
[[proxy.db.allow]]
name = "by unit"
users = [3001]
units = ["job.service"]
[[proxy.db.deny]]
users = [4001]
[[proxy.db.deny]]
name = "no shells"
users = [3000]
executables = ["/bin/*sh"]
"""

Explain = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the daemon wants it, with a configuration."""
    tmp_path.chmod(0o700)
    write(tmp_path / "sockguard.toml", FILE.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Explain:
    """Run the command with the configuration of the test."""

    def command(*words: object, proxy: str = "db") -> int:
        parser = argparse.ArgumentParser()
        explain.add_parser(parser.add_subparsers())
        config = ["--config", str(folder / "sockguard.toml")]
        args = parser.parse_args(["explain", *config, "--proxy", proxy, *map(str, words)])
        status = args.run(args)
        assert isinstance(status, int)
        return status

    return command


def write(path: Path, text: str) -> Path:
    """Write a file that nobody else can write."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_user_who_is_allowed(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, and the rule that allowed."""
    assert run("--user", ME) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"allow  db  user {ME} (uid {os.getuid()})\nbecause it is allowed by db.allow[0]\n")


@pytest.mark.parametrize(
    ("words", "status", "rule"),
    [
        (["--uid", 4001], 1, "db.deny[0]"),
        (["--uid", 4002], 0, "db.allow[0]"),
        (["--uid", 2999], 1, None),
        (["--uid", 2999, "--gid", 5000], 0, "by group"),
        (["--uid", 2999, "--gid", 1, "--groups", "7,5000"], 0, "by group"),
        (["--uid", 2999, "--gid", 1, "--groups", ""], 1, None),
        (["--uid", 65534], 1, "db.deny[0]"),
        (["--uid", 3000], 1, "no shells"),
        (["--uid", 3000, "--executable", "/bin/bash"], 1, "no shells"),
        (["--uid", 3000, "--executable", "/bin/cat"], 0, "db.allow[0]"),
        (["--uid", 3001], 1, None),
        (["--uid", 3001, "--unit", "job.service"], 0, "by unit"),
        (["--uid", 3001, "--unit", "/user.slice/job.service"], 1, None),
    ],
)
def test_supposed_peers(
    run: Explain, capsys: pytest.CaptureFixture[str], words: list[object], status: int, rule: str | None
) -> None:
    """What is not given is unknown: it satisfies no allow, and does not stop a deny."""
    assert run(*words, "--json") == status
    result = json.loads(capsys.readouterr().out)
    assert (result["proxy"], result["verdict"], result["rule"]) == ("db", ["allow", "deny"][status], rule)
    assert result["reason"]
    assert len(result["rules"]) == 5


def test_running_process(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """A process is judged by the facts that /proc shows of it."""
    with subprocess.Popen(["sleep", "600"]) as child:
        assert run("--pid", child.pid, "--json") == 0
        peer = json.loads(capsys.readouterr().out)["peer"]
        program = os.readlink(f"/proc/{child.pid}/exe")
        child.kill()
    assert (peer["pid"], peer["uid"], peer["gid"]) == (child.pid, os.geteuid(), os.getegid())
    assert peer["user"] == ME
    assert peer["executable"] == program
    assert peer["groups"] == sorted({os.getegid(), *os.getgroups()})
    here = process.cgroup_path(Path("/proc/self/cgroup").read_text())
    assert peer["cgroup"] == (None if isinstance(here, Unknown) else here)


def test_facts_given_beside_a_process_go_before_its_own(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """--executable, --unit and --label say what would be if."""
    run("--pid", os.getpid(), "--executable", "/bin/else", "--unit", "job.service", "--label", "x", "--json")
    peer = json.loads(capsys.readouterr().out)["peer"]
    assert (peer["executable"], peer["unit"], peer["label"]) == ("/bin/else", "job.service", "x")
    assert (peer["pid"], peer["uid"]) == (os.getpid(), os.geteuid())


def test_against_a_new_file(run: Explain, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both verdicts and what changes; the exit status is the new file's."""
    stricter = write(folder / "new.toml", FILE.format(folder=folder).replace("[4001]", "[4001, 4002]"))
    assert run("--uid", 4002, "--against", stricter) == 1
    out = capsys.readouterr().out
    assert "allow  db  uid 4002" in out
    assert "deny  db  uid 4002" in out
    assert out.endswith("\nchanged: from allow to deny: denied by db.deny[0]\n")
    assert run("--uid", 4003, "--against", stricter) == 0
    assert capsys.readouterr().out.endswith("\nno difference\n")
    assert run("--uid", 4002, "--against", stricter, "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["verdict"], result["before"]["verdict"], result["changed"]) == ("deny", "allow", True)


def test_against_a_file_with_another_rule(run: Explain, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same verdict by another rule is a difference too."""
    renamed = write(folder / "new.toml", FILE.format(folder=folder).replace('"by group"', '"renamed"'))
    assert run("--uid", 9, "--gid", 5000, "--against", renamed) == 0
    assert "same verdict, by another rule: allowed by renamed (before: allowed by by group)" in capsys.readouterr().out


def test_permissive_proxy(run: Explain, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is the rules'; that it is not enforced is said."""
    permissive = FILE.format(folder=folder).replace("[[proxy", "enforce = false\n[[proxy", 1)
    write(folder / "sockguard.toml", permissive)
    assert run("--uid", 4001) == 1
    assert "the proxy is permissive" in capsys.readouterr().out
    assert run("--uid", 4001, "--json") == 1
    assert json.loads(capsys.readouterr().out)["enforce"] is False


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--user", "no-such-user-here"], "unknown user 'no-such-user-here'"),
        (["--uid", "1", "--groups", "no-such-group-here"], "unknown group"),
        (["--uid", "4294967295"], "4294967294"),
        (["--uid", "-1"], "from 0 to"),
        (["--uid", "1", "--executable", "sh"], "must be an absolute path"),
        (["--pid", "0"], "there is no process 0"),
        (["--pid", "2147483647"], "there is no process 2147483647"),
        (["--pid", "99999999999999999999"], "there is no process"),
        (["--pid", "1", "--gid", "1"], "--gid and --groups go with"),
        (["--uid", "1", "--request", "GET /"], "proxy 'db' has protocol 'stream': there are no requests to judge"),
    ],
)
def test_command_lines_that_cannot_be_meant(run: Explain, words: list[str], text: str) -> None:
    """Each is refused in words, as a UsageError (exit status 2, not the 1 of a denial)."""
    with pytest.raises(UsageError) as caught:
        run(*words)
    assert text in str(caught.value)
    assert caught.value.exit_status == 2


def test_unknown_proxy(run: Explain) -> None:
    """The one that was meant is named."""
    with pytest.raises(UsageError, match="has no proxy 'dbb'; did you mean 'db'"):
        run("--uid", 1, proxy="dbb")


@pytest.mark.parametrize("words", [[], ["--uid", "1", "--user", "root"], ["--uid", "1", "--pid", "1"]])
def test_exactly_one_way_to_name_a_peer(run: Explain, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """None, or two, is an error of the command line: exit status 2."""
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    assert "--user" in capsys.readouterr().err


def test_bad_file(run: Explain, folder: Path) -> None:
    """A file with mistakes explains nothing; nor does a bad new one."""
    bad = write(folder / "bad.toml", "[proxy.db]\n")
    with pytest.raises(ConfigError):
        run("--uid", 1, "--against", bad)
    write(folder / "sockguard.toml", "[proxy.db]\n")
    with pytest.raises(ConfigError):
        run("--uid", 1)


def test_imports_nothing_of_the_daemon() -> None:
    """The command starts quickly: neither trio nor structlog nor prometheus-client is loaded."""
    code = (
        "import sys, sockguard.commands.explain, sockguard.config.load, sockguard.config.hypothetical;"
        "print({'trio', 'structlog', 'prometheus_client'} & set(sys.modules))"
    )
    root = Path(explain.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
