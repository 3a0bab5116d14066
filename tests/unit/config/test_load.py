"""From text to Config: what the file can say, and what it becomes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sockguard.config.load import load_file
from sockguard.config.settings import Config, Daemon, Listen, ListenKind, Log, Proxy
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Who

EXAMPLE = Path(__file__).parents[3] / "example.toml"

FULL = """
[daemon]
control = ""
metrics = ""
relays = 3
drain_timeout = "1h"
[log]
level = "debug"
format = "json"
requests = "all"
[who.ops]
groups = ["docker", 7]
labels = ["x*"]
[proxy.a]
listen = "/run/a.sock"
mode = 0o660
owner = "ci"
group = "docker"
backend = "/run/private/a.sock"
protocol = "seqpacket"
identity = "client"
allow_root_identity = true
fds = "refuse"
sender = "same-user"
delivery = "relay"
enforce = false
max_connections = 5
max_connections_per_user = 6
connect_timeout = "500ms"
idle_timeout = "2m"
[[proxy.a.allow]]
name = "n"
who = ["ops", "ops"]
units = ["x.service", "/user.slice/**"]
until = 2027-01-31T01:00:00+01:00
[[proxy.a.allow]]
users = ["ci", 7, "7up-1", "1000-1999", "*"]
executables = ["/bin/*"]
[[proxy.a.deny]]
users = ["nobody"]
"""


def test_everything_that_the_file_can_say(load_texts: Callable[..., Config]) -> None:
    """Each key arrives in its place: names as numbers, times in seconds, date-times in UTC, sets put in."""
    allow, deny = Action.ALLOW, Action.DENY
    ops = NamedWho("ops", Who(groups=frozenset({999, 7}), labels=("x*",)))
    assert load_texts(FULL) == Config(
        Daemon(control="", relays=3, drain_timeout=3600.0),
        Log("debug", "json", "all"),
        {
            "a": Proxy(
                name="a",
                listen=Listen(ListenKind.PATH, "/run/a.sock"),
                backend="/run/private/a.sock",
                rules=(
                    Rule(
                        "n",
                        allow,
                        Who(units=("x.service", "/user.slice/**")),
                        (ops,),
                        datetime(2027, 1, 31, tzinfo=UTC),
                    ),
                    Rule(
                        "a.allow[1]",
                        allow,
                        Who(Users(frozenset({1000, 7, 1001}), ((1000, 1999),), anyone=True), executables=("/bin/*",)),
                    ),
                    Rule("a.deny[0]", deny, Who(Users(frozenset({65534})))),
                ),
                mode=0o660,
                owner=1000,
                group=999,
                protocol="seqpacket",
                identity="client",
                allow_root_identity=True,
                fds="refuse",
                sender="same-user",
                enforce=False,
                max_connections=5,
                max_connections_per_user=6,
                connect_timeout=0.5,
                idle_timeout=120.0,
            )
        },
    )


def test_defaults(load_texts: Callable[..., Config]) -> None:
    """What is left out has the value that settings.py says, and an empty file is good."""
    assert load_texts("") == Config(Daemon(), Log(), {})
    config = load_texts('[proxy.p]\nlisten="@x"\nbackend="/b"\n[[proxy.p.allow]]\nusers=[0]')
    (proxy,) = config.proxies.values()
    assert proxy == Proxy("p", Listen(ListenKind.ABSTRACT, "x"), "/b", proxy.rules)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("/run/" + "é" * 51, Listen(ListenKind.PATH, "/run/" + "é" * 51)),
        ("@" + "x" * 107, Listen(ListenKind.ABSTRACT, "x" * 107)),
        ("fd:" + "x" * 255, Listen(ListenKind.ADOPTED, "x" * 255)),
        ("fd:a name", Listen(ListenKind.ADOPTED, "a name")),
    ],
)
def test_listen(load_texts: Callable[..., Config], text: str, listen: Listen) -> None:
    """The three kinds, at their longest."""
    config = load_texts(f'[proxy.p]\nlisten="{text}"\nbackend="/b"\n[[proxy.p.allow]]\nusers=[0]')
    assert config.proxies["p"].listen == listen


def test_the_folder_adds_proxies_and_sets(load_texts: Callable[..., Config]) -> None:
    """A set of one file may be used in another, in either order; proxies come in the order of the files."""
    proxy = '[proxy.{0}]\nlisten="/{0}"\nbackend="/b"\n[[proxy.{0}.allow]]\nwho=["s"]\n'
    config = load_texts(proxy.format("z"), proxy.format("a"), '[who.s]\nusers=["ci"]')
    assert list(config.proxies) == ["z", "a"]
    assert config.proxies["z"].rules[0].sets == config.proxies["a"].rules[0].sets


def test_a_set_that_nobody_uses_is_fine(load_texts: Callable[..., Config]) -> None:
    """An unused set is no mistake."""
    assert load_texts('[who.s]\nusers=["ci"]').proxies == {}


@pytest.mark.parametrize("key", ["units", "executables"])
def test_narrowing_keys_may_be_authenticated_by_the_set(load_texts: Callable[..., Config], key: str) -> None:
    """Users or groups in the rule serve its sets, and those in every set serve the rule; denies need none."""
    value = {"units": "x.service", "executables": "/x"}[key]
    head = f'[who.n]\n{key}=["{value}"]\n[who.g]\ngroups=[7]\n[proxy.p]\nlisten="/l"\nbackend="/b"\n'
    for rule in ('who=["n"]\nusers=[0]', f'who=["g"]\n{key}=["{value}"]'):
        assert load_texts(f"{head}[[proxy.p.allow]]\n{rule}\n[[proxy.p.deny]]\n{key}=['{value}']")


def test_the_example_is_good_on_this_machine(tmp_path: Path) -> None:
    """example.toml loads as it is, and uses every key of the schema."""
    copy = shutil.copy(EXAMPLE, tmp_path / "sockguard.toml")
    os.chmod(copy, 0o644)
    tmp_path.chmod(0o755)
    assert set(load_file(str(copy)).proxies) == {"printer", "queue", "session", "bus", "docker"}
