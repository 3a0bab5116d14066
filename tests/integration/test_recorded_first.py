"""A request is recorded before it is passed on: one that was done is in the log, whatever becomes of the relay.

The service kills the relay in the moment in which a request arrives. The daemon is a copy (tests/support/tampered.py)
whose relay is slow to tell control of requests: one that passed them on first would be killed before it has told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tests.support.dbus import dbus_daemon
from tests.support.dbus_wire import MEMBER, NO_REPLY, Wire, call, request_name
from tests.support.foreign import FRIEND, PROTOCOLS, Place, is_over, place, served
from tests.support.http_services import LeaveError, Seen, plainly, recording
from tests.support.http_services import Wire as HttpWire
from tests.support.http_stage import ask
from tests.support.servers import private_folder
from tests.support.tampered import RELAY, tampered

pytestmark = pytest.mark.root

SLOW: Final = """
import select

class Slow(Loop):
    def _tell(self):
        if self._requests:
            select.poll().poll(300)  # its cage has no sleep
        super()._tell()

Loop = Slow
"""

LOG: Final = """
[log]
requests = "all"
"""

NAME: Final = "org.example.Recorded"

MODES: Final = {
    "request_allowed": {"http": '"GET,POST /{path...}"', "dbus": f'{{ destination = "{NAME}" }}'},
    "would_deny": {"http": '"GET /other"', "dbus": '{ destination = "org.example.Other" }'},
}
"""The event, and what a rule allows of each protocol: the last is not enforced."""


@contextmanager
def recording_daemon(protocol: str, mode: str) -> Iterator[Place]:
    """Its proxy "one" is that of the test."""
    rule = f"users = [{FRIEND}], {protocol} = [{MODES[mode][protocol]}]"
    backend = {"http": "FOLDER/one.private", "dbus": "FOLDER/private/bus"}[protocol]
    keys = f'protocol = "{protocol}"\nbackend = "{backend}"\nallow = [{{ {rule} }}]\n'
    keys += f"enforce = {str(mode != 'would_deny').lower()}\n"
    with tampered(RELAY, SLOW) as copy, place({**PROTOCOLS, "one": keys}, LOG, cwd=copy) as guard:
        yield guard


def check(guard: Place, mode: str, request: str, count: int) -> None:
    """So many requests are told of, by the relay that is lost."""
    guard.daemon.wait_for("relay_restarted")
    (end,) = guard.ends(FRIEND)
    assert end["outcome"] == "relay_lost"
    told = [event for event in guard.daemon.events(mode) if request in event.get("request", "")]
    assert len(told) == count
    assert all((event["uid"], event["connection"]) == (FRIEND, end["connection"]) for event in told)
    assert told[-1]["seq"] < end["seq"]


@pytest.mark.parametrize("mode", MODES)
def test_http(mode: str) -> None:
    """The second request of a connection never gets an answer."""
    with recording_daemon("http", mode) as guard, ExitStack() as made:
        relay = guard.relay()

        def answer(wire: HttpWire, seen: Seen) -> None:
            if seen.target == "/done/2":
                os.kill(relay, signal.SIGKILL)
                raise LeaveError
            plainly(wire, seen)

        recorder = made.enter_context(recording(guard.folder / "one.private", answer))
        sock = made.enter_context(guard.connect(FRIEND, "one"))
        served(sock, "http")
        for number in (1, 2):
            ask(sock, f"POST /done/{number}", "Content-Length: 1", body=b"x")
        assert is_over(sock)
        assert recorder.lines == ["GET /small", "POST /done/1", "POST /done/2"]
        check(guard, mode, "/done/", 2)


@pytest.mark.parametrize("mode", MODES)
def test_dbus(mode: str) -> None:
    """Some calls are alike, and nobody waits for an answer to them."""
    with recording_daemon("dbus", mode) as guard, ExitStack() as made:
        bus = made.enter_context(dbus_daemon(private_folder(guard.folder, 0) / "bus"))
        service = made.enter_context(Wire(bus.path))
        service.send(request_name(2, NAME))
        service.answer(2)
        client = made.enter_context(Wire(guard.folder / "one", FRIEND))
        relay = guard.relay()
        for serial in (10, 11, 12):
            client.send(call(serial, NAME, "Done", interface=NAME, flags=NO_REPLY))
            while service.receive().header.fields.get(MEMBER) != "Done":
                pass
        os.kill(relay, signal.SIGKILL)
        assert is_over(client.sock)
        check(guard, mode, "Done", 3)
