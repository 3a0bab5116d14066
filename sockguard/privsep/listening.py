"""Making listening sockets: bound to a path, to an abstract name, or adopted from systemd.

Used by the monitor, and by control where there is no monitor. Never replaces anything but a socket that nobody
listens on any more, and never removes anything but what this process bound, or the run before it, of which systemd
has kept the listening socket (sd_notify(3): FDSTORE=1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from sockguard.errors import SockguardError
from sockguard.privsep import foreign
from sockguard.privsep.sockopt import SO_PASSRIGHTS

BACKLOG: Final = 4096
"""Connections that wait for accept; the kernel cuts it to net.core.somaxconn (listen(2))."""

_KEPT: Final = "sockguard/"  # no unit can be called so, and a socket without FileDescriptorName= is called as its unit


@dataclass(frozen=True, slots=True)
class ListenSpec:
    """What is to be bound.

    kind         "path", "abstract" or "fd"; ``text`` is the path or name
    mode         of a path's socket; owner, group: its ids
    refuse_fds   have the kernel refuse passed fds on its connections, where it can
    records      SOCK_SEQPACKET instead of SOCK_STREAM
    credentials  have the kernel say who sent each message (SO_PASSCRED)
    key          the key of the file that messages name; "": the proxy's listen
    """

    proxy: str
    kind: str
    text: str
    mode: int
    owner: int | None
    group: int | None
    refuse_fds: bool
    records: bool = False
    credentials: bool = False
    key: str = ""

    @property
    def type(self) -> int:
        """The socket type (socket(2))."""
        return socket.SOCK_SEQPACKET if self.records else socket.SOCK_STREAM


@dataclass(frozen=True, slots=True)
class Bound:
    """A path that this process bound, with the inode that bind made: enough to remove that one and no other.

    kept: the run before has bound it, and systemd has kept its listening socket
    """

    path: str
    device: int
    inode: int
    kept: bool = False

    def remove(self) -> None:
        """Remove the socket file if it is still the one that was bound. Never raises OSError."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


def listen(spec: ListenSpec, adopted: MutableMapping[str, int]) -> tuple[socket.socket, Bound | None]:
    """The listening, non-blocking socket of a proxy. Raises SockguardError, naming the proxy, the place and the remedy.

    adopted: systemd's descriptors by name (activation.adopt). Of a .socket unit's, the one that is taken is duplicated;
    one that was kept for this proxy is taken out, and ended if it is not just what would be bound now.
    """
    try:
        if spec.kind == "fd":
            return _adopt(spec, adopted), None
        kept = _take_kept(spec, adopted)
        if kept:
            return kept
        sock = socket.socket(socket.AF_UNIX, spec.type | socket.SOCK_NONBLOCK)
        try:
            bound = None
            if spec.kind == "abstract":
                _bind_abstract(sock, spec)
            else:
                bound = _bind_path(sock, spec)
            try:
                set_options(sock, refuse_fds=spec.refuse_fds, credentials=spec.credentials)
                sock.listen(BACKLOG)
            except OSError:
                if bound:
                    bound.remove()
                raise
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _refusal(spec, os.strerror(error.errno or 0)) from error
    return sock, bound


def address(spec: ListenSpec) -> str | bytes:
    """What getsockname(2) gives for a proxy's listener on a path or an abstract name."""
    return b"\0" + spec.text.encode() if spec.kind == "abstract" else spec.text


def kept_name(proxy: str) -> str:
    """The name under which systemd keeps that proxy's listening socket."""
    return _KEPT + proxy


def outlives_us(environ: Mapping[str, str]) -> bool:
    """Has a service manager been handed the listening sockets? Then their files stay when this process ends."""
    return bool(environ.get("NOTIFY_SOCKET"))


def clean_up(bound: Iterable[Bound], environ: Mapping[str, str], *, started: bool) -> None:
    """The end of this process: remove the files of what it bound, unless its listening sockets go on with systemd. A
    start that failed leaves nothing bound, but what systemd had kept from before.
    """
    outlives = outlives_us(environ)
    for each in bound:
        if not (outlives and (started or each.kept)):
            each.remove()


def end_kept(adopted: MutableMapping[str, int], disposer: foreign.Disposer | None = None) -> None:
    """End what was kept and not taken: for proxies that are there no more, or by a start that has failed for good.
    Without that, their clients would wait for ever, or what they have sent would be systemd's to close.
    """
    for name in [name for name in adopted if name.startswith(_KEPT)]:
        sock = _socket(adopted.pop(name))
        if sock:
            _end(sock, disposer or _kept_open)


def set_options(sock: socket.socket, *, refuse_fds: bool, credentials: bool) -> None:
    """What accepted sockets inherit, and nothing that nobody here asks for. To be set before the first client: earlier
    bytes arrive without credentials.

    refuse_fds: have the kernel refuse passed fds, where it is new enough; elsewhere the relay ends such a connection.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0 if refuse_fds else 1)
    foreign.ask_for_nothing(sock, credentials=credentials)


def _refusal(spec: ListenSpec, text: str) -> SockguardError:
    shown = {"path": "", "abstract": "@", "fd": "fd:"}[spec.kind] + spec.text
    return SockguardError(f"{spec.key or f'proxy.{spec.proxy}.listen'}: {shown}: {text}")


def _adopt(spec: ListenSpec, adopted: Mapping[str, int]) -> socket.socket:
    if spec.text not in adopted:
        have = ", ".join(sorted(adopted)) or "none"
        raise _refusal(
            spec, f"no such socket was passed by systemd (passed: {have}); set FileDescriptorName= in the .socket unit"
        )
    sock = socket.socket(fileno=os.dup(adopted[spec.text]))
    try:
        if sock.family != socket.AF_UNIX or sock.type != spec.type:
            unit = "ListenSequentialPacket=" if spec.records else "ListenStream="
            raise _refusal(spec, f"not a UNIX socket of this proxy's type: use {unit} with a path or an abstract name")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _refusal(spec, "not a listening socket: the unit needs Accept=no")
        sock.setblocking(False)
        set_options(sock, refuse_fds=spec.refuse_fds, credentials=spec.credentials)
    except BaseException:
        sock.close()
        raise
    return sock


def _take_kept(spec: ListenSpec, adopted: MutableMapping[str, int]) -> tuple[socket.socket, Bound | None] | None:
    fd = adopted.pop(kept_name(spec.proxy), None)
    sock = None if fd is None else _socket(fd)
    if sock is None:
        return None
    found = _fitting_file(spec) if spec.kind == "path" else None
    fits = sock.family == socket.AF_UNIX and sock.type == spec.type and sock.getsockname() == address(spec)
    if not fits or (spec.kind == "path" and not found):
        _end(sock, _kept_open)
        return None
    try:
        sock.setblocking(False)
        set_options(sock, refuse_fds=spec.refuse_fds, credentials=spec.credentials)
        sock.listen(BACKLOG)  # listens already: this has its clients see this process as their peer
    except BaseException:
        sock.close()
        raise
    return sock, Bound(spec.text, found.st_dev, found.st_ino, kept=True) if found else None


def _fitting_file(spec: ListenSpec) -> os.stat_result | None:
    """The socket file of a kept socket; None where a new one would differ, in mode or owner, or there is none."""
    try:
        found = os.lstat(spec.text)
    except OSError:
        return None
    owner = os.geteuid() if spec.owner is None else spec.owner
    group = os.getegid() if spec.group is None else spec.group
    fits = (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFSOCK | spec.mode, owner, group)
    return found if fits else None


def _socket(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None


def _end(sock: socket.socket, disposer: foreign.Disposer) -> None:
    """No more connections, in whatever process it is open: systemd sees a hang-up, and lets go of it and its name."""
    with contextlib.suppress(OSError):
        path = sock.getsockname()
        foreign.end_listener(sock, disposer)
        if isinstance(path, str) and path.startswith("/"):
            found = os.lstat(path)
            if stat.S_ISSOCK(found.st_mode) and _nobody_listens(path):
                Bound(path, found.st_dev, found.st_ino).remove()


def _bind_abstract(sock: socket.socket, spec: ListenSpec) -> None:
    try:
        sock.bind("\0" + spec.text)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _refusal(spec, "another process listens there: stop it first") from error
        raise


def _bind_path(sock: socket.socket, spec: ListenSpec) -> Bound:
    _clear_stale(spec)
    os.fchmod(sock.fileno(), spec.mode)  # on an unbound socket: the mode that bind will create, so no window without it
    umask = os.umask(0)
    try:
        sock.bind(spec.text)
    except OSError as error:
        if error.errno == errno.ENOENT:
            folder = os.path.dirname(spec.text)
            raise _refusal(
                spec, f"the folder {folder} does not exist: make it, or let systemd do so (RuntimeDirectory=)"
            ) from error
        if error.errno == errno.EACCES:
            folder = os.path.dirname(spec.text)
            raise _refusal(spec, f"this user may not make a socket in {folder}: change its owner or mode") from error
        raise
    finally:
        os.umask(umask)
    found = os.lstat(spec.text)
    bound = Bound(spec.text, found.st_dev, found.st_ino)
    if spec.owner is not None or spec.group is not None:
        try:
            _give_away(bound, spec)
        except BaseException:
            bound.remove()
            raise
    return bound


def _give_away(bound: Bound, spec: ListenSpec) -> None:
    """chown by descriptor: a path could be another file by now, in a folder that others can write."""
    fd = os.open(bound.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or (found.st_dev, found.st_ino) != (bound.device, bound.inode):
            raise _refusal(spec, "was replaced while it was made: others can write in its folder")
        owner, group = (-1 if x is None else x for x in (spec.owner, spec.group))
        try:
            os.chown(f"/proc/self/fd/{fd}", owner, group)
        except PermissionError as error:
            raise _refusal(spec, "owner and group need CAP_CHOWN: start as root, or leave them out") from error
    finally:
        os.close(fd)


def _clear_stale(spec: ListenSpec) -> None:
    """Remove a socket that nobody listens on; refuse whatever else is there, untouched."""
    try:
        found = os.lstat(spec.text)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "a file that is no socket"
        raise _refusal(spec, f"there is {kind}: move it away first")
    if not _nobody_listens(spec.text):
        raise _refusal(spec, "another process listens there: stop it first, or choose another path")
    Bound(spec.text, found.st_dev, found.st_ino).remove()
    if os.path.lexists(spec.text):
        raise _refusal(spec, "a stale socket is there, and this user may not remove it")


class _KeptOpen:
    """See foreign.Disposer: there is nobody here who could close them, so they stay open until this process ends."""

    def __init__(self) -> None:
        self.socks: list[socket.socket] = []

    def dispose(self, socks: Iterable[socket.socket]) -> None:
        self.socks.extend(socks)


_kept_open: Final = _KeptOpen()


class _Probe:
    """A socket that connects to see whether somebody listens. Whoever does may send it anything."""

    def __init__(self, kind: int) -> None:
        self.sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        foreign.refuse_all(self.sock)

    def close(self) -> None:
        foreign.end(self.sock, _kept_open)


def _connect_as_owner(probe: socket.socket, path: str) -> None:
    """connect(2); where root may not, for want of CAP_DAC_OVERRIDE, as the file's owner. Raises OSError."""
    try:
        probe.connect(path)
    except PermissionError:
        owner, own = os.lstat(path).st_uid, os.geteuid()
        if own != 0 or owner == 0:
            raise
        os.seteuid(owner)
        try:
            probe.connect(path)
        finally:
            os.seteuid(own)


def _nobody_listens(path: str) -> bool:
    """Is that socket file stale? Raises OSError where it cannot be told."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with contextlib.closing(_Probe(kind)) as probe:
            try:
                _connect_as_owner(probe.sock, path)
            except ConnectionRefusedError:
                return True
            except BlockingIOError:
                return False  # its backlog is full: alive
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:  # there is one of another type, dead or alive
                    raise
            else:
                return False
    return False
