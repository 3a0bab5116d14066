"""The daemon's own log lines: for the level and the form that the file asks for, and harmless to a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from sockguard import logs
from sockguard.logs import log


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_level_and_form_can_change(capfd: pytest.CaptureFixture[str]) -> None:
    """A reload that asks for others gets them, of a logger that has been used already."""
    logs.set_up("info", "json")
    log.info("first")
    logs.set_up("debug", "console")
    log.debug("second")
    logs.set_up("error", "console")
    log.info("third")
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith('{"event": "first"')
    assert "[debug" in second


def test_a_relays_text_is_no_command_to_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """A relay that was taken over may say anything as its reason: it is shown, not done."""
    logs.set_up("info", "console")
    log.error("a relay has ended", reason="\x1b]0;title\x07\x9b2J\u202e", other="caf\xe9")
    (line,) = capfd.readouterr().err.splitlines()
    assert r"\x1b]0;title\x07\x9b2J\u202e" in line
    assert "caf\xe9" in line
    assert line.isprintable()


def test_a_traceback_keeps_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """It is for reading, but the message of its exception may be anybody's text."""
    logs.set_up("info", "console")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("a fault")
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == r"ValueError: \x1b[2J"
    assert all(line.isprintable() for line in lines)
