"""A Wayland compositor without a screen behind sockguard: its clients share their memory with it by file descriptor."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.servers import ALLOWED, as_uid, ended, guarded, private_folder, serving_process

pytestmark = pytest.mark.root

WESTON = ("weston", "--backend=headless-backend.so", "--no-config", "--debug")
FRAMES = 50


def test_weston(folder: Path) -> None:
    """A client's pictures come from the memory that it has passed, another client's descriptor is written to."""
    private = private_folder(folder, ALLOWED) / "wayland"
    runtime = f"XDG_RUNTIME_DIR={private.parent}"
    command = [*as_uid(ALLOWED), "env", runtime, *WESTON, f"--socket={private.name}"]
    with serving_process(command, private), guarded(folder, private.name) as guard:
        private.chmod(0o666)  # for whoever comes as far: the folder's group, which is sockguard
        client = ("env", "WAYLAND_DISPLAY=PATH", "WAYLAND_DEBUG=1", "weston-simple-shm")
        with ended(guard.start(*client)) as shm:
            assert shm.stderr is not None
            said = b""
            while said.count(b".done(") < FRAMES:  # the answer to "tell when the next frame may be drawn"
                line = shm.stderr.readline()
                assert line, said
                said += line
            assert b".create_pool(" in said
            assert b"error" not in said

            # Weston writes its answer to the standard output of this client, which comes as a descriptor.
            shown = guard.client("env", "WAYLAND_DISPLAY=PATH", "weston-debug", "scene-graph")
            assert shown.returncode == 0, shown.stderr
            assert shown.stdout.startswith(b"Weston scene graph at ")
            assert b"xdg_toplevel" in shown.stdout

            shm.send_signal(signal.SIGINT)
            _, rest = shm.communicate(timeout=15)
            assert (shm.returncode, b"error" in rest) == (0, False), rest
        guard.refused("env", "WAYLAND_DISPLAY=PATH", "weston-debug", "--list", says=rb"does not support|failed")
        # A client that disconnects leaves unread what the compositor has said since it read last, if there is any.
        outcomes = {event["outcome"] for event in guard.daemon.events("connection_closed")}
        assert outcomes <= {"closed", "client_reset"}
