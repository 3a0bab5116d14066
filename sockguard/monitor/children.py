"""The processes that the monitor starts, control and relays: who they are, and how they end."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import time
from collections.abc import Iterator
from typing import Final

from sockguard.privsep import rights, spawn

FALLBACK_RELAY_USER: Final = "nobody"
MAX_RELAYS: Final = 256
"""Relays alive at once, whatever control asks for."""

_END_SECONDS: Final = 1.0
_KILLED_SECONDS: Final = 0.5
"""How long is waited at the end: for control, and then for all relays; and again once they are killed."""


class Children:
    """Control and relays, each with its account: None where there is no right to change to it, or no such account.

    control_account, relay_account  known from find_accounts on
    """

    def __init__(self) -> None:
        self.control_account: rights.Account | None = None
        self.relay_account: rights.Account | None = None
        self._control_pid = 0
        self._relays: dict[int, tuple[int, int]] = {}  # pid → (control's number, its uid or -1)

    def find_accounts(self) -> None:
        """Look up whom control and relays run as. For a process that may change to them."""
        self.control_account = _account(rights.CONTROL_USER)
        self.relay_account = _account(rights.RELAY_USER) or _account(FALLBACK_RELAY_USER)

    def start_control(self, config: str) -> socket.socket:
        """Give the channel to it. Raises OSError."""
        relay_uid = self.relay_account.uid if self.relay_account else -1
        self._control_pid, channel = spawn.spawn_control(self.control_account, [str(relay_uid), config])
        return channel

    @property
    def relays(self) -> int:
        """How many are alive."""
        return len(self._relays)

    def start_relay(self, number: int, protocols: str) -> tuple[socket.socket, int]:
        """Give the channel to it, and the end of its pipe. Raises OSError."""
        account = self.relay_account
        pid, sock, pipe = spawn.spawn_relay(account, protocols)
        self._relays[pid] = (number, account.uid if account else -1)
        return sock, pipe

    def kill_relay(self, number: int) -> None:
        for pid, (of, uid) in self._relays.items():
            if of == number:
                _kill(pid, uid)

    def ended_relays(self) -> Iterator[tuple[int, int]]:
        """The numbers of those that have ended since the last time, and their exit statuses (-SIGNAL: by a signal)."""
        for pid, (number, _) in list(self._relays.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._relays[pid]
                yield number, os.waitstatus_to_exitcode(status)

    def wait_for_control(self) -> int | None:
        """Its exit status; it is killed when it does not end, and None is given when even that does not end it."""
        end = time.monotonic() + _END_SECONDS
        killed = False
        while True:
            found, status = os.waitpid(self._control_pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                if killed:
                    return None
                account = self.control_account
                _kill(self._control_pid, account.uid if account else -1)
                killed, end = True, time.monotonic() + _KILLED_SECONDS
            time.sleep(0.01)

    def wait_for_relays(self) -> None:
        """Relays end when control's end of their channel closes; one that does not is killed. One that does not end
        even so is left to the kernel.
        """
        end = time.monotonic() + _END_SECONDS
        killed = False
        while self._relays:
            for _ in self.ended_relays():
                pass
            if self._relays and time.monotonic() > end:
                if killed:
                    return
                for pid, (_, uid) in self._relays.items():
                    _kill(pid, uid)
                killed, end = True, time.monotonic() + _KILLED_SECONDS
            if self._relays:
                time.sleep(0.01)


def _account(name: str) -> rights.Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = os.getgrouplist(name, entry.pw_gid) if name == rights.CONTROL_USER else []
    return rights.Account(entry.pw_uid, entry.pw_gid, tuple(sorted(set(groups))))


def _kill(pid: int, uid: int) -> None:
    """SIGKILL to a child that is not reaped yet, so the pid is its own. As its uid, since no CAP_KILL is kept."""
    own = os.geteuid()
    try:
        if uid >= 0:
            os.seteuid(uid)
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        if os.geteuid() != own:
            os.seteuid(own)
            rights.stay_undumpable()
