"""Ending sockets that a peer may have passed descriptors to: not closed here where one may wait, and only there not."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

import pytest

from sockguard.carriers import master
from sockguard.carriers.disposal import Disposal
from sockguard.privsep import foreign
from sockguard.privsep.ancillary import CONTROL_BYTES
from sockguard.privsep.channel import received_fds
from sockguard.privsep.sockopt import SO_PASSPIDFD, SO_PASSRIGHTS

SECONDS: Final = 20.0
KINDS: Final = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
LOOK: Final = 64 * 1024
"""Bytes that are looked at."""


class Handed:
    """Keeps what is handed over (a fake: it stays open, and so can be told from what is closed)."""

    def __init__(self) -> None:
        self.socks: list[socket.socket] = []

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        self.socks.extend(socks)


@pytest.fixture
def handed() -> Iterator[Handed]:
    made = Handed()
    yield made
    for sock in made.socks:
        sock.close()


class Passed:
    """A descriptor to be passed: the reading end of a pipe. ``closed``: neither a process nor a queue has a copy."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self.writer, 0)

    def by(self, sock: socket.socket, data: bytes = b"x", flags: int = 0) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", self.reader))]
        sock.sendmsg([data], rights, flags)

    def let_go(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def closed(self, seconds: float = 0) -> bool:
        self.let_go()
        return self._poll.poll(seconds * 1000) == [(self.writer, select.POLLERR)]

    def finish(self) -> None:
        self.let_go()
        os.close(self.writer)


@pytest.fixture
def passed() -> Iterator[Passed]:
    made = Passed()
    yield made
    made.finish()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours and the peer's; of the kind that the test names."""
    ours, peer = socket.socketpair(socket.AF_UNIX, KINDS[getattr(request, "param", "stream")])
    with ours, peer:
        for sock in (ours, peer):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield ours, peer


Pair = tuple[socket.socket, socket.socket]
Scene = Callable[[socket.socket, socket.socket, Passed], object]
"""What has become of a connection: ours, the peer's end, and what it can pass."""


def reset(ours: socket.socket, peer: socket.socket) -> None:
    """The peer has closed with something unread, which is told as ECONNRESET."""
    ours.send(b"unread")
    peer.close()


def in_turn(*steps: Scene) -> Scene:
    def run(ours: socket.socket, peer: socket.socket, passed: Passed) -> None:
        for step in steps:
            step(ours, peer, passed)

    return run


def says(data: bytes) -> Scene:
    return lambda ours, peer, passed: peer.send(data)


def passes(data: bytes = b"x") -> Scene:
    return lambda ours, peer, passed: passed.by(peer, data)


def closes(ours: socket.socket, peer: socket.socket, passed: Passed) -> None:
    peer.close()


def resets(ours: socket.socket, peer: socket.socket, passed: Passed) -> None:
    reset(ours, peer)


def nothing(ours: socket.socket, peer: socket.socket, passed: Passed) -> None:
    return


def asks_for(option: int) -> Scene:
    return lambda ours, peer, passed: ours.setsockopt(socket.SOL_SOCKET, option, 1)


def many(count: int, data: bytes) -> Scene:
    return in_turn(*[says(data)] * count)


credentials = asks_for(socket.SO_PASSCRED)

STREAMS: Final[dict[str, tuple[Scene, bool]]] = {
    "nothing": (nothing, False),
    "closed": (closes, False),
    "reset": (resets, False),
    "bytes": (says(b"x"), False),
    "bytes, closed": (in_turn(says(b"x"), closes), False),
    "bytes, reset": (in_turn(says(b"x"), resets), False),
    "many messages": (many(200, b"abc"), False),
    "descriptor": (passes(), True),
    "descriptor, closed": (in_turn(passes(), closes), True),
    "descriptor, reset": (in_turn(passes(), resets), True),
    "bytes, descriptor": (in_turn(says(b"abc"), passes()), True),
    "descriptor, bytes": (in_turn(passes(), says(b"abc")), True),
    "many messages, descriptor": (in_turn(many(200, b"abc"), passes()), True),
    "as much as is looked at but one": (says(b"x" * (LOOK - 1)), False),
    "as much as is looked at": (says(b"x" * LOOK), True),  # nobody knows what is behind it
    "more than is looked at": (says(b"x" * (LOOK + 1)), True),
    "descriptor at the end of what is looked at": (in_turn(says(b"x" * (LOOK - 2)), passes()), True),
    "descriptor behind what is looked at": (in_turn(says(b"x" * LOOK), passes()), True),
    "credentials, nothing": (credentials, False),
    "credentials, closed": (in_turn(credentials, closes), False),
    "credentials, reset": (in_turn(credentials, resets), False),
    "credentials, bytes": (in_turn(credentials, says(b"x")), False),
    "credentials too late, bytes": (in_turn(says(b"x"), credentials), False),
    "credentials, descriptor": (in_turn(credentials, passes()), True),
    "credentials, bytes, descriptor": (in_turn(credentials, many(3, b"abc"), passes()), True),
    "credentials too late, descriptor": (in_turn(says(b"x"), passes(), credentials), True),
    "credentials in between": (in_turn(says(b"x"), credentials, says(b"x"), passes()), True),
}
"""And whether descriptors may be waiting then."""

RECORDS: Final[dict[str, tuple[Scene, bool]]] = {
    "nothing": (nothing, False),
    "closed": (closes, False),
    "reset": (resets, False),
    "credentials, nothing": (credentials, False),
    "credentials, closed": (in_turn(credentials, closes), False),
    "empty record": (says(b""), True),
    "empty record, closed": (in_turn(says(b""), closes), True),
    "empty record, reset": (in_turn(says(b""), resets), True),
    "empty record with a descriptor": (passes(b""), True),
    "empty record with a descriptor, closed": (in_turn(passes(b""), closes), True),
    "empty record, then a descriptor": (in_turn(says(b""), passes(b"")), True),
    "record": (says(b"x"), True),  # of those behind it nothing can be known
    "record, closed": (in_turn(says(b"x"), closes), True),
    "long record": (says(b"x" * (LOOK + 1)), True),
    "record with a descriptor": (passes(), True),
    "record with a descriptor, closed": (in_turn(passes(), closes), True),
    "record with a descriptor, reset": (in_turn(passes(), resets), True),
    "record, then a descriptor": (in_turn(says(b"x"), passes()), True),
    "credentials, record": (in_turn(credentials, says(b"x")), True),
    "credentials, empty record with a descriptor": (in_turn(credentials, passes(b"")), True),
}

ALL: Final = [
    pytest.param(kind, scene, held, id=f"{kind}: {name}")
    for kind, scenes in (("stream", STREAMS), ("seqpacket", RECORDS))
    for name, (scene, held) in scenes.items()
]
EVERY = pytest.mark.parametrize(("pair", "scene", "held"), ALL, indirect=["pair"])


# ── may descriptors be waiting? ──


@EVERY
@pytest.mark.parametrize("blocking", [True, False])
def test_may_hold_fds(pair: Pair, passed: Passed, scene: Scene, held: bool, blocking: bool) -> None:
    """Whatever waits, and whatever its peer has done: never "no" where a descriptor waits, and "yes" for few others.

    Looking takes nothing, installs nothing, and does not wait, be the socket blocking or not.
    """
    ours, peer = pair
    ours.setblocking(blocking)
    scene(ours, peer, passed)
    before = os.listdir("/proc/self/fd")
    assert foreign.may_hold_fds(ours) is held
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_looking_takes_nothing(pair: Pair, passed: Passed) -> None:
    """What is there is there afterwards, with its descriptor."""
    ours, peer = pair
    peer.send(b"abc")
    passed.by(peer, b"def")
    assert foreign.may_hold_fds(ours)
    data, control, _, _ = ours.recvmsg(3, CONTROL_BYTES)
    assert (data, received_fds(control)) == (b"abc", [])
    data, control, _, _ = ours.recvmsg(3, CONTROL_BYTES)
    (fd,) = received_fds(control)
    os.close(fd)
    assert data == b"def"


def test_messages_of_several_senders(pair: Pair, passed: Passed) -> None:
    """Where credentials come along, a read stops between senders; a descriptor of the second is seen all the same."""
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    peer.send(b"abc")
    pid = os.fork()
    if not pid:
        passed.by(peer)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert foreign.may_hold_fds(ours)


def test_descriptors_of_senders(pair: Pair) -> None:
    """Where each message brings a descriptor of its sender's process, nobody can tell: "yes"."""
    ours, peer = pair
    try:
        ours.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
    except OSError:
        return  # this kernel does not know it
    before = os.listdir("/proc/self/fd")
    assert not foreign.may_hold_fds(ours)
    peer.send(b"x")
    assert foreign.may_hold_fds(ours)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EIO])
def test_where_it_cannot_be_told(pair: Pair, number: int) -> None:
    """What cannot be looked into may hold anything."""

    class Unreadable(socket.socket):
        def recvmsg_into(self, *_: object, **__: object) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
            raise OSError(number, os.strerror(number))

    with Unreadable(fileno=pair[0].detach()) as sock:
        assert foreign.may_hold_fds(sock)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listens", [False, True])
def test_one_that_was_never_connected(kind: str, listens: bool) -> None:
    """Nobody can have sent it anything; what waits in the backlog of one that listens is no message of its own."""
    with socket.socket(socket.AF_UNIX, KINDS[kind]) as sock:
        if listens:
            sock.bind("")
            sock.listen()
        assert not foreign.may_hold_fds(sock)


def test_a_reset_that_goes_on_is_no_answer(pair: Pair) -> None:
    """The kernel tells it once; if it were told again and again, that would be no loop without end, and mean "yes"."""

    class Reset(socket.socket):
        looked = 0

        def recvmsg_into(self, *_: object, **__: object) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
            Reset.looked += 1
            raise ConnectionResetError

    with Reset(fileno=pair[0].detach()) as sock:
        assert foreign.may_hold_fds(sock)
    assert Reset.looked == 2


def says_urgently(data: bytes) -> Scene:
    return lambda ours, peer, passed: peer.send(data, socket.MSG_OOB)


def passes_urgently(data: bytes) -> Scene:
    return lambda ours, peer, passed: passed.by(peer, data, socket.MSG_OOB)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    "scene",
    [
        in_turn(says(b"abc"), says_urgently(b"!"), passes()),
        in_turn(says(b"abc"), passes_urgently(b"!")),
        in_turn(says(b"abc"), passes_urgently(b"!"), closes),
    ],
    ids=["behind an urgent byte", "with an urgent byte", "with an urgent byte, closed"],
)
def test_urgent_bytes(pair: Pair, passed: Passed, scene: Scene, inline: bool) -> None:
    """A byte sent with MSG_OOB ends a peek before it: a descriptor that comes with it or behind it waits, too."""
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    scene(ours, peer, passed)
    assert foreign.may_hold_fds(ours)


@pytest.mark.parametrize("before", [b"", b"abc"])
def test_looking_takes_no_urgent_byte(pair: Pair, before: bytes) -> None:
    """It is there afterwards, in its turn or out of it, as whoever reads wants it."""
    ours, peer = pair
    for inline in (False, True):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        peer.send(before + b"!", socket.MSG_OOB)
        foreign.may_hold_fds(ours)
        said = b"" if inline else ours.recv(1, socket.MSG_OOB)
        with suppress(BlockingIOError):
            while data := ours.recv(10, socket.MSG_DONTWAIT):
                said += data
        assert sorted(said) == sorted(before + b"!")


def test_nothing_but_an_urgent_byte(pair: Pair, passed: Passed) -> None:
    """A peek passes it over, and says that nothing is there: its descriptor waits."""
    ours, peer = pair
    passed.by(peer, b"!", socket.MSG_OOB)
    assert foreign.may_hold_fds(ours)


# ── the kernel's refusal ──


def test_refusal_by_the_kernel(pair: Pair) -> None:
    """It is known where it holds; a kernel before Linux 6.16 has none, and that is no fault."""
    ours, peer = pair
    assert not foreign.takes_none(ours)
    foreign.refuse_all(ours)
    try:
        refused = ours.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 0
    except OSError:
        refused = False
    assert foreign.takes_none(ours) is refused
    if refused:
        with pytest.raises(PermissionError):
            socket.send_fds(peer, [b"x"], [0])


def test_a_kernel_that_cannot_refuse(pair: Pair) -> None:
    """Such a socket takes descriptors, and to ask for more is no fault."""

    class OldSocket(socket.socket):
        def getsockopt(self, *_: object) -> int:  # type: ignore[override]  # it has one answer
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    with OldSocket(fileno=pair[0].detach()) as sock:
        foreign.refuse_all(sock)
        assert not foreign.takes_none(sock)


# ── the end of a connection ──


@EVERY
def test_end(pair: Pair, passed: Passed, handed: Handed, scene: Scene, held: bool) -> None:
    """Handed over, still open, where descriptors may be waiting; everything else is closed, and nobody is troubled."""
    ours, peer = pair
    scene(ours, peer, passed)
    foreign.end(ours, handed)
    assert handed.socks == ([ours] if held else [])
    assert (ours.fileno() >= 0) is held


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_the_descriptor_is_open_until_it_is_closed_elsewhere(pair: Pair, passed: Passed, handed: Handed) -> None:
    """This process releases none by ending the connection."""
    ours, peer = pair
    passed.by(peer)
    foreign.end(ours, handed)
    assert not passed.closed()
    (sock,) = handed.socks
    sock.close()
    assert passed.closed()


@EVERY
def test_the_peer_sees_the_end(pair: Pair, passed: Passed, handed: Handed, scene: Scene, held: bool) -> None:
    """At once, though the last close of what is handed over may be late; and it can send nothing any more."""
    ours, peer = pair
    scene(ours, peer, passed)
    foreign.end(ours, handed)
    if peer.fileno() < 0:  # it has closed
        return
    try:
        assert peer.recv(10) == b""
    except ConnectionResetError:  # what it sent was not read
        assert not held
    with pytest.raises(BrokenPipeError):
        passed.by(peer)
    assert handed.socks == ([ours] if held else [])


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_what_can_hold_none_is_closed(pair: Pair, handed: Handed) -> None:
    """Where the kernel has refused every descriptor, nothing that waits is one; a record need not be looked at."""
    ours, peer = pair
    foreign.refuse_all(ours)
    if not foreign.takes_none(ours):
        return  # this kernel cannot
    peer.send(b"x")
    foreign.end(ours, handed)
    assert ours.fileno() == -1
    assert handed.socks == []


def test_end_of_one_that_was_shut_down(pair: Pair, passed: Passed, handed: Handed) -> None:
    """Shutting down receives nothing: what was sent before waits as before."""
    ours, peer = pair
    passed.by(peer)
    ours.shutdown(socket.SHUT_RDWR)
    foreign.end(ours, handed)
    assert handed.socks == [ours]


def test_end_of_one_that_is_closed(pair: Pair, handed: Handed) -> None:
    """As a second close: nothing is left to be closed. A disposer that is given it cannot hand it over, ever."""
    ours, _ = pair
    ours.close()
    foreign.end(ours, handed)
    assert handed.socks == []


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_one_that_was_never_connected(monkeypatch: pytest.MonkeyPatch, handed: Handed, kind: str) -> None:
    """Nobody can have sent anything: it is closed, also by a kernel before Linux 6.16."""
    monkeypatch.setattr(foreign, "takes_none", lambda _: False)
    with socket.socket(socket.AF_UNIX, KINDS[kind]) as sock:
        foreign.end(sock, handed)
        assert handed.socks == []


def test_end_all(passed: Passed, handed: Handed) -> None:
    """Each by itself: one that may hold descriptors does not keep another open."""
    pairs = [socket.socketpair() for _ in range(3)]
    passed.by(pairs[1][1])
    foreign.end_all([ours for ours, _ in pairs], handed)
    assert handed.socks == [pairs[1][0]]
    assert [ours.fileno() >= 0 for ours, _ in pairs] == [False, True, False]
    for _, peer in pairs:
        peer.close()


# ── a copy of what another process has ──

SHARED: Final[dict[str, tuple[str, Scene, bool]]] = {
    **{name: ("stream", *STREAMS[name]) for name in STREAMS if "credentials" not in name},
    "as much as is looked at": ("stream", says(b"x" * LOOK), False),  # there is nothing behind it
    "bytes, urgent byte with a descriptor": ("stream", in_turn(says(b"abc"), passes_urgently(b"!")), True),
    "urgent byte, descriptor": ("stream", in_turn(says_urgently(b"!"), passes()), True),
    "records: nothing": ("seqpacket", nothing, False),
    "records: closed": ("seqpacket", closes, True),  # nobody knows what is before that
    "records: one": ("seqpacket", says(b"x"), True),
    "records: one, closed": ("seqpacket", in_turn(says(b"x"), closes), True),
    "records: two": ("seqpacket", in_turn(says(b"x"), says(b"x")), True),
    "records: descriptor": ("seqpacket", passes(), True),
    "records: descriptor, closed": ("seqpacket", in_turn(passes(), closes), True),
    "records: empty one with a descriptor": ("seqpacket", passes(b""), True),
    "records: empty one with a descriptor, closed": ("seqpacket", in_turn(passes(b""), closes), True),
    "records: one, descriptor": ("seqpacket", in_turn(says(b"x"), passes()), True),
}
"""What waits, and whether the copy is to be closed by another process."""

HIDDEN: Final[dict[str, Scene]] = {
    "record, empty one with a descriptor": in_turn(says(b"x"), passes(b"")),
    "empty record, empty one with a descriptor": in_turn(says(b""), passes(b"")),
}


@pytest.mark.parametrize(
    ("pair", "scene", "held"), [pytest.param(*each, id=name) for name, each in SHARED.items()], indirect=["pair"]
)
@pytest.mark.parametrize("blocking", [True, False])
def test_a_copy(pair: Pair, passed: Passed, handed: Handed, scene: Scene, held: bool, blocking: bool) -> None:
    """Handed over where descriptors may be waiting, since whoever has got the connection may have closed it by now;
    else closed. Nothing waits, be the socket blocking or not.
    """
    ours, peer = pair
    copy = ours.dup()
    copy.setblocking(blocking)
    scene(ours, peer, passed)
    open_files = len(os.listdir("/proc/self/fd"))
    foreign.close_shared(copy, handed)
    assert handed.socks == ([copy] if held else [])
    assert (copy.fileno() >= 0) is held
    assert len(os.listdir("/proc/self/fd")) == open_files - (not held)


def test_a_copy_with_an_urgent_byte(pair: Pair, passed: Passed, handed: Handed) -> None:
    """A peek passes it over, and says that nothing is there: its descriptor waits."""
    ours, peer = pair
    passed.by(peer, b"!", socket.MSG_OOB)
    copy = ours.dup()
    foreign.close_shared(copy, handed)
    assert handed.socks == [copy]


@pytest.mark.parametrize("pair", ["seqpacket"], indirect=True)
@pytest.mark.parametrize("scene", HIDDEN.values(), ids=HIDDEN)
def test_a_copy_with_empty_records(pair: Pair, passed: Passed, handed: Handed, scene: Scene) -> None:
    """An empty record has no bytes, and can bring descriptors all the same."""
    ours, peer = pair
    scene(ours, peer, passed)
    copy = ours.dup()
    foreign.close_shared(copy, handed)
    assert handed.socks == [copy]


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_a_copy_where_credentials_come_along(pair: Pair, passed: Passed, handed: Handed) -> None:
    """A descriptor is seen as well; without anything that waits the copy is closed."""
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    foreign.close_shared(ours.dup(), handed)
    assert handed.socks == []
    passed.by(peer)
    copy = ours.dup()
    foreign.close_shared(copy, handed)
    assert handed.socks == [copy]


@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize("passes_one", [True, False])
def test_whoever_has_the_connection_has_it_as_it_was(
    pair: Pair, passed: Passed, handed: Handed, passes_one: bool
) -> None:
    """Nothing is read, neither way is shut down, and no option is set."""
    ours, peer = pair
    peer.send(b"abc")
    if passes_one:
        passed.by(peer)
    options = (socket.SO_PASSCRED, socket.SO_OOBINLINE)
    before = [ours.getsockopt(socket.SOL_SOCKET, option) for option in options]
    foreign.close_shared(ours.dup(), handed)
    assert [ours.getsockopt(socket.SOL_SOCKET, option) for option in options] == before
    assert ours.recv(3) == b"abc"
    if passes_one:
        data, control, _, _ = ours.recvmsg(3, CONTROL_BYTES)
        (fd,) = received_fds(control)
        os.close(fd)
        assert data == b"x"
    ours.send(b"to")
    peer.send(b"fro")
    assert (ours.recv(10), peer.recv(10)) == (b"fro", b"to")


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_whoever_has_the_connection_hears_of_a_reset(pair: Pair, handed: Handed) -> None:
    """The kernel tells of it once: it is not for whoever closes a copy."""
    ours, _ = pair
    reset(*pair)
    foreign.close_shared(ours.dup(), handed)
    with pytest.raises(ConnectionResetError):
        ours.recv(10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_of_a_listener(kind: str, handed: Handed, passed: Passed, waits: bool) -> None:
    """It is closed, and whoever has it goes on to accept. (Of records one in which somebody waits looks as if there
    were some to be read.)
    """
    with socket.socket(socket.AF_UNIX, KINDS[kind]) as sock:
        sock.bind("")
        sock.listen()
        with socket.socket(socket.AF_UNIX, KINDS[kind]) as client:
            if waits:
                client.connect(sock.getsockname())
                passed.by(client)
            copy = sock.dup()
            foreign.close_shared(copy, handed)
            assert handed.socks == ([copy] if waits and kind == "seqpacket" else [])
            assert (copy.fileno() >= 0) is bool(handed.socks)
            if not waits:
                client.connect(sock.getsockname())
                passed.by(client)
            with sock.accept()[0] as accepted:
                assert foreign.may_hold_fds(accepted)


# ── the end of a listening socket ──


@pytest.fixture(params=KINDS)
def listener(request: pytest.FixtureRequest, folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, KINDS[request.param]) as sock:
        sock.bind(str(folder / "s"))
        sock.listen(10)
        yield sock


def connected(listener: socket.socket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, listener.type)
    sock.settimeout(SECONDS)
    sock.connect(listener.getsockname())
    return sock


def sees_the_end(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("blocking", [True, False])
def test_a_listener_that_nobody_waits_for(listener: socket.socket, handed: Handed, blocking: bool) -> None:
    """It is closed, and does not wait for anybody; nobody can connect any more."""
    listener.setblocking(blocking)
    path = listener.getsockname()
    foreign.end_listener(listener, handed)
    assert listener.fileno() == -1
    assert handed.socks == []
    with socket.socket(socket.AF_UNIX, listener.type) as late, pytest.raises(ConnectionRefusedError):
        late.connect(path)


@pytest.mark.parametrize("blocking", [True, False])
def test_what_waits_in_a_backlog_is_ended(
    listener: socket.socket, passed: Passed, handed: Handed, blocking: bool
) -> None:
    """Each client in it sees the end; only those that have passed a descriptor are handed over, not released here."""
    listener.setblocking(blocking)
    quiet, passing, gone = clients = [connected(listener) for _ in range(3)]
    passed.by(passing)
    passed.by(gone)
    gone.close()
    foreign.end_listener(listener, handed)
    assert listener.fileno() == -1
    assert len(handed.socks) == 2
    assert all(foreign.may_hold_fds(sock) and not sock.getblocking() for sock in handed.socks)
    assert all(sees_the_end(client) for client in (quiet, passing))
    assert not passed.closed()
    for sock in handed.socks:
        sock.close()
    assert passed.closed()
    for client in clients:
        client.close()


def test_a_client_that_sends_too_late(listener: socket.socket, passed: Passed, handed: Handed) -> None:
    """One that has connected and not sent before the end sends to nobody."""
    with connected(listener) as client:
        foreign.end_listener(listener, handed)
        with pytest.raises(BrokenPipeError):
            passed.by(client)
    assert passed.closed()


def test_a_listener_that_another_process_keeps(listener: socket.socket, passed: Passed, handed: Handed) -> None:
    """The other copy is shut down with it: nobody connects, and nothing waits in it."""
    with listener.dup() as kept, connected(listener) as client:
        passed.by(client)
        foreign.end_listener(listener, handed)
        assert len(handed.socks) == 1
        kept.setblocking(False)
        with pytest.raises(OSError, match=r"Invalid argument|temporarily unavailable"):
            kept.accept()
        with socket.socket(socket.AF_UNIX, kept.type) as late, pytest.raises(ConnectionRefusedError):
            late.connect(kept.getsockname())


def test_a_backlog_without_a_descriptor_to_be_had(listener: socket.socket, passed: Passed, handed: Handed) -> None:
    """What cannot be accepted cannot be looked into: it must not be released here, with whatever waits in it."""
    with connected(listener) as client:
        passed.by(client)
        passed.let_go()
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            foreign.end_listener(listener, handed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not passed.closed()


# ── bytes without descriptors ──


def test_plain_bytes(pair: Pair) -> None:
    """As many as are there, and no more than are asked for; nothing is taken; at the end of the connection none."""
    ours, peer = pair
    peer.send(b"abc")
    peer.send(b"def")
    assert [foreign.plain_bytes(ours, limit) for limit in (1, 4, 6, 100)] == [1, 4, 6, 6]
    assert ours.recv(100) == b"abcdef"
    peer.send(b"x" * 2 * LOOK)
    assert foreign.plain_bytes(ours, 2 * LOOK) == LOOK
    peer.close()
    assert foreign.plain_bytes(ours, 100) == 100
    left = 2 * LOOK
    while left:
        left -= len(ours.recv(left))
    assert foreign.plain_bytes(ours, 100) == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_no_plain_bytes_yet(pair: Pair, blocking: bool) -> None:
    """Nothing there is no end; it is not waited for."""
    pair[0].setblocking(blocking)
    with pytest.raises(BlockingIOError):
        foreign.plain_bytes(pair[0], 100)


@pytest.mark.parametrize("before", [b"", b"abc"])
def test_plain_bytes_and_a_descriptor(pair: Pair, passed: Passed, before: bytes) -> None:
    """One that is among them, first or last, is told; none is installed."""
    ours, peer = pair
    if before:
        peer.send(before)
    passed.by(peer, b"x")
    open_files = os.listdir("/proc/self/fd")
    for _ in range(2):
        with pytest.raises(PermissionError, match="descriptors are not taken"):
            foreign.plain_bytes(ours, 100)
    assert os.listdir("/proc/self/fd") == open_files


def test_plain_bytes_of_a_peer_that_resets(pair: Pair) -> None:
    """It is told as it is."""
    reset(*pair)
    with pytest.raises(ConnectionResetError):
        foreign.plain_bytes(pair[0], 100)


@pytest.mark.parametrize("before", [b"", b"abc"])
def test_plain_bytes_and_an_urgent_one(pair: Pair, before: bytes) -> None:
    """Where urgent bytes come in their turn, one is as any other: whoever waits for a readable socket finds it."""
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    peer.send(before + b"!", socket.MSG_OOB)
    said = b""
    while len(said) < len(before + b"!"):
        said += ours.recv(foreign.plain_bytes(ours, 100))
    assert said == before + b"!"
    with pytest.raises(BlockingIOError):
        foreign.plain_bytes(ours, 100)


@pytest.mark.parametrize("before", [b"", b"abc"])
def test_an_urgent_byte_with_a_descriptor(pair: Pair, passed: Passed, before: bytes) -> None:
    """It is told as with any other byte, once what came before it is read."""
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if before:
        peer.send(before)
    passed.by(peer, b"!", socket.MSG_OOB)
    open_files = os.listdir("/proc/self/fd")
    said = b""
    with suppress(PermissionError):
        while True:
            said += ours.recv(foreign.plain_bytes(ours, 100))
    assert said in (b"", before)  # what is there before it may be refused with it, as in one look
    with pytest.raises(PermissionError, match="descriptors are not taken"):
        foreign.plain_bytes(ours, 100)
    assert os.listdir("/proc/self/fd") == open_files


# ── with the process that releases them ──


@pytest.fixture
def disposal() -> Iterator[Disposal]:
    """A real one, with its master."""
    started = master.start()
    try:
        started.wait_ready()
        yield Disposal(started.disposals)
    finally:
        started.close()


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_it_is_released_elsewhere(pair: Pair, passed: Passed, disposal: Disposal) -> None:
    """What is handed over is closed here, and what waits in it by a process that exits."""
    ours, peer = pair
    passed.by(peer)
    foreign.end(ours, disposal)
    assert ours.fileno() == -1
    assert disposal.waiting == 0
    assert passed.closed(SECONDS)


def lingering() -> Pair:
    """A descriptor whose close takes its maker's time, TCP with unsent data and a minute of SO_LINGER; and who does not
    read what it sends.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = socket.create_connection(server.getsockname())
        reader, _ = server.accept()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    with suppress(BlockingIOError):
        while made.send(b"x" * 65536):
            pass
    return made, reader


def test_a_slow_descriptor_holds_nobody_up(pair: Pair, disposal: Disposal) -> None:
    """The end of a connection takes no longer for what waits in it."""
    ours, peer = pair
    made, reader = lingering()
    socket.send_fds(peer, [b"x"], [made.fileno()])
    made.close()
    before = monotonic()
    foreign.end(ours, disposal)
    assert ours.fileno() == -1
    assert monotonic() - before < 30
    reader.close()


def test_this_process_is_never_the_last_to_close(pair: Pair, passed: Passed, disposal: Disposal) -> None:
    """However late it is scheduled again once it has handed something over: its own copy goes first, always."""
    released_here = []

    class Late(socket.socket):
        def close(self) -> None:
            if self.fileno() >= 0:
                passed.closed(0.5)  # the time that others get; it is open here, and so is open anyway
                super().close()
                released_here.append(passed.closed())

    ours, peer = pair
    passed.by(peer)
    foreign.end(Late(fileno=ours.detach()), disposal)
    assert released_here == [False]
    assert passed.closed(SECONDS)
