"""The monitor's own reading of the file: what is good is as the full reading has it, what is not is left out."""

from __future__ import annotations

import grp
import os
import pwd
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.config.load import load
from sockguard.config.read import Source
from sockguard.identity.accounts import Accounts
from sockguard.monitor.plan import Impersonation, executables, impersonations, listen_specs, needed_capabilities
from sockguard.privsep.listening import ListenSpec
from sockguard.privsep.rights import CAP_CHOWN, CAP_SYS_PTRACE

RULE = '[[proxy.{}.allow]]\nusers = ["*"]\n'
GOOD = f"""
[proxy.a]
listen = "/run/a"
backend = "/run/private/a"
mode = 0o600
{RULE.format("a")}
[proxy.b]
listen = "@b"
backend = "/run/private/b"
fds = "refuse"
{RULE.format("b")}
[proxy.c]
listen = "fd:c"
backend = "/run/private/c"
{RULE.format("c")}
"""


def sources(*texts: str) -> tuple[Source, ...]:
    return tuple(Source(f"{index}.toml", text.encode()) for index, text in enumerate(texts))


def test_kinds_and_defaults() -> None:
    """A path, an abstract name and systemd's name, each with its options or their defaults."""
    assert listen_specs(sources(GOOD)) == {
        "a": ListenSpec("a", "path", "/run/a", 0o600, None, None, False),
        "b": ListenSpec("b", "abstract", "b", 0o666, None, None, True),
        "c": ListenSpec("c", "fd", "c", 0o666, None, None, False),
    }


def test_it_reads_as_the_full_reading_does() -> None:
    """For a good file, monitor and control mean the same sockets: nothing is bound that was not checked."""
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    owned = f"""
[proxy.d]
listen = "/run/d"
backend = "/run/private/d"
owner = "{user}"
group = "{group}"
{RULE.format("d")}
[proxy.e]
listen = "/run/e"
backend = "/run/private/e"
owner = 1234
group = 4321
mode = 432
{RULE.format("e")}
"""
    both = sources(GOOD, owned)
    full = load(both, Accounts.from_system())
    assert listen_specs(both) == {
        name: ListenSpec(
            name, p.listen.kind.value, p.listen.text, p.mode, p.owner, p.group, refuse_fds=p.fds == "refuse"
        )
        for name, p in full.proxies.items()
    }


FDS = pytest.mark.parametrize("fds", ["forward", "refuse", None])


@FDS
@pytest.mark.parametrize(
    ("protocol", "default"),
    [("http", "refuse"), ("stream", "forward"), ("seqpacket", "forward"), ("dbus", "forward"), (None, "forward")],
)
def test_descriptors_that_the_file_says_nothing_of(protocol: str | None, default: str, fds: str | None) -> None:
    """A proxy without ``fds`` has its protocol's default, for its clients and for its backend: the kernel is to refuse
    them just where control takes them to be refused. What the file says counts, whatever the protocol.
    """
    text = '[proxy.p]\nlisten = "/run/p"\nbackend = "/run/private/p"\nidentity = "client"\n'
    text += f'protocol = "{protocol}"\n' if protocol else ""
    text += f'fds = "{fds}"\n' if fds else ""
    refused = (fds or default) == "refuse"
    assert listen_specs(sources(text))["p"].refuse_fds is refused
    assert impersonations(sources(text))["p"].refuse_fds is refused
    if protocol == "http" and fds == "forward":
        return  # which is a mistake in the file: the full reading refuses it
    full = load(sources(text + "allow_root_identity = true\n" + RULE.format("p")), Accounts.from_system())
    assert (full.proxies["p"].fds == "refuse") is refused


@FDS
def test_descriptors_by_a_protocol_that_there_is_not(fds: str | None) -> None:
    """It is no fault here, and nothing is refused that the file does not say."""
    for protocol in ('"ftp"', '""', "1", "[]", "{}", '["http"]'):
        text = f'[proxy.p]\nlisten = "/run/p"\nbackend = "/b"\nidentity = "client"\nprotocol = {protocol}\n'
        text += f'fds = "{fds}"\n' if fds else ""
        assert listen_specs(sources(text))["p"].refuse_fds is (fds == "refuse")
        assert impersonations(sources(text))["p"].refuse_fds is (fds == "refuse")


def test_impersonations() -> None:
    """Of proxies that show the client: where to, in what type, whether root is shown, and whether fds are refused."""
    text = """
[proxy.a]
listen = "/run/a"
backend = "/run/private/a"
identity = "client"
[proxy.b]
listen = "/run/b"
backend = "/run/private/b"
protocol = "seqpacket"
identity = "client"
allow_root_identity = true
fds = "refuse"
[proxy.c]
listen = "/run/c"
backend = "/run/private/c"
"""
    assert impersonations(sources(text)) == {
        "a": Impersonation("/run/private/a", socket.SOCK_STREAM, root=False, refuse_fds=False),
        "b": Impersonation("/run/private/b", socket.SOCK_SEQPACKET, root=True, refuse_fds=True),
    }


def test_what_is_not_as_it_should_be_is_left_out() -> None:
    """A file that does not parse, a proxy without a socket or of another type: not there, and no exception."""
    text = """
proxy.number = 1
[proxy.no_listen]
backend = "/run/x"
[proxy.empty]
listen = ""
[proxy.typed]
listen = 7
[proxy.good]
listen = "/run/good"
"""
    found = listen_specs(sources("[[broken", "\udcff".encode("utf-8", "surrogatepass").decode("latin1"), text))
    assert list(found) == ["good"]
    assert listen_specs((Source("bytes.toml", b"\xff\xfe"), Source("deep.toml", b"a=" + b"[" * 5000))) == {}
    assert listen_specs(sources("proxy = 1", "[[proxy]]\nlisten = '/run/x'")) == {}


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (GOOD, set()),
        ('[[proxy.a.allow]]\nexecutables = ["/x"]', {CAP_SYS_PTRACE}),
        ('[[proxy.a.deny]]\nexecutables = ["/x"]', {CAP_SYS_PTRACE}),
        ('[who.w]\nexecutables = ["/x"]', {CAP_SYS_PTRACE}),
        ("[proxy.a]\nowner = 0", {CAP_CHOWN}),
        ("[proxy.a]\ngroup = 'adm'", {CAP_CHOWN}),
        ('[proxy.a]\ngroup = 1\n[[proxy.a.allow]]\nexecutables = ["/x"]', {CAP_CHOWN, CAP_SYS_PTRACE}),
        ("proxy.a.allow = 1", set()),
        ("proxy.a.allow = [1, 'x']", set()),
        ("[[broken", set()),
    ],
)
def test_capabilities_are_kept_only_if_some_proxy_needs_them(text: str, needed: set[int]) -> None:
    """CAP_SYS_PTRACE for `executables`, CAP_CHOWN for `owner` and `group`, nothing otherwise."""
    assert needed_capabilities(sources(text)) == needed


def test_capabilities_of_any_file() -> None:
    """A file of sockguard.d counts as the first one does."""
    assert needed_capabilities(sources(GOOD, "[proxy.z]\nowner = 1")) == {CAP_CHOWN}


LEAF = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=4)
KEYS = st.sampled_from(
    ["listen", "backend", "identity", "protocol", "mode", "owner", "group", "fds", "allow", "deny", "executables"]
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(bool(value)).lower()
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else "x" for c in str(value)) + '"'


@given(
    st.recursive(
        LEAF,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=10,
    )
)
def test_no_file_stops_the_monitor(value: object) -> None:
    """Whatever shape a proxy has, reading it raises nothing, and gives text, numbers and None only."""
    found = listen_specs(sources(f"[proxy]\na = {toml(value)}"))
    needed_capabilities(sources(f"[proxy]\na = {toml(value)}"))
    impersonations(sources(f"[proxy]\na = {toml(value)}"))
    for spec in found.values():
        assert isinstance(spec.text, str)
        assert isinstance(spec.mode, int)
        assert all(each is None or isinstance(each, int) for each in (spec.owner, spec.group))


def test_programs_that_are_looked_at() -> None:
    """Those that the proxy's rules or any named set name; all where a deny is about programs. The odd is left out."""
    text = """
[proxy.a]
allow = [{ users = ["*"], executables = ["/bin/a", 3, "[", ""] }, "odd", { executables = "/bin/text" }]
deny = [{ users = ["x"] }]
[proxy.b]
deny = [{ executables = ["/bin/b"] }]
[proxy.c]
deny = [{ who = ["s"] }]
[proxy.d]
allow = 3
deny = "odd"
"""
    named = '[who.s]\nexecutables = ["/opt/*"]\n[who.t]\nusers = ["x"]\n'
    every = frozenset({"**"})
    assert executables(sources(text, named)) == {
        "a": {"/bin/a", "/opt/*"},
        "b": every,
        "c": every,
        "d": {"/opt/*"},
    }
    assert executables(sources(text)) == {"a": {"/bin/a"}, "b": every, "c": frozenset(), "d": frozenset()}
