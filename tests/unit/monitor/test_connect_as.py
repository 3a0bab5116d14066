"""Whom the monitor connects as: the kernel's word on a connection that came in by that proxy, whatever control says."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sockguard.errors import ChannelError, SockguardError
from sockguard.identity import peercred
from sockguard.identity.peer import Unknown
from sockguard.monitor import doors, impersonate, plan, process
from sockguard.monitor.process import Monitor
from sockguard.privsep.messages import (
    Accept,
    Accepted,
    Adopt,
    Bind,
    ConnectAs,
    Done,
    Message,
    NotConnected,
    ReadConfig,
    Unbind,
)
from sockguard.privsep.rights import Account

CONFIG = """
[proxy.shown]
listen = "{folder}/shown"
backend = "{folder}/private"
identity = "client"
allow_root_identity = true
[proxy.other]
listen = "{folder}/other"
backend = "{folder}/private-2"
protocol = "seqpacket"
identity = "client"
[proxy.bytes]
listen = "{folder}/bytes"
backend = "{folder}/private"
protocol = "http"
identity = "client"
allow_root_identity = true
[proxy.plain]
listen = "{folder}/plain"
backend = "{folder}/private"
[proxy.unbound]
listen = "{folder}/unbound"
backend = "{folder}/private"
identity = "client"
"""
Asked = tuple[str, int, Account, Account | None, bool]


class Case:
    """A monitor with four of these proxies bound. ``asked``: what impersonate.connect_as was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = folder / "sockguard.toml"
        config.write_text(CONFIG.format(folder=folder))
        config.chmod(0o600)
        self.asked: list[Asked] = []
        self.answer: socket.socket | int = errno.ECONNREFUSED
        self.proof = ""
        self.monitor = Monitor(str(config))
        os.close(self.monitor._read_config(ReadConfig())[1][0])
        self.monitor._impersonations = plan.impersonations(self.monitor._sources)  # as adopt does
        self.listeners = {
            name: socket.socket(fileno=self.monitor._bind(Bind(name))[1][0])
            for name in ("shown", "other", "bytes", "plain")
        }
        self.monitor._working_set = frozenset(range(64))  # nothing to give up here: the rights are the whole test run's
        self.monitor._adopt(Adopt())

    def connect_as(
        self, path: str, kind: int, client: Account, files_as: Account | None, *, refuse_fds: bool
    ) -> socket.socket | int:
        self.asked.append((path, kind, client, files_as, refuse_fds))
        return self.answer

    def accepted(self, proxy: str) -> tuple[socket.socket, socket.socket]:
        """A client's end and what the proxy's listener accepts, in the monitor where it shows the client."""
        listener = self.listeners[proxy]
        client = socket.socket(socket.AF_UNIX, listener.type)
        client.connect(str(self.folder / proxy))
        if proxy == "plain":
            return client, listener.accept()[0]
        answer, (fd,) = self.monitor._accept(Accept(proxy, 1))
        assert isinstance(answer, Accepted)
        assert answer.number == 0
        self.proof = str(answer.rows[0][0])
        return client, socket.socket(fileno=fd)

    def ask(self, proxy: str, fd: int) -> tuple[Message, list[int]]:
        """With the proof of what was accepted last."""
        return self.monitor._connect_as(ConnectAs(proxy, self.proof), fd)

    def refuses(self, proxy: str, fd: int) -> str:
        """It must be refused, nobody connected, and no descriptor left open. Gives the reason."""
        before = os.listdir("/proc/self/fd")
        with pytest.raises(SockguardError) as caught:
            self.ask(proxy, fd)
        assert os.listdir("/proc/self/fd") == before
        assert not self.asked
        return str(caught.value)


@pytest.fixture
def case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(process, "_SPAWNING", frozenset())  # what is looked at here needs no privilege
    made = Case(folder)
    monkeypatch.setattr(impersonate, "connect_as", made.connect_as)
    yield made
    for listener in (*made.listeners.values(), *(door._listener for door in made.monitor._doors._doors.values())):
        listener.close()


def test_the_client_is_who_the_kernel_says(case: Case) -> None:
    """The ids are SO_PEERCRED's and SO_PEERGROUPS', all else is the file's: control names none of it."""
    me = Account(os.geteuid(), os.getegid(), tuple(frozenset(os.getgroups())))
    for proxy, kind, backend, refuse_fds in (
        ("shown", socket.SOCK_STREAM, "private", False),
        ("other", socket.SOCK_SEQPACKET, "private-2", False),
        ("bytes", socket.SOCK_STREAM, "private", True),
    ):
        client, accepted = case.accepted(proxy)
        with client, accepted:
            if proxy == "other" and me.uid == 0:
                assert "uid 0 is not shown" in case.refuses(proxy, accepted.fileno())
                continue
            assert case.ask(proxy, accepted.fileno()) == (NotConnected(errno.ECONNREFUSED), [])
            assert case.asked.pop() == (str(case.folder / backend), kind, me, None, refuse_fds)


def test_what_came_of_it(case: Case) -> None:
    """A connected socket is passed on, an errno is told, and want of rights is a failure with its reason."""
    client, accepted = case.accepted("shown")
    one, other = socket.socketpair()
    with client, accepted, other:
        case.answer = one
        number = one.fileno()
        assert case.ask("shown", accepted.fileno()) == (Done(1), [number])
        assert one.fileno() == -1  # its descriptor is the answer's now

        def fail(*_: object, **__: object) -> int:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(impersonate, "connect_as", fail)
            with pytest.raises(SockguardError, match="cannot be taken over: Operation not permitted"):
                case.ask("shown", accepted.fileno())
        os.close(number)


def test_only_for_proxies_that_show_the_client(case: Case) -> None:
    """A proxy with identity = "proxy", one that is not in the file, and one that was never bound get nobody's."""
    client, accepted = case.accepted("plain")
    with client, accepted:
        for proxy in ("plain", "none", "", "x" * 5000):
            assert "no identity = 'client'" in case.refuses(proxy, accepted.fileno())
        assert "not a connection that the monitor accepted" in case.refuses("unbound", accepted.fileno())
        for proxy in ("plain", "none", "unbound"):
            with pytest.raises(SockguardError, match="no identity = 'client'"):
                case.monitor._accept(Accept(proxy, 1))


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]


def bound_to_the_same_text(case: Case) -> list[socket.socket]:
    """A socket that is bound to the very text of the proxy's address, and connected to a service: its peer is who
    listens there. (Its maker needs a mount namespace; here the listener's file is moved away.)
    """
    (case.folder / "shown").rename(case.folder / "moved")
    client, accepted = bound_to(case, "shown")
    client.close()
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(case.folder / "root-listens"))
        service.listen()
        (case.folder / "shown").unlink()
        same = socket.socket(socket.AF_UNIX)
        same.bind(str(case.folder / "shown"))
        same.connect(str(case.folder / "root-listens"))
    assert same.getsockname() == accepted.getsockname() == str(case.folder / "shown")
    return [same, accepted]


def accepted_by_control(case: Case) -> list[socket.socket]:
    """By its own copy of the listener: the monitor has not seen it come in."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(case.folder / "shown"))
    return [case.listeners["shown"].accept()[0], client]


def bound_to(case: Case, name: str) -> tuple[socket.socket, socket.socket]:
    """A connection to some other service, and one that it accepts: the peer of the first is who listens there."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(case.folder / name))
        server.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(case.folder / name))
        return client, server.accept()[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda case: [socket.socket(socket.AF_UNIX)],
        lambda case: [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)],
        lambda case: [case.listeners["shown"].dup()],
        lambda case: [case.listeners["other"].dup()],
        lambda case: socket.socketpair(),
        lambda case: case.accepted("other"),
        lambda case: case.accepted("plain"),
        lambda case: [case.accepted("shown")[0]],
        lambda case: bound_to(case, "service"),
        lambda case: tcp(),
        bound_to_the_same_text,
        accepted_by_control,
    ],
    ids=[
        *("unconnected", "datagram", "its listener", "another listener", "pair"),
        *("another proxy's client", "a plain proxy's client", "the client's end", "another service", "tcp"),
        *("bound to the same text", "accepted by control"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # an end that is dropped at once
def test_a_socket_that_no_client_of_the_proxy_has_made(case: Case, make: Callable[[Case], list[socket.socket]]) -> None:
    """Their peers are whoever listens somewhere, perhaps root, or clients who asked for something else: refused, also
    with the proof of another connection.
    """
    client, accepted = case.accepted("shown")
    proofs = ["", case.proof, "\xe9", "0" * 32, "\0" * 5000]
    with client, accepted:
        for sock in make(case):
            with sock:
                for proof in proofs:
                    case.proof = proof
                    assert "not a connection that the monitor accepted" in case.refuses("shown", sock.fileno())


def test_a_proof_is_of_one_connection_and_one_listener(case: Case) -> None:
    """It is good as often as it is asked for, for that connection alone, and until the proxy is bound anew."""
    client, accepted = case.accepted("bytes")
    first = case.proof
    other_client, other = case.accepted("bytes")
    with client, accepted, other_client, other:
        assert first != case.proof
        assert "not a connection that the monitor accepted" in case.refuses("bytes", accepted.fileno())
        case.proof = first
        for _ in range(2):
            assert case.ask("bytes", accepted.fileno()) == (NotConnected(errno.ECONNREFUSED), [])
            case.asked.clear()
        assert "not a connection that the monitor accepted" in case.refuses("shown", accepted.fileno())
        case.listeners.pop("bytes").close()
        case.monitor._unbind(Unbind("bytes"))
        assert "not a connection that the monitor accepted" in case.refuses("bytes", accepted.fileno())
        case.listeners["bytes"] = socket.socket(fileno=case.monitor._bind(Bind("bytes"))[1][0])
        assert "not a connection that the monitor accepted" in case.refuses("bytes", accepted.fileno())


def test_as_many_are_accepted_as_were_asked_for(case: Case) -> None:
    """Each with a proof of its own, in the order in which they came; none where none waits."""
    clients = []
    for _ in range(3):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(case.folder / "shown"))
    for most, expected in ((2, 2), (500, 1), (500, 0)):
        answer, fds = case.monitor._accept(Accept("shown", most))
        assert isinstance(answer, Accepted)
        assert (answer.number, answer.fds(), len(set(answer.rows))) == (0, expected, expected)
        for fd, (proof,) in zip(fds, answer.rows, strict=True):
            with socket.socket(fileno=fd) as accepted:
                case.proof = str(proof)
                case.ask("shown", fd)
                accepted.sendall(b"x")
                with clients.pop(0) as client:
                    assert client.recv(1) == b"x"


def test_control_has_made_the_listener_one_that_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags are shared. It does not keep the monitor waiting: that ends control."""
    monkeypatch.setattr(doors, "_ACCEPT_SECONDS", 0.01)
    monkeypatch.setattr(os, "set_blocking", lambda *_: case.listeners["shown"].setblocking(True))  # in that very moment
    with pytest.raises(ChannelError, match="a listening socket that blocks"):
        case.monitor._accept(Accept("shown", 1))


def test_what_is_no_socket(case: Case) -> None:
    """A file, a pipe and a folder are refused, and do not end the monitor."""
    reader, writer = os.pipe()
    for fd in (reader, writer, os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_PATH)):
        assert "not a connection whose peer can be known" in case.refuses("shown", fd)
        os.close(fd)


@pytest.mark.parametrize(
    ("ids", "groups", "proxy", "said"),
    [
        ((1, 0, 5), {5}, "plain", "no identity"),
        ((1, 65534, 5), {5}, "shown", "no mapping"),
        ((1, 5, 65534), {5}, "shown", "no mapping"),
        ((1, 5, 5), {5, 65534}, "shown", "no mapping"),
        ((1, 5, 5), Unknown("no"), "shown", "no mapping"),
        ((1, 0, 0), {65534}, "shown", "no mapping"),
    ],
)
def test_identities_that_are_not_shown(
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    ids: tuple[int, int, int],
    groups: set[int] | Unknown,
    proxy: str,
    said: str,
) -> None:
    """An id that has no mapping here, and groups that cannot be known. (What the kernel says is put in its mouth.)"""
    client, accepted = case.accepted(proxy)
    monkeypatch.setattr(peercred, "credentials", lambda _: ids)
    monkeypatch.setattr(peercred, "supplementary_groups", lambda _: groups)
    with client, accepted:
        assert said in case.refuses(proxy, accepted.fileno())


def test_uid_0(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown only where the file as the monitor reads it has allow_root_identity; gid 0 is a gid like others."""
    monkeypatch.setattr(peercred, "supplementary_groups", lambda _: frozenset())
    for uid, proxy, shown in ((0, "shown", True), (0, "other", False), (7, "other", True)):
        monkeypatch.setattr(peercred, "credentials", lambda _, uid=uid: (1, uid, 0))
        client, accepted = case.accepted(proxy)
        with client, accepted:
            if shown:
                assert case.ask(proxy, accepted.fileno())[0] == NotConnected(errno.ECONNREFUSED)
                assert case.asked.pop()[2] == Account(uid, 0, ())
            else:
                assert "allow_root_identity is false" in case.refuses(proxy, accepted.fileno())


def test_a_proxy_that_listens_elsewhere_by_now(case: Case) -> None:
    """A file in which it has another place came into force, and that place was not bound: nobody came in by it."""
    client, accepted = case.accepted("shown")
    with client, accepted:
        case.monitor._in_force["shown"] = dataclasses.replace(case.monitor._in_force["shown"], text="/elsewhere")
        assert "not a connection that the monitor accepted" in case.refuses("shown", accepted.fileno())
        del case.monitor._in_force["shown"]
        assert "not a connection that the monitor accepted" in case.refuses("shown", accepted.fileno())
