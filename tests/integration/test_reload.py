"""Another configuration while everything runs: all of it or none, and live connections go by it at once."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import connect, exchange
from tests.support.daemon import running
from tests.support.dbus import Client as BusClient
from tests.support.dbus import dbus_daemon
from tests.support.identities import (
    PYTHON,
    Client,
    account_if_missing,
    open_folder,
    someone,
    wait_started,
    wait_until,
)
from tests.support.reloading import Subject, proxy
from tests.support.services import serving

pytestmark = pytest.mark.root

REMEDY = "restart sockguard, or give it a new name and another place"
BOTH = "allow = [{ users = [4242, 4243] }]"

# Argument: a path. Short connections until standard input ends; prints how many, or what went wrong with one.
_SHORT_CONNECTIONS = """
import select, socket, sys
done = 0
while not select.select([0], [], [], 0)[0]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(sys.argv[1])
        sock.sendall(b"ping")
        answer = sock.recv(100)
        if answer != b"ping":
            sys.exit(f"after {done}: {answer}")
    done += 1
    if done == 1:
        print("first", flush=True)
print(done)
"""

# Argument: a control socket. Says that it has asked, and then what is answered.
_ASK_FOR_RELOAD = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b"POST /reload HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print("asked", flush=True)
    print(sock.makefile().read())
"""


@pytest.fixture(scope="module")
def separated() -> Iterator[Subject]:
    """A daemon as the package sets it up: control and relays under accounts of their own, the file for root alone."""
    with ExitStack() as made:
        folder = made.enter_context(open_folder())
        for name in ("sockguard", "sockguard-relay"):
            made.enter_context(account_if_missing(name))
        made.enter_context(serving(folder / "private"))
        config = folder / "sockguard.toml"
        config.touch(0o600)
        config.write_text("[daemon]\nrelays = 2\n" + proxy(folder, "echo", BOTH))
        daemon = made.enter_context(running(config, folder / "echo"))
        wait_started(daemon)
        yield Subject(daemon, folder)


@pytest.fixture
def subject(separated: Subject) -> Subject:
    """That daemon, with one proxy, echo, for uids 4242 and 4243, in force; of the test before nothing is left in it."""
    wait_until(lambda: not separated.connections(), "the connections of the test before end")
    separated.reload(proxy(separated.folder, "echo", BOTH))
    assert stat.S_IMODE(separated.daemon.config.stat().st_mode) == 0o600
    return separated


def test_a_protocol_that_comes_by_reload(subject: Subject) -> None:
    """Relays in their cage cannot learn it: others take their place, and those end with their last connection."""
    path, bus = subject.folder / "echo", subject.folder / "bus"
    restarts = len(subject.daemon.events("relay_restarted"))

    def relays() -> set[int]:
        return set(subject.daemon.pids()["sockguard-relay"])

    with Client(4242, 4242) as client, dbus_daemon(subject.folder / "bus-private", 0) as private:
        assert client.meet(path) != "closed"
        before = relays()
        table = f'''
[proxy.bus]
listen = "{bus}"
backend = "{private.path}"
protocol = "dbus"
identity = "client"
allow = [{{ users = ["daemon"], dbus = [{{ own = "org.example.App" }}] }}]
'''
        subject.reload(proxy(subject.folder, "echo", BOTH), table)
        asked = BusClient(bus, 1).dbus_send("org.freedesktop.DBus", "org.freedesktop.DBus.GetId", path="/")
        assert asked.good, asked
        assert client.do("ask") != "closed"
        wait_until(lambda: len(before & relays()) == 1, "the end of the relay that has no connection")
        wait_until(lambda: len(relays() - before) == 2, "the others")
    wait_until(lambda: not before & relays(), "the end of the other, behind its connection")
    assert restarts == len(subject.daemon.events("relay_restarted"))


def test_user_who_loses_the_right(subject: Subject) -> None:
    """Their live connection ends as revoked, another user's goes on, and new verdicts hold when reload returns."""
    path = subject.folder / "echo"
    with Client(4242, 4242) as loser, Client(4243, 4243) as keeper:
        assert (loser.meet(path), keeper.meet(path)) == ("ping", "ping")
        after = subject.now()
        assert subject.reload(proxy(subject.folder, "echo", "allow = [{ users = [4243, 4244] }]"))["revoked"] == 1
        assert someone(4242)(path) == "closed"
        assert someone(4244)(path) == "ping"
        assert loser.do("ask") == "closed"
        assert keeper.do("ask") == "ping"
        closed = subject.event("connection_closed", after, outcome="revoked")
        assert (closed["uid"], closed["rule"], closed["bytes_from_client"]) == (4242, "echo.allow[0]", 4)
        assert [row["uid"] for row in subject.connections() if row["uid"] != 4244] == [4243]


def test_connection_goes_by_the_rule_that_admits_it_now(subject: Subject) -> None:
    """Judged again means: by the new rules, and its end names the one of them that let it stay."""
    with Client(4242, 4242) as client:
        assert client.meet(subject.folder / "echo") == "ping"
        after = subject.now()
        rules = "allow = [{ users = [1] }, { users = [4242] }]"
        assert subject.reload(proxy(subject.folder, "echo", rules))["revoked"] == 0
        assert client.do("ask") == "ping"
    assert subject.event("connection_closed", after, uid=4242)["rule"] == "echo.allow[1]"


def test_sighup(subject: Subject) -> None:
    """The signal does what the command does, for a good file and for a bad one."""
    path, after = subject.folder / "echo", subject.now()
    subject.write(proxy(subject.folder, "echo", "allow = [{ users = [4244] }]"))
    subject.daemon.process.send_signal(signal.SIGHUP)
    subject.event("reloaded", after)
    assert (someone(4242)(path), someone(4244)(path)) == ("closed", "ping")
    subject.write("[proxy.echo")
    subject.daemon.process.send_signal(signal.SIGHUP)
    (line,) = subject.event("reload_failed", after)["mistakes"]
    assert line.startswith(f"{subject.daemon.config}:3: ")
    assert someone(4244)(path) == "ping"


def test_bad_file(subject: Subject) -> None:
    """Every mistake with its file and line, the old rules and connections go on; mended, all is well again."""
    config, path = subject.daemon.config, subject.folder / "echo"
    with Client(4242, 4242) as client:
        assert client.meet(path) == "ping"
        lines = subject.refused(proxy(subject.folder, "echo", 'allow = [{ usres = [4244] }]\nmax_connections = "many"'))
        assert [line.split(" ")[:2] for line in lines] == [
            [f"{config}:6:", "proxy.echo.allow[0].usres:"],
            [f"{config}:7:", "proxy.echo.max_connections:"],
        ]
        assert client.do("ask") == "ping"
        assert (someone(4242)(path), someone(4244)(path)) == ("ping", "closed")
        assert "RELOAD REFUSED" in subject.command("status").stdout
        subject.reload(proxy(subject.folder, "echo", "allow = [{ users = [4242, 4244] }]"))
        assert client.do("ask") == "ping"
    assert someone(4244)(path) == "ping"
    last = subject.status()["last_reload"]
    assert (last["ok"], last["errors"]) == (True, [])


def test_expectation_that_fails(subject: Subject) -> None:
    """A file whose own test fails is refused, though each of its rules could be gone by."""
    expect = '[[proxy.echo.expect]]\nuid = 4242\nverdict = "allow"\n'
    (line,) = subject.refused(proxy(subject.folder, "echo", "allow = [{ users = [4243] }]"), expect)
    assert line.startswith(f"{subject.daemon.config}:9: proxy.echo.expect[0].verdict: expected allow for uid 4242")
    assert someone(4242)(subject.folder / "echo") == "ping"


def test_missing_file(subject: Subject) -> None:
    """A file that is gone is refused like a bad one."""
    config = subject.daemon.config
    config.rename(config.with_suffix(".away"))
    done = subject.command("reload", "--config", config)
    config.with_suffix(".away").rename(config)
    assert done.returncode == 2
    assert str(config) in done.stderr
    assert someone(4242)(subject.folder / "echo") == "ping"


def test_proxies_come_and_go(subject: Subject) -> None:
    """A new proxy is bound and served; one that is gone takes its socket file and its connections along, no others."""
    folder, echo = subject.folder, proxy(subject.folder, "echo", BOTH)
    subject.reload(proxy(folder, "first"), echo, proxy(folder, "last"))  # the proxies' numbers in relays change
    with Client(4242, 4242) as stays, Client(4242, 4242) as goes:
        assert (stays.meet(folder / "echo"), goes.meet(folder / "first")) == ("ping", "ping")
        assert someone(4242)(folder / "last") == "ping"
        after = subject.now()
        assert subject.reload(echo, proxy(folder, "last"))["revoked"] == 1
        assert not (folder / "first").exists()
        assert goes.do("ask") == "closed"
        assert stays.do("ask") == "ping"
        assert subject.event("connection_closed", after, proxy="first")["outcome"] == "revoked"
        assert someone(4242)(folder / "last") == "ping"
        assert [row["name"] for row in subject.status()["proxies"]] == ["echo", "last"]
        subject.reload(proxy(folder, "first"), echo)  # once more at the same place
        assert someone(4242)(folder / "first") == "ping"
        assert stays.do("ask") == "ping"


def test_place_of_a_new_proxy_is_taken(subject: Subject) -> None:
    """One that cannot be bound refuses everything: nothing is bound, the rules are the old ones, the place its own."""
    folder = subject.folder
    with serving(folder / "taken"), serving(folder / "taken2"):
        lines = subject.refused(
            proxy(folder, "new"),
            proxy(folder, "taken"),
            proxy(folder, "taken2"),
            proxy(folder, "echo", "allow = [{ users = [4244] }]"),
        )
        assert [line.partition(": ")[0] for line in lines] == ["proxy.taken.listen", "proxy.taken2.listen"]
        assert all("listens" in line for line in lines)
        assert not (folder / "new").exists()
        assert (exchange(folder / "taken"), exchange(folder / "taken2")) == ("ping", "ping")
        assert (someone(4242)(folder / "echo"), someone(4244)(folder / "echo")) == ("ping", "closed")
    subject.reload(proxy(folder, "new"), proxy(folder, "taken"), proxy(folder, "echo"))  # in the way no more
    assert (someone(4242)(folder / "new"), someone(4242)(folder / "taken")) == ("ping", "ping")


@pytest.mark.parametrize(
    ("key", "rules", "replaced"),
    [
        ("mode", "mode = 0o600", {}),
        ("listen", "", {"listen": "@sockguard-test-reload"}),
        ("protocol", 'protocol = "seqpacket"', {}),
    ],
)
def test_what_takes_a_restart(subject: Subject, key: str, rules: str, replaced: dict[str, str]) -> None:
    """A running proxy keeps its place, its type and its mode; the refusal names the key and the way."""
    before = (subject.folder / "echo").stat()
    (line,) = subject.refused(proxy(subject.folder, "echo", f"{BOTH}\n{rules}", **replaced))
    assert line == f"proxy.echo.{key}: cannot change while the proxy runs: {REMEDY}"
    assert (subject.folder / "echo").stat() == before
    assert someone(4242)(subject.folder / "echo") == "ping"


def test_capability_that_was_given_up(subject: Subject) -> None:
    """Rules on programs need what the monitor gave up at the start: refused by its name, a new proxy unbound again."""
    folder = subject.folder
    rules = f'allow = [{{ executables = ["{PYTHON}"], users = ["*"] }}]'
    (line,) = subject.refused(proxy(folder, "echo", rules), proxy(folder, "new"))
    assert line == "CAP_SYS_PTRACE was given up at the start, when no proxy needed it: restart sockguard"
    assert not (folder / "new").exists()
    assert someone(4242)(folder / "echo") == "ping"


def test_limits(subject: Subject) -> None:
    """A lower max_connections counts the live ones and closes none of them; a higher one holds at once."""
    path, echo = subject.folder / "echo", proxy(subject.folder, "echo", BOTH)
    with Client(4242, 4242) as one, Client(4242, 4242) as two:
        assert (one.meet(path), two.meet(path)) == ("ping", "ping")
        after = subject.now()
        assert subject.reload(echo + "max_connections = 1")["revoked"] == 0
        assert someone(4243)(path) == "closed"
        assert subject.event("connection_denied", after, uid=4243)["reason"] == "max_connections: 1 are open"
        assert (one.do("ask"), two.do("ask")) == ("ping", "ping")
        subject.reload(echo + "max_connections = 3")
        assert someone(4243)(path) == "ping"


def test_idle_timeout(subject: Subject) -> None:
    """A live connection that began without an idle timeout ends by the one that it gets."""
    with Client(4242, 4242) as client:
        assert client.meet(subject.folder / "echo") == "ping"
        after = subject.now()
        subject.reload(proxy(subject.folder, "echo", BOTH) + 'idle_timeout = "1s"')
        assert subject.event("connection_closed", after, outcome="idle_timeout")["uid"] == 4242
        assert client.do("ask") == "closed"


def test_enforce(subject: Subject) -> None:
    """Permissive lets in and says so; enforcing again ends what only permissiveness had let in."""
    path = subject.folder / "echo"
    subject.reload(proxy(subject.folder, "echo", BOTH) + "enforce = false")
    with Client(4244, 4244) as stranger, Client(4242, 4242) as known:
        after = subject.now()
        assert (stranger.meet(path), known.meet(path)) == ("ping", "ping")
        assert subject.event("would_deny", after)["uid"] == 4244
        assert subject.reload(proxy(subject.folder, "echo", BOTH))["revoked"] == 1
        assert (stranger.do("ask"), known.do("ask")) == ("closed", "ping")


def test_connection_that_waits_for_its_backend(subject: Subject) -> None:
    """It is judged again like one that has been handed over: revoked while the backend's backlog is full."""
    folder = subject.folder
    with ExitStack() as made:
        full = made.enter_context(socket.socket(socket.AF_UNIX))
        full.bind(str(folder / "full"))
        (folder / "full").chmod(0o666)
        full.listen(0)
        made.callback((folder / "full").unlink)
        made.enter_context(connect(folder / "full"))  # its backlog is of one
        options = 'connect_timeout = "100s"\n'
        waiting = proxy(folder, "waiting", f"{BOTH}\n{options}", backend=str(folder / "full"))
        subject.reload(proxy(folder, "echo", BOTH), waiting)
        client, other = (made.enter_context(Client(uid, uid)) for uid in (4242, 4243))
        after = subject.now()
        client.do("connect", folder / "waiting")
        other.do("connect", folder / "waiting")
        subject.event("connection_admitted", after, uid=4242)
        subject.event("connection_admitted", after, uid=4243)
        assert {row["state"] for row in subject.connections()} == {"connecting"}
        subject.reload(
            proxy(folder, "echo", BOTH),
            waiting.replace("4242, ", ""),
        )
        closed = subject.event("connection_closed", after, proxy="waiting")
        assert (closed["uid"], closed["outcome"]) == (4242, "revoked")
        assert client.do("ask") == "closed"
        assert [row["uid"] for row in subject.connections()] == [4243]


def test_relay_that_does_not_take_the_rules(subject: Subject) -> None:
    """It is killed and replaced, its connections with it; the reload is done, and the other relay's go on."""
    path = subject.folder / "echo"
    with Client(4242, 4242) as one, Client(4242, 4242) as two:
        assert (one.meet(path), two.meet(path)) == ("ping", "ping")  # to the relay with the least to do: one to each
        before = subject.daemon.pids()["sockguard-relay"]
        after = subject.now()
        os.kill(before[0], signal.SIGSTOP)
        assert subject.reload(proxy(subject.folder, "echo", BOTH) + "max_connections = 7")["revoked"] == 0
        subject.event("relay_restarted", after)
        subject.event("connection_closed", after, outcome="relay_lost")
        assert sorted((one.do("ask"), two.do("ask"))) == ["closed", "ping"]
        wait_until(lambda: before[0] not in subject.daemon.pids()["sockguard-relay"], "the killed one has gone")
        pids = subject.daemon.pids()["sockguard-relay"]
        assert len(pids) == 2
        assert set(pids) & set(before) == {before[1]}
        assert {someone(4242)(path) for _ in range(4)} == {"ping"}


def test_reload_under_load(subject: Subject) -> None:
    """Twenty clients make connection after connection during ten reloads, and none of them sees a failure."""
    path = subject.folder / "echo"
    clients = [
        subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", _SHORT_CONNECTIONS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=4242,
            group=4242,
            extra_groups=[],
            cwd="/",
        )
        for _ in range(20)
    ]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "first\n"
    for number in range(10):
        beside = [proxy(subject.folder, "beside")] if number % 2 else []
        subject.reload(*beside, proxy(subject.folder, "echo", BOTH) + f"max_connections = {1000 + number}")
    ends = [client.communicate("", timeout=60) for client in clients]
    assert [(client.returncode, said) for client, (_, said) in zip(clients, ends, strict=True)] == [(0, "")] * 20
    assert all(int(done) > 1 for done, _ in ends)


def test_reload_that_the_end_overtakes(folder: Path) -> None:
    """Told to end while it reads the file, the daemon begins nothing new, says so, and ends as ever."""
    config = folder / "sockguard.toml"
    config.write_text(proxy(folder, "echo", BOTH))
    with serving(folder / "private"), running(config, folder / "echo") as daemon, Client(4242, 4242) as client:
        wait_started(daemon)
        subject = Subject(daemon, folder)
        assert client.meet(folder / "echo") == "ping"  # so that there is something to drain
        os.kill(daemon.process.pid, signal.SIGSTOP)
        subject.write(proxy(folder, "new"))
        with subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", _ASK_FOR_RELOAD, str(subject.control)], stdout=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout is not None
            asking.stdout.readline()
            daemon.process.send_signal(signal.SIGTERM)
            os.kill(daemon.process.pid, signal.SIGCONT)
            assert "sockguard is ending" in asking.stdout.read()
        assert not (folder / "new").exists()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(15) == 0
    assert "Traceback" not in daemon.stderr()
    assert not (folder / "echo").exists()
    wait_until(lambda: not daemon.pids(), "all of its processes end")
