"""A real relay, as the tests of relays have it: in its cage."""

from __future__ import annotations

from tests.unit.relay.conftest import relay

__all__ = ["relay"]
