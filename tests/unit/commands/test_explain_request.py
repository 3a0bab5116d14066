"""explain --request and expectations of requests, on real files: what a person types and sees."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sockguard.commands import explain
from sockguard.config.load import load_file
from sockguard.errors import ConfigError, UsageError

FILE = """\
[proxy.bus]
listen = "{folder}/public.sock"
backend = "{folder}/private/bus.sock"
protocol = "dbus"
[[proxy.bus.allow]]
name = "sessions"
users = [3000, 3001, 3002, 3009]
dbus = [
  {{ destination = "org.freedesktop.login1", interface = "org.freedesktop.login1.Manager", member = ["ListSessions"] }},
  {{ own = "org.example.App" }},
]
[[proxy.bus.allow]]
name = "admins"
users = [3001]
[[proxy.bus.allow]]
name = "job"
users = [3002]
units = ["job.service"]
dbus = [{{ destination = "*" }}]
[[proxy.bus.deny]]
name = "no reboot"
users = [3001]
executables = ["/usr/bin/ssh"]
dbus = [{{ interface = "org.freedesktop.login1.Manager", member = ["Reboot", "PowerOff"] }}]
[[proxy.bus.deny]]
users = [3009]
"""
REBOOT = "call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager.Reboot"
LIST = REBOOT.replace("Reboot", "ListSessions")

Explain = Callable[..., int]


def write(path: Path, text: str) -> Path:
    """Write a file that nobody else can write."""
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the daemon wants it, with a configuration."""
    tmp_path.chmod(0o700)
    write(tmp_path / "sockguard.toml", FILE.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Explain:
    """Run the command with the configuration of the test."""

    def command(*words: object) -> int:
        parser = argparse.ArgumentParser()
        explain.add_parser(parser.add_subparsers())
        config = ["--config", str(folder / "sockguard.toml"), "--proxy", "bus"]
        args = parser.parse_args(["explain", *config, *map(str, words)])
        status = args.run(args)
        assert isinstance(status, int)
        return status

    return command


def test_a_request_that_no_rule_allows(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict, the request, the reason, and for each rule the first condition that failed: its *what* last."""
    assert run("--uid", 3000, "--request", REBOOT) == 1
    assert capsys.readouterr().out == (
        "deny  bus  uid 3000\n"
        f"request  {REBOOT}\n"
        "because no allow rule matches\n"
        "  sessions     does not match  dbus: no entry matches\n"
        "  admins       does not match  users: uid 3000 is not among 3001\n"
        "  job          does not match  users: uid 3000 is not among 3002\n"
        "  no reboot    does not match  users: uid 3000 is not among 3001\n"
        "  bus.deny[1]  does not match  users: uid 3000 is not among 3009\n"
    )


def test_a_request_that_is_allowed(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0; the rule that allowed says that its *what* matches."""
    assert run("--uid", 3000, "--request", LIST) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["because it is allowed by sessions", "  sessions     allows          dbus: matches"]
    assert run("--uid", 3000, "--request", "own org.example.App") == 0
    assert run("--uid", 3000, "--request", "own org.example.App.Other") == 1
    assert run("--uid", 3000, "--request", "receive org.freedesktop.login1 org.freedesktop.login1.Manager.New") == 1


OTHER_NAMES = """
[[proxy.bus.deny]]
name = "shell"
users = [3001]
dbus = [{ destination = "org.gnome.Shell", interface = "org.gnome.Shell" }, { receive = "org.gnome.Shell" }]
"""


@pytest.mark.parametrize(
    ("request_text", "said"),
    [
        ("call org.gnome.Mutter.DisplayConfig /org/gnome/Shell org.gnome.Shell.Eval", True),
        ("call org.gnome.Mutter.DisplayConfig /org/gnome/Shell Eval", True),
        ("call org.gnome.Mutter.DisplayConfig /org/gnome/Shell org.gnome.Mutter.DisplayConfig.Get", False),
        ("receive org.gnome.Mutter.DisplayConfig org.gnome.Shell.Said", True),
        ("call :1.5 /org/gnome/Shell org.gnome.Shell.Eval", False),
        ("call org.freedesktop.DBus /org/freedesktop/DBus GetId", False),
        ("own org.gnome.Mutter.DisplayConfig", False),
    ],
)
def test_other_names_of_an_owner(
    run: Explain, folder: Path, capsys: pytest.CaptureFixture[str], request_text: str, said: bool
) -> None:
    """A deny by a name is about all names of who owns it, and which those are nobody knows here: so that is said."""
    write(folder / "sockguard.toml", FILE.format(folder=folder) + OTHER_NAMES)
    assert run("--uid", 3001, "--executable", "/bin/x", "--request", request_text) == 0
    unless = ", unless its owner has another name that is denied by shell" if said else ""
    assert capsys.readouterr().out.splitlines()[2] == f"because it is allowed by admins{unless}"
    assert run("--uid", 3001, "--request", "call org.gnome.Shell / org.gnome.Shell.Eval") == 1
    assert capsys.readouterr().out.splitlines()[2] == "because it is denied by shell"


def test_a_request_that_is_denied(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """A deny beats the rule that allows everything, also where its conditions cannot be known."""
    assert run("--uid", 3001, "--request", REBOOT, "--executable", "/usr/bin/ssh") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:7] == [
        "because it is denied by no reboot",
        "  sessions     does not match                    dbus: no entry matches",
        "  admins       would allow, but a deny beats it",
        "  job          does not match                    users: uid 3001 is not among 3002",
        "  no reboot    denies                            dbus: matches",
    ]
    assert run("--uid", 3001, "--request", REBOOT) == 1
    assert "no reboot    may match, so denies" in capsys.readouterr().out
    assert run("--uid", 3001, "--request", REBOOT, "--executable", "/bin/x") == 0
    assert run("--uid", 3001, "--request", LIST, "--executable", "/usr/bin/ssh") == 0


def test_an_allow_that_may_match_lets_no_request_through(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """Its *what* is not what failed first."""
    assert run("--uid", 3002, "--request", REBOOT) == 1
    assert "  job          may match, so does not allow  units: cannot be known" in capsys.readouterr().out
    assert run("--uid", 3002, "--request", REBOOT, "--unit", "job.service") == 0


def test_a_peer_that_may_not_connect(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """No request is judged, and the reason is the connection's."""
    assert run("--uid", 3009, "--request", REBOOT) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "  sessions     would allow, but a deny beats it"
    assert lines[2:4] == ["because it is denied by bus.deny[1]", "no request is judged: the connection is denied"]
    assert lines[-1] == "  bus.deny[1]  denies"


def test_without_a_request(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is on the connection, and it is said which rules decide on requests."""
    assert run("--uid", 3001) == 0
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "because it is allowed by sessions",
        "this is about the connection; which requests it may make depends on sessions, no reboot (see --request)",
        "  sessions     allows some requests",
        "  admins       allows",
    ]


def test_json(run: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    """The request, the connection's verdict beside the request's, and the *what* as the condition that failed."""
    assert run("--uid", 3000, "--request", REBOOT, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["connection"], found["request"]) == ("deny", "allow", REBOOT)
    assert found["rules"][0] == {
        "name": "sessions",
        "action": "allow",
        "matches": "no",
        "outcome": "does not match",
        "condition": "dbus",
        "why": "no entry matches",
        "by_request": True,
    }


def test_against(run: Explain, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files judge the request, each by its own rules."""
    new = write(folder / "new.toml", FILE.format(folder=folder).replace('"ListSessions"', '"ListSessions", "Reboot"'))
    assert run("--uid", 3000, "--request", REBOOT, "--against", new) == 0
    assert capsys.readouterr().out.endswith("\nchanged: from deny to allow: allowed by sessions\n")
    stream = write(folder / "stream.toml", FILE.format(folder=folder).split("dbus")[0].replace("protocol = \"", "")
                   + "[[proxy.bus.allow]]\nusers = [1]\n")  # fmt: skip
    with pytest.raises(UsageError, match="has protocol 'stream': there are no requests to judge"):
        run("--uid", 3000, "--request", REBOOT, "--against", stream)


def test_permissive(run: Explain, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is the rules'; that the request would pass is said, unless the peer would not."""
    write(folder / "sockguard.toml", FILE.format(folder=folder).replace("[[proxy", "enforce = false\n[[proxy", 1))
    assert run("--uid", 3000, "--request", REBOOT) == 1
    assert "permissive (enforce = false): it logs the denial and lets the request through" in capsys.readouterr().out
    assert run("--uid", 65534) == 1
    assert "permissive" not in capsys.readouterr().out


def test_a_request_that_cannot_be_meant(run: Explain) -> None:
    """Refused in words, with exit status 2."""
    with pytest.raises(UsageError, match="--request: 'x' is no object path"):
        run("--uid", 3000, "--request", "call org.example.A x org.example.A.M")


EXPECT = """
[[proxy.bus.expect]]
uid = 3000
request = "{request}"
verdict = "{verdict}"
"""


@pytest.mark.parametrize(
    ("request_text", "verdict", "said"),
    [
        (LIST, "allow", None),
        (REBOOT, "deny", None),
        (REBOOT, "allow", f".verdict: expected allow for uid 3000, request '{REBOOT[:79]}…', but no rule allows"),
        (LIST, "deny", f".verdict: expected deny for uid 3000, request '{LIST[:79]}…', but rule sessions allows"),
        ("cal x", "deny", ".request: a request begins with call, own or receive, not 'cal'; did you mean 'call'?"),
    ],
)
def test_expectations(folder: Path, request_text: str, verdict: str, said: str | None) -> None:
    """An expectation of a request is held against what explain would say."""
    text = FILE.format(folder=folder) + EXPECT.format(request=request_text, verdict=verdict)
    path = write(folder / "sockguard.toml", text)
    if said is None:
        assert load_file(str(path))
        return
    with pytest.raises(ConfigError) as caught:
        load_file(str(path))
    (mistake,) = caught.value.mistakes
    line = text.count("\n") + (0 if said.startswith(".verdict") else -1)
    assert str(mistake).startswith(f"{path}:{line}: proxy.bus.expect[0]{said}")


@pytest.mark.parametrize("text", ["delete /x", "GET /ADMIN", "HEAD /admin/", "GET /admin;x", "GET /%2561dmin"])
def test_explain_reads_a_request_in_all_the_ways_that_a_relay_does(
    run: Explain, folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    write(
        folder / "sockguard.toml",
        f'[proxy.bus]\nlisten = "{folder}/public.sock"\nbackend = "{folder}/private/bus.sock"\nprotocol = "http"\n'
        '[[proxy.bus.allow]]\nusers = ["*"]\n[[proxy.bus.deny]]\nname = "no"\nusers = ["*"]\n'
        'http = ["DELETE /{p...}", "GET /admin"]\n'
        f'[[proxy.bus.expect]]\nuser = "root"\nrequest = "{text}"\nverdict = "deny"\n',
    )
    assert run("--uid", 3000, "--request", text) == 1
    assert "because it is denied by no" in capsys.readouterr().out
    assert run("--uid", 3000, "--request", "GET /x") == 0
