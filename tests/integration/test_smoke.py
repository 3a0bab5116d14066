"""The shortest way through everything: a daemon, a service, a client that may and one that may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.clients import as_user, exchange
from tests.support.daemon import running
from tests.support.services import serving


def configure(folder: Path, rules: str) -> Path:
    file = folder / "sockguard.toml"
    file.write_text(f'[proxy.echo]\nlisten = "{folder}/public"\nbackend = "{folder}/private"\n{rules}\n')
    return file


def test_allowed_client_reaches_the_service(folder: Path) -> None:
    """Bytes go both ways, and the events tell who, by which rule, and how much."""
    uid = os.geteuid()
    file = configure(folder, f"[[proxy.echo.allow]]\nusers = [{uid}]")
    with serving(folder / "private"), running(file, folder / "public") as daemon:
        assert exchange(folder / "public", b"hello\n") == "hello"
        closed = daemon.wait_for("connection_closed")
    assert (closed["uid"], closed["rule"], closed["outcome"]) == (uid, "echo.allow[0]", "closed")
    assert (closed["bytes_from_client"], closed["bytes_from_backend"]) == (6, 6)
    assert [event["seq"] for event in daemon.events()] == [1, 2]


@pytest.mark.root
def test_other_user_is_closed_at_once(folder: Path) -> None:
    """A uid that no rule allows sees a closed connection, and the service sees nothing."""
    file = configure(folder, "[[proxy.echo.allow]]\nusers = [0]")
    with serving(folder / "private"), running(file, folder / "public") as daemon:
        assert as_user(lambda: exchange(folder / "public"), 4242) == "closed"
        denied = daemon.wait_for("connection_denied")
    assert (denied["uid"], denied["cause"], denied["rule"]) == (4242, "rules", None)
    assert not daemon.events("connection_admitted")
