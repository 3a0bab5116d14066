"""Every mistake, in one go, each with its line, its key path and plain words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Mistakes = Callable[..., list[str]]
GOOD = '[proxy.p]\nlisten="/l"\nbackend="/b"\n[[proxy.p.allow]]\nusers=[0]\n'


def test_all_mistakes_of_all_files_in_one_go(mistakes_of: Mistakes) -> None:
    """Shape, names, availability, sockets and files: nothing hides anything else, and each is said once."""
    main = """\
[daemon]
relay = 1
relays = "two"
[proxy.docker]
listen = "/run/docker.sock"
backend = "docker.sock"
protocol = "thrift"
[[proxy.docker.allow]]
usres = ["ci"]
[[proxy.docker.allow]]
users = ["ci", "rot", 3.5, -1, "9-1"]
until = 2027-01-31T00:00:00
[[proxy.docker.allow]]
http = ["GET /"]
users = []
"""
    assert mistakes_of(main, "[proxy.docker]\n[log]\n", "x = [", '[who.a]\nusers=["\xff"]'.encode("latin-1")) == [
        "f:2: daemon.relay: unknown key; did you mean 'relays'?",
        "f:3: daemon.relays: must be an integer, not a string",
        "f:6: proxy.docker.backend: must be an absolute path, not 'docker.sock'",
        "f:7: proxy.docker.protocol: protocol 'thrift' is not available in this version",
        "f:9: proxy.docker.allow[0].usres: unknown key; did you mean 'users'?",
        "f:11: proxy.docker.allow[1].users[2]: must be a name or a number, not a float",
        "f:11: proxy.docker.allow[1].users[3]: must be from 0 to 4294967294",
        "f:11: proxy.docker.allow[1].users[4]: is a range from the larger to the smaller number; write '1-9'",
        "f:11: proxy.docker.allow[1].users[1]: unknown user 'rot'; did you mean 'root'?",
        "f:12: proxy.docker.allow[1].until: has no time zone: add Z for UTC (2027-01-31T00:00:00Z)",
        "f:14: proxy.docker.allow[2].http: is a rule of protocol 'http'; proxy.docker has protocol 'thrift'",
        "f:15: proxy.docker.allow[2].users: an empty list matches nobody; leave the key out",
        "d1:1: proxy.docker: is given twice; first at f:4",
        "d1:2: log: a file of sockguard.d may only have [proxy.NAME] and [who.NAME]",
        "d2:1: not valid TOML: invalid value (at the end of the file)",
        "d3:2: not valid UTF-8 (byte 9 of the line)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('protocol = "vsomeip"', "protocol: protocol 'vsomeip' is not available in this version"),
        ('identity = "cilent"', "identity: must be one of 'proxy', 'client', not 'cilent'; did you mean 'client'?"),
        ('sender = "same"', "sender: must be one of 'any', 'same-user', not 'same'"),
        ("allow_root_identity = true", 'allow_root_identity: is only for identity = "client"'),
        ("allow_root_identity = 1", "allow_root_identity: must be true or false, not an integer"),
        ('delivery = "in-place"', "delivery: delivery = 'in-place' is not available in this version"),
        ("[proxy.p.http]", "http: holds options of protocol 'http'; proxy.p has protocol 'stream'"),
        (
            'protocol = "thrift"\n[proxy.p.thrift]\nx = 1',
            "protocol: protocol 'thrift' is not available in this version",
        ),
        (
            'protocol = "steam"',
            "protocol: must be one of 'stream', 'seqpacket', 'dbus', 'http', not 'steam'; did you mean",
        ),
        ("dbus = 1", "dbus: holds options of protocol 'dbus'; proxy.p has protocol 'stream'"),
        ('fds = "fwd"', "fds: must be one of 'forward', 'refuse', not 'fwd'"),
        ("fds = true", "fds: must be one of 'forward', 'refuse', not a boolean"),
        ("enforce = 1", "enforce: must be true or false, not an integer"),
        ("max_connections = 0", "max_connections: must be at least 1"),
        ("max_connections = 1_000_001", "max_connections: must be at most 1000000"),
        ("max_connections = 0x" + "f" * 5000, "max_connections: must be at most 1000000"),
        ("max_connections_per_user = true", "max_connections_per_user: must be an integer, not a boolean"),
        ('idle_timeout = "1"', "idle_timeout: must be a whole number and ms, s, m or h, such as"),
        ('idle_timeout = "-1s"', "idle_timeout: must be a whole number"),
        ('idle_timeout = "721h"', "idle_timeout: must be at most 720h"),
        ("idle_timeout = 5", 'idle_timeout: must be a string such as "30s" or "500ms", not an integer'),
        ('connect_timeout = "0s"', "connect_timeout: must be more than 0s"),
        ("mode = 666", "mode: must be from 0o0 to 0o777; did you mean 0o666?"),
        ("mode = 0o1777", "mode: must be from 0o0 to 0o777"),
        ('mode = "0660"', "mode: must be an integer such as 0o660, not a string"),
        ('owner = "rot"', "owner: unknown user 'rot'; did you mean 'root'?"),
        ('group = "dokcer"', "group: unknown group 'dokcer'; did you mean 'docker'?"),
        ("allow = 1", "allow: must be an array, not an integer; write [[proxy.p.allow]]"),
        ("deny = [1]", "deny[0]: must be a table, not an integer"),
        ('"a\\nb" = 1', '"a\\nb": unknown key'),
    ],
)
def test_keys_of_a_proxy(mistakes_of: Mistakes, text: str, said: str) -> None:
    """One mistake in a proxy is one message, at its line."""
    head = '[proxy.p]\nlisten = "/l"\nbackend = "/b"\n'
    rules = "" if text.startswith("allow ") else "\n[[proxy.p.allow]]\nusers=[0]"
    (found,) = mistakes_of(head + text + rules)
    assert found.startswith(f"f:4: proxy.p.{said}")


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("run/x", "must be an absolute path, '@NAME' or 'fd:NAME'; not 'run/x'"),
        ("/run/x/", "names a folder"),
        ("/run/..", "names a folder"),
        ("/" + "x" * 107, "longer than the 107 bytes"),
        ("/" + "é" * 54, "longer than the 107 bytes"),
        ("/a\\u0000b", "control character"),
        ("@", "1 to 107 bytes"),
        ("@" + "x" * 108, "1 to 107 bytes"),
        ("fd:", "FileDescriptorName"),
        ("fd:a:b", "FileDescriptorName"),
        ("fd:é", "FileDescriptorName"),
        ("fd:" + "x" * 256, "FileDescriptorName"),
        ("", "must not be empty"),
    ],
)
def test_listen(mistakes_of: Mistakes, listen: str, said: str) -> None:
    """What cannot be bound or adopted is refused."""
    (found,) = mistakes_of(GOOD.replace('"/l"', f'"{listen}"'))
    assert found.startswith("f:2: proxy.p.listen: ")
    assert said in found


def test_an_abstract_backend_is_refused(mistakes_of: Mistakes) -> None:
    """Anyone can reach an abstract socket, so nothing stands in front of it."""
    (found,) = mistakes_of(GOOD.replace('"/b"', '"@b"'))
    assert found == (
        "f:3: proxy.p.backend: an abstract socket cannot be a backend: it has no permissions, anyone can reach it"
    )


@pytest.mark.parametrize("listen", ["@l", "fd:l"])
def test_file_attributes_are_for_paths(mistakes_of: Mistakes, listen: str) -> None:
    """mode, owner and group have no meaning for a socket that is no file of ours."""
    found = mistakes_of(GOOD.replace('"/l"', f'"{listen}"\nmode = 0o666\nowner = 0\ngroup = 0'))
    assert [line.split(": ")[1] for line in found] == ["proxy.p.mode", "proxy.p.owner", "proxy.p.group"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "4: proxy.p.allow[0]: a rule needs at least one of who, users, groups, executables, units, labels"),
        ('name = "x"', "4: proxy.p.allow[0]: a rule needs at least one of"),
        ('users = "ci"', "5: proxy.p.allow[0].users: must be an array, not a string"),
        ('users = ["1007"]', "5: proxy.p.allow[0].users[0]: a number is written without quotes: 1007"),
        ("users = [65534]", "5: proxy.p.allow[0].users[0]: is 65534, which the kernel shows for every id"),
        ('users = ["nobody"]', "5: proxy.p.allow[0].users[0]: is 65534"),
        ('groups = ["nogroup"]', "5: proxy.p.allow[0].groups[0]: is 65534"),
        ('users = ["0-4294967295"]', "5: proxy.p.allow[0].users[0]: a range ends at 4294967294"),
        ('users = ["0-' + "9" * 5000 + '"]', "5: proxy.p.allow[0].users[0]: a range ends at 4294967294"),
        ('users = ["a\\u0000"]', "5: proxy.p.allow[0].users[0]: holds a control character"),
        ("users = [true]", "5: proxy.p.allow[0].users[0]: must be a name or a number, not a boolean"),
        ("users = [[0]]", "5: proxy.p.allow[0].users[0]: must be a name or a number, not an array"),
        ('groups = ["*"]', "5: proxy.p.allow[0].groups[0]: unknown group '*'"),
        ('groups = ["1-2"]', "5: proxy.p.allow[0].groups[0]: unknown group '1-2'"),
        ('who = ["x"]', "5: proxy.p.allow[0].who[0]: unknown set 'x'"),
        (
            'executables = ["/x"]',
            "4: proxy.p.allow[0]: executables do not authenticate: an allow also needs users or gr",
        ),
        ('units = ["x.service"]\nlabels=["l"]', "4: proxy.p.allow[0]: units do not authenticate: an allow also needs"),
        ('users=[0]\nexecutables = ["x"]', "6: proxy.p.allow[0].executables[0]: must be an absolute path or a glob of"),
        ('users=[0]\nexecutables = ["/a/../x"]', "6: proxy.p.allow[0].executables[0]: holds an empty, '.' or '..'"),
        ('users=[0]\nexecutables = ["/a[x"]', "6: proxy.p.allow[0].executables[0]: has a '[' without a ']'"),
        ('users=[0]\nunits = ["x"]', "6: proxy.p.allow[0].units[0]: has no unit's ending; did you mean 'x.service'?"),
        ('users=[0]\nunits = ["a.slice"]', "6: proxy.p.allow[0].units[0]: a slice is no unit that a process runs in"),
        (
            'users=[0]\nunits = ["a/b.service"]',
            "6: proxy.p.allow[0].units[0]: must be a unit's name, or a whole cgroup",
        ),
        ('labels = [""]', "5: proxy.p.allow[0].labels[0]: must not be empty"),
        (
            "users=[0]\nuntil = 2027-01-31T00:00:00",
            "6: proxy.p.allow[0].until: has no time zone: add Z for UTC (2027-01",
        ),
        (
            "users=[0]\nuntil = 9999-12-31T23:59:59-01:00",
            "6: proxy.p.allow[0].until: lies outside of the years 1 to 9999",
        ),
        ("users=[0]\nuntil = 2027-01-31", "6: proxy.p.allow[0].until: must be a date-time such as 2027-01-31T00:00"),
        ('users=[0]\nuntil = "2027-01-31T00:00:00Z"', "6: proxy.p.allow[0].until: must be a date-time such as"),
        (
            'users=[0]\npresets = ["x"]',
            "6: proxy.p.allow[0].presets: is a rule of protocol 'http'; proxy.p has protocol",
        ),
        (
            'users=[0]\nsomeip = ["x"]',
            "6: proxy.p.allow[0].someip: is a rule of protocol 'someip' or 'vsomeip'; proxy.p",
        ),
    ],
)
def test_rules(mistakes_of: Mistakes, rule: str, said: str) -> None:
    """One mistake in a rule is one message, at its line."""
    (found,) = mistakes_of(f'[proxy.p]\nlisten="/l"\nbackend="/b"\n[[proxy.p.allow]]\n{rule}\n')
    assert found.startswith(f"f:{said}")


def test_a_set_must_authenticate_for_each_way_to_match(mistakes_of: Mistakes) -> None:
    """One set with groups does not excuse another that has executables only."""
    sets = '[who.g]\ngroups=[7]\n[who.x]\nexecutables=["/x"]\n'
    found = mistakes_of(sets + GOOD.replace("users=[0]", 'who=["g", "x"]'))
    assert found == [
        "f:8: proxy.p.allow[0]: executables do not authenticate: an allow also needs users or groups here or in [who.x]"
    ]


@pytest.mark.parametrize(("rules", "said"), [("", "no rules"), ("[[proxy.p.deny]]\nusers=[0]", "only denies")])
def test_a_proxy_that_nobody_could_use(mistakes_of: Mistakes, rules: str, said: str) -> None:
    """Without an allow nobody could ever connect."""
    (found,) = mistakes_of('[proxy.p]\nlisten="/l"\nbackend="/b"\n' + rules)
    assert found == f"f:1: proxy.p: {said}: nobody could connect; add [[proxy.p.allow]]"


def test_needed_keys(mistakes_of: Mistakes) -> None:
    """listen and backend are needed, at the table's line."""
    found = mistakes_of('\n[proxy.p]\n[[proxy.p.allow]]\nusers=[0]\n[who."a b"]\n')
    assert found == [
        "f:2: proxy.p: needs listen",
        "f:2: proxy.p: needs backend",
        'f:5: who."a b": a set needs at least one of users, groups, executables, units, labels',
        'f:5: who."a b": a name has 1 to 64 of the characters A-Z a-z 0-9 _ -',
    ]


@pytest.mark.parametrize("spelling", ["/run/x.sock", "/run//x.sock", "/run/./x.sock", "/run/y/../x.sock"])
def test_two_proxies_on_one_socket(mistakes_of: Mistakes, spelling: str) -> None:
    """However the path is spelt."""
    second = GOOD.replace("proxy.p", "proxy.q").replace("/l", spelling)
    assert mistakes_of(GOOD.replace("/l", "/run/x.sock") + second) == [
        "f:7: proxy.q.listen: is already the listening socket of proxy.p (f:2)"
    ]


@pytest.mark.parametrize("listen", ["@x", "fd:x"])
def test_two_proxies_on_one_name(mistakes_of: Mistakes, listen: str) -> None:
    """Abstract and adopted sockets are one to a proxy too."""
    one = GOOD.replace("/l", listen)
    assert len(mistakes_of(one, one.replace("proxy.p", "proxy.q"))) == 1


def test_sockets_are_compared_through_links(mistakes_of: Mistakes, tmp_path: Path) -> None:
    """A folder that is a link, and a backend that is one, do not hide that a socket is a proxy's own."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "backend").symlink_to("link/l")
    first = GOOD.replace("/l", f"{tmp_path}/real/l").replace("/b", f"{tmp_path}/link/l")
    second = GOOD.replace("proxy.p", "proxy.q").replace("/l", f"{tmp_path}/link/l").replace("/b", f"{tmp_path}/backend")
    assert mistakes_of(first, second) == [
        "f:3: proxy.p.backend: is the listening socket of this proxy (f:2)",
        "d1:2: proxy.q.listen: is already the listening socket of proxy.p (f:2)",
        "d1:3: proxy.q.backend: is the listening socket of proxy.p (f:2)",
    ]


@pytest.mark.parametrize("name", ["p.allow[1]", "x"])
def test_rule_names_are_unique(mistakes_of: Mistakes, name: str) -> None:
    """Neither twice the same name, nor the name that another rule has by default."""
    first = 'users=[0]\nname="x"\n'
    second = first if name == "x" else "users=[0]\n"
    third = f'[[proxy.p.deny]]\nusers=[1]\nname="{name}"\n'
    found = mistakes_of(GOOD.replace("users=[0]\n", f"{first}[[proxy.p.allow]]\n{second}{third}"))
    assert found[-1].endswith(f"'{name}' is already the name of the rule at f:{4 if name == 'x' else 7}")


def test_only_main_has_daemon_and_log(mistakes_of: Mistakes) -> None:
    """A dropped-in file cannot change the daemon, and where it can be asked must be a place."""
    assert mistakes_of('[daemon]\ncontrol = "run/c"\nmetrics = "127.0.0.1:0"', "[daemon]\nrelays = 1") == [
        "f:2: daemon.control: must be an absolute path, not 'run/c'",
        "f:3: daemon.metrics: the port must be from 1 to 65535, not '0'",
        "d1:1: daemon: a file of sockguard.d may only have [proxy.NAME] and [who.NAME]",
    ]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a.b" * 2000 + " = 1", "a = 2020-13-41T00:00:00Z", "\x00"]
)
def test_text_that_breaks_parsers(mistakes_of: Mistakes, text: str) -> None:
    """Depth, length and nonsense end in one message."""
    assert len(mistakes_of(text)) == 1


def test_a_set_in_a_file_that_could_not_be_parsed(mistakes_of: Mistakes) -> None:
    """What may stand in a broken file is not called unknown."""
    assert len(mistakes_of(GOOD.replace("users=[0]", 'who=["s"]'), '[who.s]\nusers=["ci"')) == 1


def test_mistakes_are_bounded(mistakes_of: Mistakes) -> None:
    """A file full of mistakes fills no terminal: a thousand, and the number of the others."""
    found = mistakes_of(os.linesep.join(f"k{number} = 1" for number in range(1500)))
    assert len(found) == 1001
    assert found[-1] == "f: and 500 more mistakes"
