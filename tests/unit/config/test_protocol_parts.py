"""What a protocol's own module reads of the file: rules about requests, options, descriptors; and its mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sockguard
from sockguard.config import requests
from sockguard.config.settings import Config
from sockguard.protocols.registry import rules_of

Load = Callable[..., Config]
Mistakes = Callable[..., list[str]]

HEAD = '[proxy.x]\nlisten = "/run/x.sock"\nbackend = "/run/private/x.sock"\n'
NO_MEMBER = "must be a member's name such as 'Get', or a pattern such as 'Get*'; not 'N.O'"
UNIQUE = "':1.5' is a unique name, which says nothing of who has it; give a well-known name"
BUS = HEAD + 'protocol = "dbus"\n'


def test_rules_about_requests(load_texts: Load) -> None:
    """Entries become plain JSON, whose values are lists; a rule without them is about everything."""
    text = BUS + (
        '[[proxy.x.allow]]\nusers = ["ci"]\n'
        'dbus = [{ destination = "org.a.A", member = "M" }, { own = ["org.b.B", "org.b.C"] }]\n'
        "[[proxy.x.allow]]\nusers = [0]\n"
        '[[proxy.x.deny]]\nusers = [7]\n[[proxy.x.deny.dbus]]\ninterface = "x.y"\n'
    )
    proxy = load_texts(text).proxies["x"]
    assert [rule.what for rule in proxy.rules] == [
        ({"destination": ["org.a.A"], "member": ["M"]}, {"own": ["org.b.B", "org.b.C"]}),
        None,
        ({"interface": ["x.y"]},),
    ]
    assert proxy.protocol == "dbus"
    assert proxy.options == {}


def test_all_mistakes_of_a_protocol_in_one_go(mistakes_of: Mistakes) -> None:
    """Each with the line it is on, beside the mistakes of everything else."""
    text = BUS + (
        "fdz = 1\n"
        "[proxy.x.dbus]\n"
        "timeout = 1\n"
        "[[proxy.x.allow]]\n"
        'dbus = [{ destination = "org.a.A" }]\n'
        "[[proxy.x.allow]]\n"
        'users = ["rot"]\n'
        "dbus = [\n"
        '  { membr = "M", destination = "org.a.A" },\n'
        '  { destination = "org.a.A", member = [\n    "M",\n    "N.O"] },\n'
        "  7,\n"
        "]\n"
        "[[proxy.x.allow]]\n"
        "users = [0]\n"
        "dbus = []\n"
        "[[proxy.x.allow]]\n"
        "users = [0]\n"
        'dbsu = [{ own = "org.a.A" }]\n'
        "[[proxy.x.deny]]\n"
        "users = [0]\n"
        'dbus = "org.a.A"\n'
        'http = ["GET /"]\n'
        "[[proxy.x.deny]]\n"
        "users = [0]\n"
        "[[proxy.x.deny.dbus]]\n"
        'destination = ":1.5"\n'
    )
    assert mistakes_of(text) == [
        "f:5: proxy.x.fdz: unknown key; did you mean 'fds'?",
        "f:7: proxy.x.dbus.timeout: unknown key: dbus has no options",
        "f:8: proxy.x.allow[0]: a rule needs at least one of who, users, groups, executables, units, labels",
        "f:11: proxy.x.allow[1].users[0]: unknown user 'rot'; did you mean 'root'?",
        "f:13: proxy.x.allow[1].dbus[0].membr: unknown key; did you mean 'member'?",
        f"f:16: proxy.x.allow[1].dbus[1].member[1]: {NO_MEMBER}",
        'f:17: proxy.x.allow[1].dbus[2]: must be a table such as { destination = "org.example.App" }, not an integer',
        "f:21: proxy.x.allow[2].dbus: an empty list matches no request; leave the key out for all of them",
        "f:24: proxy.x.allow[3].dbsu: unknown key; did you mean 'dbus'?",
        "f:27: proxy.x.deny[0].dbus: must be an array of tables, not a string",
        "f:28: proxy.x.deny[0].http: is a rule of protocol 'http'; proxy.x has protocol 'dbus'",
        f"f:32: proxy.x.deny[1].dbus[0].destination: {UNIQUE}",
    ]


def test_an_options_table_that_is_none(mistakes_of: Mistakes) -> None:
    """Said as for every other table."""
    assert mistakes_of(f"{BUS}dbus = 1\n[[proxy.x.allow]]\nusers = [0]\n") == [
        "f:5: proxy.x.dbus: must be a table, not an integer"
    ]


@pytest.mark.parametrize(
    ("protocol", "fds", "found"),
    [
        ("stream", None, "forward"),
        ("seqpacket", None, "forward"),
        ("dbus", None, "forward"),
        ("http", None, "refuse"),
        ("stream", "refuse", "refuse"),
        ("dbus", "refuse", "refuse"),
        ("http", "refuse", "refuse"),
    ],
)
def test_passed_descriptors(load_texts: Load, protocol: str, fds: str | None, found: str) -> None:
    """What becomes of them unless the file says it depends on the protocol."""
    line = "" if fds is None else f'fds = "{fds}"\n'
    text = f'{HEAD}protocol = "{protocol}"\n{line}[[proxy.x.allow]]\nusers = [0]\n'
    assert load_texts(text).proxies["x"].fds == found


def test_descriptors_where_there_are_none(mistakes_of: Mistakes) -> None:
    """A protocol that passes none cannot be told to forward them."""
    assert mistakes_of(f'{HEAD}protocol = "http"\nfds = "forward"\n[[proxy.x.allow]]\nusers = [0]\n') == [
        "f:5: proxy.x.fds: protocol 'http' passes no file descriptors: 'refuse', or leave the key out"
    ]


def test_options(load_texts: Load) -> None:
    """Those of the file, and defaults for the others, also where there is no table."""
    rule = "[[proxy.x.allow]]\nusers = [0]\n"
    plain = load_texts(f'{HEAD}protocol = "http"\n{rule}').proxies["x"].options
    given = load_texts(f'{HEAD}protocol = "http"\n{rule}[proxy.x.http]\nstrip_prefix = "docker-version"\n')
    assert plain == rules_of("http").read_options({})
    assert given.proxies["x"].options == rules_of("http").read_options({"strip_prefix": "docker-version"}) != plain


def test_no_entries_are_not_everything(monkeypatch: pytest.MonkeyPatch, load_texts: Load) -> None:
    """A protocol that should make nothing of a rule's *what* (ours never do, so it is a fake) widens no rule."""

    class Nothing:
        def read_what(self, key: str, value: object, *, deny: bool) -> list[object]:
            return []

        def read_options(self, table: object) -> dict[str, object]:
            return {}

    monkeypatch.setattr(requests, "rules_of", lambda protocol: Nothing())
    text = f'{BUS}[[proxy.x.allow]]\nusers = [0]\ndbus = [{{ own = "o.A" }}]\n'
    assert load_texts(text).proxies["x"].rules[0].what == ()


@pytest.mark.parametrize(
    ("protocol", "loaded"), [("stream", set()), ("dbus", {"dbus"}), ("http", {"http"})], ids=lambda value: str(value)
)
def test_only_the_protocols_of_the_file_are_loaded(protocol: str, loaded: set[str], tmp_path: Path) -> None:
    """A file of one protocol does not pay for another's module, nor break with it."""
    code = (
        "import sys; from sockguard.config.load import load; from sockguard.config.read import Source;"
        "from sockguard.identity.accounts import Accounts;"
        "load([Source('f', sys.stdin.buffer.read())], Accounts([], []));"
        "print(*(name for name in ('dbus', 'http') if f'sockguard.protocols.{name}.rules' in sys.modules))"
    )
    text = f'{HEAD}protocol = "{protocol}"\n[[proxy.x.allow]]\nusers = [0]\n'
    root = Path(sockguard.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, input=text, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == loaded


def test_a_proxy_whose_protocol_is_a_mistake(mistakes_of: Mistakes) -> None:
    """What its rules say about requests is not judged: one mistake."""
    text = f'{HEAD}protocol = "dbsu"\n[proxy.x.dbus]\n[[proxy.x.allow]]\nusers = [0]\ndbus = [1]\n'
    assert len(mistakes_of(text)) == 1
    assert len(mistakes_of(text.replace('"dbsu"', '["dbus"]'))) == 1
