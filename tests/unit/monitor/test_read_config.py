"""The monitor reads the configuration for control: whatever the folder holds, there is an answer."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from sockguard.config.read import FOLDER
from sockguard.errors import SockguardError
from sockguard.monitor.process import Monitor
from sockguard.privsep import memfd
from sockguard.privsep.messages import Bind, ConfigRefused, ConfigText, Facts, Message, ReadConfig, encode

PROXY = '[proxy.p]\nlisten = "{0}/public"\nbackend = "{0}/private"\n'


@pytest.fixture
def monitor(folder: Path) -> Monitor:
    (folder / "sockguard.toml").write_text(PROXY.format(folder))
    (folder / FOLDER).mkdir()
    return Monitor(str(folder / "sockguard.toml"))


def read(monitor: Monitor) -> Message:
    answer, fds = monitor._read_config(ReadConfig())
    for fd in fds:
        os.close(fd)
    encode(answer)  # it fits a packet
    return answer


def names(folder: Path) -> list[Path]:
    """As many as there may be, and together longer than a message."""
    return [folder / FOLDER / f"{number:03}{'n' * 70}.toml" for number in range(999)]


def test_names_that_no_message_holds_are_refused(folder: Path, monitor: Monitor) -> None:
    """The mistake is the folder's, and what was read before is still what binding goes by."""
    assert isinstance(read(monitor), ConfigText)
    (folder / "sockguard.toml").write_text("")
    for path in names(folder):
        path.touch()
    answer = read(monitor)
    assert isinstance(answer, ConfigRefused)
    text = "the names of its 999 files are too long together; use shorter ones, or fewer files"
    assert answer.rows == ((str(folder / FOLDER), 0, "", text),)
    _, (fd,) = monitor._bind(Bind("p"))
    os.close(fd)
    monitor._doors._doors["p"]._listener.close()


def test_more_mistakes_than_a_message_holds(folder: Path, monitor: Monitor) -> None:
    """The first ones are told, and how many there are besides."""
    for path in names(folder):
        path.mkdir()
    answer = read(monitor)
    assert isinstance(answer, ConfigRefused)
    *told, rest = answer.rows
    assert [row[0] for row in told] == list(map(str, names(folder)))[: len(told)]
    assert rest == ("", 0, "", f"and {999 - len(told)} more mistakes")


def test_a_mistake_for_each_file(folder: Path, monitor: Monitor) -> None:
    """None is left out where all of them fit."""
    for path in names(folder)[:100]:
        path.mkdir()
    answer = read(monitor)
    assert isinstance(answer, ConfigRefused)
    assert [row[0] for row in answer.rows] == list(map(str, names(folder)[:100]))


def test_want_of_files_or_memory_is_an_answer(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this question's matter, and no end of the daemon."""

    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(memfd, "write", fails)
    with pytest.raises(SockguardError, match=r"cannot be passed on: Too many open files"):
        read(monitor)
    with socket.socket() as client:
        monkeypatch.setattr(os, "dup", fails)
        with pytest.raises(SockguardError, match="Too many open files"):
            monitor._facts(Facts(1, "p"), client.fileno())
