"""A relay that is taken over, or hangs, with a descriptor whose every close hangs: control goes on without it.

What a relay in its cage can reach otherwise stands in test_cage.py. Here the daemon is a copy in which the relay does
what the attacker wants (tests/support/tampered.py), as soon as the attacker's own connection is handed to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tests.support.foreign import ATTACKER, FRIEND, KINDS, SECONDS, Place, living, place, served
from tests.support.fuse import hanging
from tests.support.identities import state, wait_until
from tests.support.tampered import RELAY, tampered

pytestmark = pytest.mark.root

_TAKEN_OVER: Final = f"""

class TakenOver(Loop):
    def _take(self, message, fds):
        for index, row in enumerate(message.rows):
            if row[4] == {ATTACKER}:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[2 * index])
                client.setblocking(True)
                attack(self._control, client, socket.recv_fds(client, 100, 1)[1])
                client.detach()
        super()._take(message, fds)

Loop = TakenOver
"""

HAND_OVER: Final = """
def attack(control, client, fds):
    try:
        socket.send_fds(control, [b"x"], fds)
    except OSError as error:
        client.sendall(type(error).__name__.encode())
    else:
        client.sendall(b"sent")
"""

CLOSE: Final = """
def attack(control, client, fds):
    os.close(fds[0])
"""

RESTART_SECONDS: Final = 40.0
"""More than the heartbeat takes (server/relays.py) to find a relay that stands still."""


@contextmanager
def taken_over(attack: str) -> Iterator[Place]:
    with tampered(RELAY, _TAKEN_OVER + attack) as copy, place(cwd=copy) as guard:
        yield guard


def test_it_passes_a_descriptor_to_control() -> None:
    """Through the channel that it has to control nothing can be passed: control would have to close it. Its cage
    refuses to send a message there; where there is none, control's end takes nothing."""
    with taken_over(HAND_OVER) as guard, ExitStack() as made:
        weapon = made.enter_context(hanging(guard.folder, ATTACKER))
        sock = made.enter_context(guard.connect(ATTACKER))
        relay = guard.relay()
        weapon.send(sock)
        assert sock.recv(100) == b"PermissionError"
        guard.goes_on(*KINDS)
        assert guard.relay() == relay
        assert not guard.daemon.events("relay_restarted")


def test_it_hangs_and_cannot_be_killed() -> None:
    """It counts as gone after the heartbeat, although the kernel keeps it and its sockets: its connections are told,
    another one takes its place, and the daemon ends as usual."""
    with taken_over(CLOSE) as guard, ExitStack() as made:
        weapon = made.enter_context(hanging(guard.folder, ATTACKER))
        served(made.enter_context(guard.connect(FRIEND)))
        relay = guard.relay()
        weapon.send(made.enter_context(guard.connect(ATTACKER)))
        assert guard.status()["relay_restarts"] == 0
        guard.daemon.wait_for("relay_restarted", seconds=RESTART_SECONDS)
        assert [guard.ends(uid)[0]["outcome"] for uid in (FRIEND, ATTACKER)] == ["relay_lost"] * 2
        assert state(relay) == "D"
        guard.goes_on(*KINDS)
        assert guard.daemon.stop(wait=SECONDS) == 0
        assert relay in living(guard.daemon)["sockguard-relay"]
        weapon.release()
        wait_until(lambda: not living(guard.daemon), "nothing is left")
