"""What connections bring along, beside their bytes: only what was asked for, whoever made the listener."""

from __future__ import annotations

import socket

import pytest

from sockguard.privsep import listening
from sockguard.privsep.listening import ListenSpec


@pytest.mark.parametrize("option", [34, 76], ids=["PassSecurity=", "PassPIDFD="])
def test_what_a_unit_has_set_is_taken_back(option: int) -> None:
    """A label or a descriptor of the sender with each message would be in the way of the bytes, and fill the relay."""
    with socket.socket(socket.AF_UNIX) as passed, socket.socket(socket.AF_UNIX) as client:
        passed.bind("")
        passed.listen()
        try:
            passed.setsockopt(socket.SOL_SOCKET, option, 1)
        except OSError:
            return  # this kernel does not know it
        spec = ListenSpec("p", "fd", "web", 0o666, None, None, refuse_fds=False)
        with listening.listen(spec, {"web": passed.fileno()})[0] as sock:
            client.connect(passed.getsockname())
            with sock.accept()[0] as accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, option) == 0
