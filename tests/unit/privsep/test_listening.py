"""Listening sockets: only a stale socket is ever replaced, and only what was bound here is ever removed."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sockguard.errors import SockguardError
from sockguard.privsep import foreign, listening
from sockguard.privsep.listening import Bound, ListenSpec
from sockguard.privsep.sockopt import SO_PASSRIGHTS


def spec(text: str | Path, kind: str = "path", *, mode: int = 0o666, refuse_fds: bool = False) -> ListenSpec:
    return ListenSpec("p", kind, str(text), mode, None, None, refuse_fds)


def refused(text: str | Path, kind: str = "path", adopted: dict[str, int] | None = None) -> str:
    with pytest.raises(SockguardError) as caught:
        listening.listen(spec(text, kind), adopted or {})
    message = str(caught.value)
    assert message.startswith("proxy.p.listen: ")
    assert str(text) in message
    return message


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "public"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o666, 0o600, 0o660, 0o000])
def test_mode_is_exact(path: Path, umask: Callable[[int], int], mask: int, mode: int) -> None:
    """The path has the mode that the file gives, under any umask, and the umask is as before."""
    umask(mask)
    sock, bound = listening.listen(spec(path, mode=mode), {})
    with sock:
        assert stat.S_IMODE(path.lstat().st_mode) == mode
    assert bound is not None
    assert umask(mask) == mask


def test_it_listens_and_never_blocks(path: Path) -> None:
    """The socket takes connections, is non-blocking, and no started program inherits it."""
    sock, bound = listening.listen(spec(path), {})
    with sock, socket.socket(socket.AF_UNIX) as client:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        client.connect(str(path))
        sock.accept()[0].close()
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert bound is not None
    bound.remove()
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    """A socket that nobody listens on any more gives way."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    sock, bound = listening.listen(spec(path), {})
    with sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert bound == Bound(str(path), path.lstat().st_dev, path.lstat().st_ino)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_live_socket_is_left_alone(path: Path, kind: socket.SocketKind) -> None:
    """Whoever has the path now keeps it, whatever kind of socket it is."""
    with socket.socket(socket.AF_UNIX, kind) as live:
        live.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            live.listen()
        inode = path.lstat().st_ino
        assert "another process listens there" in refused(path)
        assert path.lstat().st_ino == inode  # not its times: a connect is an access


def test_a_live_listener_with_a_full_backlog_is_alive(path: Path) -> None:
    """EAGAIN from connect means a busy service, never a dead one."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            inode = path.lstat().st_ino
            assert "another process listens there" in refused(path)
            assert path.lstat().st_ino == inode


def test_other_files_are_left_alone(folder: Path) -> None:
    """A symlink (even to a stale socket), a file, a folder and a FIFO are refused and stay as they are."""
    stale = folder / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    (folder / "link").symlink_to(stale)
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "file").write_text("precious")
    (folder / "dir").mkdir()
    os.mkfifo(folder / "fifo")
    for name, word in {
        "link": "symbolic link",
        "dangling": "symbolic link",
        "file": "no socket",
        "dir": "no socket",
        "fifo": "no socket",
    }.items():
        before = (folder / name).lstat()
        assert word in refused(folder / name)
        assert (folder / name).lstat() == before
    assert (folder / "file").read_text() == "precious"
    assert stale.lstat()
    assert not (folder / "nothing").exists()


def test_a_missing_folder_is_named(folder: Path) -> None:
    """The message names the folder that is missing."""
    assert f"the folder {folder}/none does not exist" in refused(folder / "none" / "public")


def test_abstract_names(path: Path) -> None:
    """An abstract name is bound without a file; one in use is refused."""
    name = f"sg-{uuid.uuid4()}"
    sock, bound = listening.listen(spec(name, "abstract"), {})
    with sock, socket.socket(socket.AF_UNIX) as client:
        assert bound is None
        client.connect("\0" + name)
        assert f"@{name}: another process listens there" in refused(name, "abstract")


def test_only_its_own_inode_is_removed(path: Path) -> None:
    """What somebody else has put at the path meanwhile stays."""
    sock, bound = listening.listen(spec(path), {})
    sock.close()
    assert bound is not None
    path.rename(path.with_name("moved"))
    path.write_text("another's")
    bound.remove()
    assert path.read_text() == "another's"
    assert path.with_name("moved").lstat().st_ino == bound.inode
    path.unlink()
    bound.remove()  # nothing there: no error


def test_a_failure_after_bind_leaves_no_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where listen() fails, the path that bind() made goes again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(listening, "set_options", fail)
    assert "No space left" in refused(path)
    assert not path.exists()


def test_a_replaced_path_is_not_given_away(path: Path) -> None:
    """owner and group go to the inode that was bound: another file at the path is refused."""
    path.write_text("another's")
    other = Bound(str(path), path.lstat().st_dev, path.lstat().st_ino)
    given = ListenSpec("p", "path", str(path), 0o600, os.geteuid(), None, False)
    with pytest.raises(SockguardError, match="replaced while it was made"):
        listening._give_away(other, given)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        with pytest.raises(SockguardError, match="replaced while it was made"):
            listening._give_away(Bound(str(path), path.lstat().st_dev, path.lstat().st_ino + 1), given)


def test_adopted_sockets(folder: Path) -> None:
    """What systemd passed is taken by name, without blocking, and its path is nobody's to remove."""
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(folder / "s"))
        passed.listen()
        sock, bound = listening.listen(spec("web", "fd"), {"web": passed.fileno()})
        with closing(sock):
            assert bound is None
            assert not sock.getblocking()
            assert sock.fileno() != passed.fileno()
            assert sock.getsockname() == str(folder / "s")


def test_adopted_sockets_must_fit(folder: Path) -> None:
    """Not passed, no listener, no stream, no UNIX socket: each is refused with its remedy."""
    with (
        socket.socket(socket.AF_UNIX) as silent,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET) as inet,
    ):
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        adopted = {"silent": silent.fileno(), "datagrams": datagrams.fileno(), "inet": inet.fileno()}
        missing = refused("web", "fd", adopted)
        assert "passed: datagrams, inet, silent" in missing
        assert "FileDescriptorName=" in missing
        assert "passed: none" in refused("web", "fd")
        assert "Accept=no" in refused("silent", "fd", adopted)
        assert "ListenStream=" in refused("datagrams", "fd", adopted)
        assert "not a UNIX socket of this proxy's type" in refused("inet", "fd", adopted)
        assert all(sock.fileno() >= 0 and sock.getsockname() is not None for sock in (silent, datagrams, inet))


def test_refused_fds_are_refused_by_the_kernel(path: Path) -> None:
    """With fds = "refuse", a sender gets EPERM even before accept, where the kernel can (Linux 6.16)."""
    sock, _ = listening.listen(spec(path, refuse_fds=True), {})
    with sock, socket.socket(socket.AF_UNIX) as client:
        try:
            sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            return  # an older kernel: the relay ends such a connection (test_relay.py)
        client.connect(str(path))
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"x"], [0])
        client.send(b"plain")


def records_spec(
    text: str | Path, kind: str = "path", *, records: bool = True, credentials: bool = False
) -> ListenSpec:
    return ListenSpec("p", kind, str(text), 0o600, None, None, False, records, credentials)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("records", [True, False])
def test_the_type_of_a_live_listener_does_not_matter(path: Path, kind: socket.SocketKind, records: bool) -> None:
    """Whoever listens at the path keeps it, be it in streams and the proxy's in records (EPROTOTYPE) or vice versa."""
    with socket.socket(socket.AF_UNIX, kind) as live, socket.socket(socket.AF_UNIX, kind) as client:
        live.bind(str(path))
        live.listen()
        with pytest.raises(SockguardError, match="another process listens there"):
            listening.listen(records_spec(path, records=records), {})
        client.connect(str(path))


def test_records(path: Path) -> None:
    """The listener of a seqpacket proxy takes SOCK_SEQPACKET connections and no streams; a stale one is replaced."""
    for _ in range(2):
        sock, _bound = listening.listen(records_spec(path), {})
        with sock, socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, sock.type) as client:
            with pytest.raises(OSError, match="wrong type"):
                stream.connect(str(path))
            client.connect(str(path))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_adopted_sockets_must_be_of_the_type(folder: Path, kind: socket.SocketKind) -> None:
    """systemd's socket has to be what the protocol needs; the message names the line of the unit."""
    with socket.socket(socket.AF_UNIX, kind) as passed:
        passed.bind(str(folder / "s"))
        passed.listen()
        adopted = {"x": passed.fileno()}
        listening.listen(records_spec("x", "fd", records=kind == socket.SOCK_SEQPACKET), adopted)[0].close()
        unit = "ListenSequentialPacket=" if kind == socket.SOCK_STREAM else "ListenStream="
        with pytest.raises(SockguardError, match=unit):
            listening.listen(records_spec("x", "fd", records=kind != socket.SOCK_SEQPACKET), adopted)


@pytest.mark.parametrize("records", [True, False])
def test_the_sender_is_known_from_the_first_byte(path: Path, records: bool) -> None:
    """With credentials, what comes before accept has its sender, too; without, nothing has."""
    for credentials in (True, False):
        sock, bound = listening.listen(records_spec(path, records=records, credentials=credentials), {})
        with sock, socket.socket(socket.AF_UNIX, sock.type) as client:
            client.connect(str(path))
            client.send(b"early")
            with sock.accept()[0] as accepted:
                _, control, _, _ = accepted.recvmsg(10, socket.CMSG_SPACE(12))
        ids = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
        assert control == ([(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ids)] if credentials else [])
        assert bound is not None
        bound.remove()


def test_address(path: Path) -> None:
    """It is the listener's own name, by which one that was kept is known again."""
    for one in (spec(path), spec(f"sg-{uuid.uuid4()}", "abstract")):
        sock, _ = listening.listen(one, {})
        with sock:
            assert listening.address(one) == sock.getsockname()


def keep(path: str | Path, mode: int = 0o666) -> tuple[socket.socket, dict[str, int]]:
    """A listener that the run before has left with systemd, and what this run gets: a descriptor of it, by its name."""
    one = spec(str(path)[1:], "abstract") if str(path).startswith("@") else spec(path, mode=mode)
    sock, _ = listening.listen(one, {})
    return sock, {listening.kept_name("p"): os.dup(sock.fileno()), "other": -1}


def connects(name: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(name))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_kept_socket_is_taken_over(path: Path, kind: str) -> None:
    """The very socket with the clients that wait in it, its options as the file has them now, its file to remove."""
    name = str(path) if kind == "path" else f"sg-{uuid.uuid4()}"
    before, adopted = keep(name if kind == "path" else "@" + name)
    with before, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(before.getsockname())
        wanted = ListenSpec("p", kind, name, 0o666, None, None, False, credentials=True)
        sock, bound = listening.listen(wanted, adopted)
        with sock:
            assert os.path.sameopenfile(sock.fileno(), before.fileno())
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            with sock.accept()[0] as accepted:
                waiting.send(b"x")
                assert accepted.recv(1) == b"x"
    assert adopted == {"other": -1}
    assert bound == (Bound(name, path.lstat().st_dev, path.lstat().st_ino, kept=True) if kind == "path" else None)


@pytest.mark.parametrize("change", ["mode", "place", "type", "file gone", "no socket there", "no listener"])
def test_a_kept_socket_that_does_not_fit_is_ended(path: Path, change: str) -> None:
    """What a bind of now would not make is not used: another is bound, and whoever still has the old one is refused."""
    before, adopted = keep(path)
    wanted = spec(path)
    with before:
        match change:
            case "mode":
                wanted = spec(path, mode=0o600)
            case "place":
                wanted = spec(path.with_name("moved"))
                with socket.socket(socket.AF_UNIX) as stale:
                    stale.bind(wanted.text)
                    Path(wanted.text).chmod(0o666)
            case "type":
                wanted = ListenSpec("p", "path", str(path), 0o666, None, None, False, records=True)
            case "file gone":
                path.unlink()
            case "no socket there":
                path.unlink()
                path.write_text("precious")
            case "no listener":
                os.dup2(0, adopted[listening.kept_name("p")], inheritable=False)
                path.unlink()
        if change == "no socket there":
            with pytest.raises(SockguardError, match="a file that is no socket"):
                listening.listen(wanted, adopted)
            assert path.read_text() == "precious"
            return
        sock, bound = listening.listen(wanted, adopted)
        with sock, socket.socket(socket.AF_UNIX, sock.type) as client:
            assert not os.path.sameopenfile(sock.fileno(), before.fileno())
            assert stat.S_IMODE(Path(wanted.text).lstat().st_mode) == wanted.mode
            client.connect(wanted.text)
            sock.accept()[0].close()
            assert path.exists() == (change != "place")
        assert bound is not None
        assert adopted == {"other": -1}


def test_what_is_kept_for_nobody_is_ended(path: Path) -> None:
    """Clients of a proxy that is there no more are refused; a .socket unit's descriptors are left alone."""
    before, adopted = keep(path)
    other = path.with_name("other")
    with before, socket.socket(socket.AF_UNIX) as unit:
        unit.bind(str(other))
        unit.listen()
        adopted["other"] = unit.fileno()
        adopted["sockguard-example.socket"] = unit.fileno()
        listening.end_kept(adopted)
        assert not connects(path)
        assert not path.exists()
        assert connects(other)
        assert set(adopted) == {"other", "sockguard-example.socket"}


def test_ending_a_kept_socket_leaves_anothers_file(path: Path) -> None:
    """Where somebody else listens at the old path by now, it stays."""
    before, adopted = keep(path)
    with before, socket.socket(socket.AF_UNIX) as another:
        path.unlink()
        another.bind(str(path))
        another.listen()
        listening.end_kept(adopted)
        assert connects(path)


# ── what others may have passed ──


@pytest.fixture
def kept_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """What this process keeps open, since nobody else could close it."""
    made = listening._KeptOpen()
    monkeypatch.setattr(listening, "_kept_open", made)
    yield made.socks
    for sock in made.socks:
        sock.close()


def all_copies_closed(writer: int) -> bool:
    """True when no read end of that pipe is open any more (pipe(7): POLLERR)."""
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(0) == [(writer, select.POLLERR)]


def test_ending_a_kept_socket_releases_nothing(path: Path, kept_open: list[socket.socket]) -> None:
    """Clients that wait in it see the end; what one of them has passed is left to the end of this process."""
    before, adopted = keep(path)
    reader, writer = os.pipe()
    with before, socket.socket(socket.AF_UNIX) as quiet, socket.socket(socket.AF_UNIX) as passing:
        for client in (quiet, passing):
            client.connect(str(path))
        socket.send_fds(passing, [b"x"], [reader])
        os.close(reader)
        listening.end_kept(adopted)
        assert quiet.recv(1) == passing.recv(1) == b""
    assert len(kept_open) == 1
    assert not all_copies_closed(writer)
    kept_open[0].close()
    assert all_copies_closed(writer)
    os.close(writer)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("refuses", [True, False], ids=["kernel refuses", "kernel takes all"])
def test_a_listener_that_passes_something_to_a_probe(
    path: Path,
    kept_open: list[socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    kind: socket.SocketKind,
    refuses: bool,
) -> None:
    """Whoever listens at the path cannot have this process close what it makes, nor take its place by it."""
    reader, writer = os.pipe()
    connect = listening._connect_as_owner
    answers: list[socket.socket] = []

    def connect_and_be_answered(probe: socket.socket, at: str) -> None:
        connect(probe, at)
        accepted, _ = live.accept()
        answers.append(accepted)
        with suppress(PermissionError):  # Linux 6.16 and later
            socket.send_fds(accepted, [b"x"], [reader])

    monkeypatch.setattr(listening, "_connect_as_owner", connect_and_be_answered)
    if not refuses:
        monkeypatch.setattr(foreign, "refuse_all", lambda _: None)
    with socket.socket(socket.AF_UNIX, kind) as live:
        live.bind(str(path))
        live.listen()
        assert "another process listens there" in refused(path)
        os.close(reader)
        if refuses and all_copies_closed(writer):
            assert kept_open == []  # it was refused
        else:
            assert any(foreign.may_hold_fds(sock) for sock in kept_open)
    for sock in answers:
        sock.close()
    os.close(writer)


def test_probes_leave_nothing_open(path: Path, kept_open: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale sockets cost no descriptor, by no kernel: those before Linux 6.16 cannot refuse what would be passed."""
    monkeypatch.setattr(foreign, "takes_none", lambda _: False)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listening.listen(spec(path), {})[0].close()
    assert kept_open == []
