"""The master: a process that does nothing but fork, for the process that has started it. Forked before anything that a
peer sent is read, and before that process enters a cage in which it can start none.

It receives no foreign descriptor itself: a message that brings some (DISPOSE) is left in the queue for a child, a
keeper, which receives it and exits when it is the last that has them (GO). A process that exits waits for no SO_LINGER
(PF_EXITING in inet_release of net/ipv4/af_inet.c). Other files may have it wait for good (fuse_release writes back
dirty pages): while MAX_EXITING keepers do, the next one does not exit, but goes on and receives what comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from array import array
from collections import deque
from typing import Final, NoReturn

from sockguard.carriers import carrier
from sockguard.carriers.jobs import DISPOSE, GO, MAX_DISPOSED, READY, START
from sockguard.errors import SockguardError
from sockguard.privsep import channel, rights
from sockguard.sandbox import CARRIERS, TAKES, enter

MAX_EXITING: Final = 64
"""Keepers that were told to exit and have not ended."""

MAX_KEPT: Final = 256
"""Messages that one keeper receives, where it may have so many descriptors open."""

_REAP_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 0.05
_START_SECONDS: Final = 10.0
_END_SECONDS: Final = 0.5


class Master:
    """The end that the starting process has.

    channel    to the master
    disposals  to it as well, for what it is to have closed (disposal.py)
    slots      one channel for each carrier that can be started, in order; that carrier's, once it is
    """

    def __init__(self, sock: socket.socket, disposals: socket.socket, slots: list[socket.socket], pid: int) -> None:
        self.channel = sock
        self.disposals = disposals
        self.slots = slots
        self._pid = pid

    def wait_ready(self) -> None:
        """Until it is in its cage. Raises SockguardError when it cannot be."""
        self.channel.settimeout(_START_SECONDS)
        try:
            said = self.channel.recv(1000)
        except OSError:
            said = b""
        self.channel.setblocking(False)
        if said != READY:
            reason = said.decode("ascii", "replace") or "it ended"
            raise SockguardError(f"the process that closes passed descriptors could not be started: {reason}")

    def passing(self) -> list[int]:
        """The descriptors by which others are passed to it and to its carriers."""
        return [sock.fileno() for sock in (self.disposals, *self.slots)]

    def start(self, slot: int) -> None:
        """Have the carrier of that slot forked. Raises OSError when that cannot be said now."""
        self.channel.send(START + bytes([slot]), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """The master and its carriers end when they see this."""
        for sock in (self.channel, self.disposals, *self.slots):
            sock.close()

    def end(self) -> None:
        """Close it, and wait a moment until the master has ended; what it has forked ends in its own time."""
        self.close()
        end = time.monotonic() + _END_SECONDS
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
            time.sleep(0.001)


def start(slots: int = 0, account: rights.Account | None = None) -> Master:
    """Fork the master. Only in a process with one thread, and before anything that a peer sent is read.

    slots    how many carriers it can start
    account  what it becomes; None: it keeps its ids
    """
    ours, theirs = channel.pair()
    disposals, to_dispose = channel.pair()
    pairs = [channel.pair() for _ in range(slots)]
    pid = os.fork()
    if pid == 0:
        _run(theirs, to_dispose, [far for _, far in pairs], account)
    for near in (disposals, *(near for near, _ in pairs)):
        near.setblocking(False)
    for far in (theirs, to_dispose, *(far for _, far in pairs)):
        far.close()
    return Master(ours, disposals, [near for near, _ in pairs], pid)


def _run(
    sock: socket.socket, disposals: socket.socket, far: list[socket.socket], account: rights.Account | None
) -> NoReturn:
    """What the child does. Nothing of the process that it was forked from goes on in it."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C and systemd's signal reach the whole group
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _close_all_but({each.fileno() for each in (sock, disposals, *far)})
        rights.harden("sockguard-fds")
        files = rights.raise_open_files()  # it limits how many descriptors may be on their way (too_many_unix_fds)
        rights.become(account, keep=TAKES)
        enter(kind=CARRIERS)
    except Exception as error:
        with contextlib.suppress(OSError):
            sock.send(f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace")[:1000])
        os._exit(1)
    try:
        sock.send(READY)
        _Serving(sock, disposals, far, files).run()
    finally:
        os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    """Standard input, output and error become /dev/null: who reads the log must see its end when the daemon ends."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        if fd not in kept:
            os.dup2(null, fd)
    low = 3
    for fd in sorted(fd for fd in kept if fd >= 3):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, rights.open_files_limit())


class _Keeper:
    """A child that receives what is to be disposed of, one message each time it is told, and then exits."""

    def __init__(self, pid: int, gate: socket.socket) -> None:
        self.pid = pid
        self.gate = gate
        self.taken = self.gone = 0  # messages that it received, and those of which it has the last copies

    def take(self) -> bool:
        """Have it receive the message that is first in the queue. False: it does not."""
        try:
            self.gate.send(DISPOSE)
            return self.gate.recv(1) == READY
        except OSError:
            return False


class _Serving:
    """What the master does."""

    def __init__(self, sock: socket.socket, disposals: socket.socket, far: list[socket.socket], files: int) -> None:
        """files: how many each process may have open."""
        self._sock = sock
        self._disposals = disposals
        self._far = far
        self._epoll = select.epoll()
        for each in (sock, disposals):
            self._epoll.register(each.fileno(), select.EPOLLIN)
        # A descriptor for which there is no room would be closed by recvmsg, which is not to wait for that.
        self._most = min(MAX_KEPT, max(files // MAX_DISPOSED - 1, 1))
        self._carriers: set[int] = set()
        self._exiting: set[int] = set()
        self._keepers: list[_Keeper] = []  # not told to exit yet; the last may receive more
        self._owed: deque[_Keeper] = deque()  # whose messages GO is still to come for, in order

    def run(self) -> None:
        """Until the other end is closed."""
        while True:
            ready = {fd for fd, _ in self._epoll.poll(_REAP_SECONDS if self._exiting else -1)}
            self._reap()
            if self._disposals.fileno() in ready:
                self._on_disposal()
            if self._sock.fileno() in ready and not self._on_start():
                return

    def _reap(self) -> None:
        while self._carriers or self._exiting or self._keepers:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            self._carriers.discard(pid)
            self._exiting.discard(pid)
            for keeper in [each for each in self._keepers if each.pid == pid]:  # of itself: somebody has killed it
                keeper.gate.close()
                self._keepers.remove(keeper)
        self._release()

    def _release(self) -> None:
        """Have keepers exit that are the last to have all that they took, as many as may be exiting."""
        for keeper in list(self._keepers):
            if len(self._exiting) >= MAX_EXITING:
                return
            if keeper.gone == keeper.taken > 0:
                self._let_go(keeper)

    def _let_go(self, keeper: _Keeper) -> None:
        keeper.gate.close()
        self._keepers.remove(keeper)
        self._exiting.add(keeper.pid)

    def _on_start(self) -> bool:
        word = self._sock.recv(2, socket.MSG_PEEK)
        if not word:
            return False
        pid = _fork()
        if pid == 0:
            slot = word[1]
            self._keep_only(self._far[slot])
            carrier.main(self._far[slot])
            os._exit(0)
        if pid > 0:
            self._sock.recv(2)
            self._carriers.add(pid)
            self._far[word[1]].close()
        return True

    def _on_disposal(self) -> None:
        word = self._disposals.recv(1, socket.MSG_PEEK)
        if not word:
            self._epoll.unregister(self._disposals.fileno())
        elif word == GO:
            self._disposals.recv(1)
            if self._owed:
                self._owed.popleft().gone += 1
            self._release()
        else:
            keeper = self._receiving()
            if keeper is not None and keeper.take():
                keeper.taken += 1
                self._owed.append(keeper)
            elif keeper is not None:  # it has died: the message may be there still
                self._let_go(keeper)

    def _receiving(self) -> _Keeper | None:
        """A keeper that can receive more; None when none can be had now."""
        if self._keepers and self._keepers[-1].taken < self._most:
            return self._keepers[-1]
        gate, far = channel.pair()
        pid = _fork()
        if pid == 0:
            gate.close()
            self._keep_only(far, self._disposals)
            _keep(far, self._disposals)
        far.close()
        if pid < 0:
            gate.close()
            return None
        self._keepers.append(_Keeper(pid, gate))
        return self._keepers[-1]

    def _keep_only(self, *kept: socket.socket) -> None:
        """In a child: close what is the master's."""
        self._epoll.close()
        for sock in (self._sock, self._disposals, *self._far, *(keeper.gate for keeper in self._keepers)):
            if sock not in kept:
                sock.close()


def _keep(gate: socket.socket, disposals: socket.socket) -> NoReturn:
    """What a keeper does."""
    try:
        while gate.recv(1):
            disposals.recvmsg(1, socket.CMSG_SPACE(MAX_DISPOSED * array("i").itemsize), socket.MSG_DONTWAIT)
            gate.send(READY)
    finally:
        os._exit(0)


def _fork() -> int:
    """As fork(2); -1, after a pause, where no process can be had now."""
    try:
        return os.fork()
    except OSError:
        time.sleep(_RETRY_SECONDS)
        return -1
