"""paplay plays through the guard to PipeWire: a small SO_SNDBUF that a write fills, and passed memory."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import pytest

from tests.support.front import pipewire_pulse
from tests.support.identities import wait_until
from tests.support.open_to_all import open_to_all
from tests.support.servers import ALLOWED, private_folder, run

pytestmark = pytest.mark.root

RATE = 48_000
SOUND_SECONDS = 2
"""As much as is sent at once, before the server has played any of it."""


@pytest.fixture
def sound(folder: Path) -> Path:
    """Noise, in two channels of two bytes."""
    path = folder / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(os.urandom(SOUND_SECONDS * RATE * 4))
    path.chmod(0o644)
    return path


def test_paplay(folder: Path, sound: Path) -> None:
    """It plays to the end as it does without the guard, each time."""
    private = private_folder(folder, ALLOWED)
    with (
        pipewire_pulse(private, ALLOWED) as server,
        open_to_all(folder, {"pulse": (server, "")}) as daemon,
    ):
        for path in (server, *[folder / "pulse"] * 3):
            done = run(["env", f"HOME={private}", "paplay", f"--server=unix:{path}", str(sound)], uid=ALLOWED)
            assert (done.returncode, done.stderr) == (0, b"")
        wait_until(lambda: len(daemon.events("connection_closed")) == 3, "each connection has ended")
        assert [event["outcome"] for event in daemon.events("connection_closed")] == ["closed"] * 3
