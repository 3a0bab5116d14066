"""The form of what the daemon says: for people or for machines, as the file has it now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import running
from tests.support.identities import wait_started, wait_until
from tests.support.reloading import Subject, proxy
from tests.support.services import serving

pytestmark = pytest.mark.root


def test_log_format(folder: Path) -> None:
    """Audit events and log lines have the form that the file asks for, from the reload on."""
    config = folder / "sockguard.toml"
    config.write_text(proxy(folder, "echo"))
    with serving(folder / "private"), running(config, folder / "echo") as daemon:
        wait_started(daemon)
        subject = Subject(daemon, folder)
        subject.write(proxy(folder, "echo"), '[log]\nformat = "console"\n')
        assert subject.command("reload").returncode == 0
        wait_until(lambda: bool(daemon.lines), "the reload is told")
        assert [line.split()[1] for line in daemon.lines] == [b"reloaded"]
        first, last = daemon.stderr().splitlines()[0], daemon.stderr().splitlines()[-1]
        assert first.startswith("{")
        assert "[info" in last
