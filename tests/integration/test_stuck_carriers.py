"""Descriptors whose every close hangs until their maker lets it go on: carriers hang in it, and nothing else does.

The attacker is an admitted user with a FUSE file system of its own (tests/support/fuse.py). Whoever waits for that
cannot even be killed: such a carrier is written off, and at the end it is left to the kernel.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

import pytest

from tests.support.daemon import running
from tests.support.foreign import ATTACKER, FRIEND, KINDS, SECONDS, Place, living, place, served
from tests.support.fuse import Hanging, hanging
from tests.support.identities import state, wait_until

pytestmark = pytest.mark.root

CARRIERS: Final = "sockguard-fds"
"""What their processes are called."""

TRIES: Final = 10
"""More descriptors than hang before a user's next one is refused."""


def pass_until_refused(guard: Place, weapon: Hanging, proxy: str) -> int:
    """Pass one after the other until that ends the connection, and says why. How many came through to the service."""
    before = len([event for event in guard.daemon.events("connection_closed") if event["uid"] == ATTACKER])
    with guard.connect(ATTACKER, proxy) as sock:
        served(sock, proxy)
        through = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while through < TRIES:
                weapon.send(sock)
                if not sock.recv(100):
                    break
                through += 1
        assert guard.ends(ATTACKER, before + 1)[before]["outcome"] == "fds_stuck"
    return through


def passes(guard: Place, uid: int, proxy: str) -> bool:
    """Does a plain descriptor of that user's get through?"""
    with guard.connect(uid, proxy) as sock, open(os.devnull) as file:
        socket.send_fds(sock, [b"ping"], [file.fileno()])
        with suppress(ConnectionResetError):
            return sock.recv(100) == b"ping"
    return False


def hang(guard: Place) -> list[int]:
    """The carriers that cannot be killed."""
    return [pid for pid in guard.daemon.pids()[CARRIERS] if state(pid) == "D"]


@pytest.mark.parametrize("proxy", ["stream", "seqpacket"])
def test_others_go_on(proxy: str) -> None:
    """Some of them get through. Then who brings another one is cut off, with an outcome of its own; all others go on in
    the same relay, and so does the attacker as long as it brings none. In the end everything is as it was."""
    with place() as guard, hanging(guard.folder, ATTACKER) as weapon, guard.connect(FRIEND, proxy) as friend:
        served(friend, proxy)
        relay = guard.relay()
        assert 0 < pass_until_refused(guard, weapon, proxy) < TRIES
        served(friend, proxy)
        guard.goes_on(*KINDS)
        assert passes(guard, FRIEND, proxy)
        assert pass_until_refused(guard, weapon, proxy) == 0
        assert not passes(guard, ATTACKER, proxy)
        with guard.connect(ATTACKER, proxy) as sock:
            served(sock, proxy)
        served(friend, proxy)
        guard.goes_on(*KINDS)
        assert guard.relay() == relay
        assert not guard.daemon.events("relay_restarted")
        weapon.release()
        wait_until(lambda: passes(guard, ATTACKER, proxy), "the attacker's carriers are free again")


@pytest.mark.parametrize("when", ["at once", "written off"])
def test_the_daemon_ends_and_another_one_starts(when: str) -> None:
    """While carriers hang, and whatever has been said of them, the end is the usual one. The next daemon listens on the
    same paths while they still do. Nothing is left once they are let go."""
    with place() as guard, hanging(guard.folder, ATTACKER) as weapon, guard.connect(ATTACKER) as attacker:
        weapon.send(attacker)
        assert attacker.recv(100) == b"x"
        if when == "written off":
            pass_until_refused(guard, weapon, "stream")
        assert guard.daemon.stop(wait=SECONDS) == 0
        left = living(guard.daemon)
        assert set(left) == {CARRIERS}
        with running(guard.daemon.config, *(guard.folder / proxy for proxy in KINDS)) as second:
            Place(second, guard.folder).goes_on(*KINDS)
            assert living(guard.daemon) == left
        weapon.release()
        wait_until(lambda: not living(guard.daemon), "nothing of the first daemon is left")
        assert not living(second)
