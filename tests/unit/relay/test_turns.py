"""Sides that ask for another turn: however long one takes, control is heard between, and none loses its own."""

from __future__ import annotations

import threading

import pytest

from sockguard.relay import loop
from tests.unit.relay.lines import read, running


def test_no_turn_is_lost_where_a_round_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round has time for one side alone, and many have more than a chunk to pass."""
    monkeypatch.setattr(loop, "_AGAIN_SECONDS", 0.0)
    data = bytes(3_000_000)
    with running(monkeypatch) as control:
        control.configure(1, proxy={"protocol": "stream"})
        ends = [control.link(lines=False) for _ in range(8)]
        senders = [threading.Thread(target=client.sendall, args=(data,)) for client, _ in ends]
        for sender in senders:
            sender.start()
        for _, backend in reversed(ends):
            assert read(backend, len(data)) == data
        for sender in senders:
            sender.join()
        control.go_on()
