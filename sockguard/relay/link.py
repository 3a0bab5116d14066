"""What the loop knows of a connection, whichever way it is served (stream.py, records.py, inspected.py)."""

from __future__ import annotations

import socket
from typing import Protocol

from sockguard.relay.options import Options


class AnyLink(Protocol):
    """One connection. ``number`` is control's name for it, ``user`` whom it counts for."""

    options: Options

    @property
    def number(self) -> int: ...

    @property
    def user(self) -> int: ...

    @property
    def client(self) -> AnySide: ...

    @property
    def backend(self) -> AnySide: ...

    def start(self) -> None:
        """Both sides are in the loop."""

    def end(self, outcome: str, *, clean: bool) -> None:
        """Close both sockets and tell."""

    def fail(self, error: Exception) -> None:
        """That was raised while it was served, which nobody expects: it ends this connection, and no other."""

    def on_time(self) -> bool:
        """A tick of the loop's clock. False when this link waits for no time any more."""


class AnySide(Protocol):
    """One of the two sockets of a link."""

    @property
    def fd(self) -> int: ...

    @property
    def sock(self) -> socket.socket: ...

    @property
    def link(self) -> AnyLink: ...

    def pump(self) -> None:
        """Do a bounded piece of what there is to do."""

    def on_events(self, events: int, /) -> None:
        """What epoll says about this socket."""

    def retry(self) -> None:
        """Try again what the kernel could not do."""
