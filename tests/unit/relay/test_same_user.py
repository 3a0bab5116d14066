"""``sender = "same-user"`` where a reload has met the connection halfway: the listener did not ask who sends yet."""

from __future__ import annotations

import os
import socket

import pytest

from tests.unit.relay.conftest import End, RelayUnderTest

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
protocols = pytest.mark.parametrize("protocol", KINDS)


@protocols
def test_what_nobody_is_known_to_have_sent_ends_it(relay: RelayUnderTest, protocol: str) -> None:
    """Whoever it was, it is not known to be who connected: none of it is passed on."""

    def early(client: End, _: End) -> None:
        client.send(b"from nobody knows whom")

    relay.configure(1, {"protocol": protocol, "sender": "same-user"})
    number, client, backend = relay.link(before=early, kind=KINDS[protocol])
    with client, backend:
        assert relay.end_of(number) == (0, 0, "sender_changed")


@protocols
def test_who_connected_may_send(relay: RelayUnderTest, protocol: str) -> None:
    """From the hand-over on the kernel names the sender."""
    relay.configure(1, {"protocol": protocol, "sender": "same-user"})
    _, client, backend = relay.link(kind=KINDS[protocol])
    with client, backend:
        client.send(b"mine")
        assert backend.recv(10) == b"mine"


@pytest.mark.root
@protocols
def test_another_user_may_not(relay: RelayUnderTest, protocol: str) -> None:
    """The connection was handed to a process of another uid, and that sends."""
    relay.configure(1, {"protocol": protocol, "sender": "same-user"})
    number, client, backend = relay.link(kind=KINDS[protocol])
    with client, backend:
        pid = os.fork()
        if pid == 0:
            try:
                os.setresuid(4243, 4243, 4243)
                client.send(b"another's")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert relay.end_of(number) == (0, 0, "sender_changed")
