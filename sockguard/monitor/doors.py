"""The listening sockets that were bound for control: the monitor keeps a copy of each, and accepts by itself for those
proxies whose clients it is to show to the service.

Who the peer of a socket is, the kernel says of every connected one: also of one that somebody has connected to a
service of root's. So the monitor must know that a connection came in by the proxy's listener. Neither its address
tells that (anybody can bind the same text in a mount or network namespace of its own) nor does sock_diag (it names the
file by 32 bits of its inode and a device that btrfs subvolumes share, and finds no client of another network
namespace). So the monitor accepts, and hands each connection to control with a proof: a keyed hash of the socket's
cookie, which the kernel gives to one socket only until the machine is switched off (SO_COOKIE; for all network
namespaces together since Linux 5.4). Nothing is remembered for a connection.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sockguard.errors import ChannelError
from sockguard.privsep import notification
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.listening import ListenSpec, kept_name

SO_COOKIE: Final = 57
"""include/uapi/asm-generic/socket.h; Python's socket module does not name it."""

_COOKIE_BYTES: Final = 8
_PROOF_BYTES: Final = 16
_ACCEPT_SECONDS: Final = 1.0


class Door:
    """One listening socket. Its key lives as long as it does: no proof outlives an unbind."""

    def __init__(self, spec: ListenSpec, listener: socket.socket) -> None:
        """Duplicates ``listener``."""
        self.spec = spec
        self._listener = listener.dup()
        self._key = os.urandom(hashlib.blake2b.MAX_KEY_SIZE)

    def accept(self, most: int) -> tuple[list[tuple[socket.socket, str]], int]:
        """As many connections as wait, each with its proof; and the errno of accept(2), 0 when no more wait.

        Raises ChannelError when control has made the socket one that blocks: both share its flags.
        """
        accepted: list[tuple[socket.socket, str]] = []
        with _not_for_ever():
            os.set_blocking(self._listener.fileno(), False)
            while len(accepted) < most:
                try:
                    sock, _ = self._listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    return accepted, error.errno or errno.EINVAL
                accepted.append((sock, self._proof(sock)))
        return accepted, 0

    def has_accepted(self, sock: socket.socket, proof: str) -> bool:
        """Is this a connection that ``accept`` gave with this proof?"""
        try:
            return hmac.compare_digest(self._proof(sock), proof)
        except (OSError, TypeError):  # no socket; a proof that is not ASCII
            return False

    def fits(self, spec: ListenSpec | None) -> bool:
        """Is it the place where that proxy listens?"""
        own = self.spec
        return spec is not None and (own.kind, own.text, own.type) == (spec.kind, spec.text, spec.type)

    def store(self) -> None:
        """Have systemd keep it over a restart."""
        notification.store(kept_name(self.spec.proxy), self._listener.fileno())

    def close(self, disposer: Disposer) -> None:
        """Connections may wait in it, and control may have closed its own copy."""
        disposer.dispose((self._listener,))

    def _proof(self, sock: socket.socket) -> str:
        cookie = sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, _COOKIE_BYTES)
        return hashlib.blake2b(cookie, digest_size=_PROOF_BYTES, key=self._key).hexdigest()


class Doors:
    """By proxy name."""

    def __init__(self, disposer: Disposer) -> None:
        self._disposer = disposer
        self._doors: dict[str, Door] = {}
        self._stored: set[str] = set()

    def get(self, proxy: str) -> Door | None:
        return self._doors.get(proxy)

    def keep(self, spec: ListenSpec, listener: socket.socket) -> None:
        """Keep a copy. What was bound for that proxy before is forgotten."""
        self.forget((spec.proxy,))
        self._doors[spec.proxy] = Door(spec, listener)

    def forget(self, proxies: Iterable[str]) -> None:
        for proxy in proxies:
            door = self._doors.pop(proxy, None)
            if door:
                door.close(self._disposer)
            if proxy in self._stored:
                self._stored.remove(proxy)
                notification.forget(kept_name(proxy))

    def store(self) -> None:
        """Have systemd keep what was bound since the last time, but for what is systemd's own anyway."""
        for proxy, door in self._doors.items():
            if door.spec.kind != "fd" and proxy not in self._stored:
                door.store()
                self._stored.add(proxy)


class _TooLongError(Exception):
    pass


def _raise(*_: object) -> None:
    raise _TooLongError


@contextmanager
def _not_for_ever() -> Iterator[None]:
    """accept(2) knows no flag that says "do not wait": only the socket has one, and control can change it."""
    before = signal.signal(signal.SIGALRM, _raise)
    seconds, _ = signal.setitimer(signal.ITIMER_REAL, _ACCEPT_SECONDS)
    try:
        yield
    except _TooLongError as error:
        raise ChannelError("a listening socket that blocks") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.signal(signal.SIGALRM, before)
