"""Which socket files are removed at the end: those of sockets that nobody has any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockguard.privsep import listening
from sockguard.privsep.listening import Bound


@pytest.mark.parametrize(
    ("managed", "started", "left"),
    [
        (True, True, {"kept", "new"}),  # systemd has been handed both
        (True, False, {"kept"}),
        (False, True, set()),
        (False, False, set()),
    ],
)
def test_what_is_left(folder: Path, managed: bool, started: bool, left: set[str]) -> None:
    bound = []
    for name in ("kept", "new"):
        path = folder / name
        path.touch()
        bound.append(Bound(str(path), path.stat().st_dev, path.stat().st_ino, kept=name == "kept"))
    listening.clean_up(bound, {"NOTIFY_SOCKET": "/run/notify"} if managed else {}, started=started)
    assert {path.name for path in folder.iterdir()} == left
