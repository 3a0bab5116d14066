"""Rules with ``until``: what has ended already, and what ends while connections live."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.clients import connect
from tests.support.daemon import Event, running
from tests.support.identities import Client, Guard, guarding, someone, wait_started, wait_until
from tests.support.reloading import Subject, proxy
from tests.support.services import serving

pytestmark = pytest.mark.root


def test_rule_whose_time_has_passed(folder: Path) -> None:
    """An allow with ``until`` in the past admits nobody, and a deny keeps nobody out."""
    config = """
[proxy.past]
allow = [{ users = [4242], until = 2020-01-01T00:00:00Z }, { users = [4243] }]
deny = [{ users = [4243], until = 2020-01-01T00:00:00Z }]
"""
    with guarding(folder, config) as guard:
        guard.denies("past", someone(4242), uid=4242)
        guard.admits("past", someone(4243), rule="past.allow[1]", uid=4243)


def test_until_passes_while_connections_live(folder: Path) -> None:
    """The client whose only rule ends is cut and its end is ``revoked``; one that another rule admits goes on under
    that rule; whoever comes later is refused."""
    for lead in (3, 10, 30, 90):  # seconds until the rule ends; longer ones for a machine that starts slowly
        end = datetime.now(UTC) + timedelta(seconds=lead)
        text = f"{end:%Y-%m-%dT%H:%M:%SZ}"
        config = f"""[proxy.brief]
        allow = [{{ users = [0, 4242], until = {text}, name = "brief" }}, {{ users = [0], name = "lasting" }}]"""
        with guarding(folder, config) as guard, Client(4242, 4242) as client, connect(guard.path("brief")) as lasting:
            if client.meet(guard.path("brief")) != "ping":
                continue
            check_end(guard, client, lasting)
            return
    raise AssertionError("the daemon never started in time")


def test_until_passes_while_a_reload_goes_on(folder: Path) -> None:
    """The reload waits five seconds for a relay that stands still, and the rule that it brought ends meanwhile."""
    config = folder / "sockguard.toml"
    config.write_text("[daemon]\nrelays = 2\n" + proxy(folder, "echo"))
    path = folder / "echo"
    with (
        serving(folder / "private"),
        running(config, path) as daemon,
        Client(4242, 4242) as one,
        Client(4242, 4242) as two,
    ):
        wait_started(daemon)
        assert (one.meet(path), two.meet(path)) == ("ping", "ping")  # to the relay with the least to do: one to each
        os.kill(daemon.pids()["sockguard-relay"][0], signal.SIGSTOP)
        end = datetime.now(UTC) + timedelta(seconds=3)
        rule = f"{{ users = [4242], until = {end:%Y-%m-%dT%H:%M:%SZ} }}"
        Subject(daemon, folder).reload(proxy(folder, "echo", f"allow = [{rule}]"))
        daemon.wait_for("connection_closed", lambda event: event["outcome"] == "revoked")
        wait_until(lambda: len(daemon.events("connection_closed")) == 2, "both have ended")
        assert (one.do("ask"), two.do("ask")) == ("closed", "closed")


def test_until_passes_while_the_daemon_ends(folder: Path) -> None:
    """Told to end, it lets connections finish, but for those whose rule ends meanwhile."""
    for lead in (3, 10, 30, 90):
        end = datetime.now(UTC) + timedelta(seconds=lead)
        config = f"""[daemon]
drain_timeout = "1h"
[proxy.brief]
allow = [{{ users = [4242], until = {end:%Y-%m-%dT%H:%M:%SZ} }}]
"""
        with guarding(folder, config) as guard, Client(4242, 4242) as client:
            if client.meet(guard.path("brief")) != "ping":
                continue
            guard.daemon.process.send_signal(signal.SIGTERM)
            ended = guard.daemon.wait_for("connection_closed", seconds=100)
            assert ended["outcome"] == "revoked"
            assert client.do("ask") == "closed"
            assert guard.daemon.process.wait(20) == 0
            return
    raise AssertionError("the daemon never started in time")


def check_end(guard: Guard, client: Client, lasting: socket.socket) -> None:
    def of(uid: int) -> Callable[[Event], bool]:
        return lambda event: event["uid"] == uid

    ended = guard.daemon.wait_for("connection_closed", of(4242), seconds=100)
    assert (ended["outcome"], ended["rule"]) == ("revoked", "brief")
    assert client.do("ask") == "closed"
    lasting.sendall(b"ping")
    assert lasting.recv(10) == b"ping"
    guard.denies("brief", someone(4242), uid=4242)
    lasting.close()
    over = guard.daemon.wait_for("connection_closed", of(0))
    assert (over["outcome"], over["rule"]) == ("closed", "lasting")
