"""Turns and credits: however much one user asks for, control is heard between, and other users have their share."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from sockguard.privsep.messages import Credits, Ping, Pong
from sockguard.protocols.base import CLIENT
from sockguard.relay import loop, turns
from sockguard.relay.debts import Debts
from sockguard.relay.inspected_side import MAX_SHOWN
from sockguard.relay.turns import RETRY, Turns
from tests.unit.relay.lines import SECONDS, Control, LineInspector, read, running

ONE, OTHER = 1001, 1002


class Held:
    """What the loop does, in its order: the client's line that an inspector was shown, or "control" for a message.

    A fake in that the loop stands still amid "pass hold" until ``go``: what is sent meanwhile has come all at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, control: Control) -> None:
        self.order: list[str] = []
        self.control = control
        self._stands, self._go = threading.Event(), threading.Event()
        received, on_channel = LineInspector.received, loop.Loop._on_channel

        def recording(inspector: LineInspector, source: int, data: memoryview, fds: int) -> int:
            if source == CLIENT:
                line = bytes(data).partition(b"\n")[0].decode()
                self.order.append(line)
                if line == "pass hold":
                    self._stands.set()
                    assert self._go.wait(SECONDS)
            return received(inspector, source, data, fds)

        def heard(made: loop.Loop) -> bool:
            self.order.append("control")
            return on_channel(made)

        monkeypatch.setattr(LineInspector, "received", recording)
        monkeypatch.setattr(loop.Loop, "_on_channel", heard)

    def stand(self) -> None:
        client, _ = self.control.link()
        client.sendall(b"pass hold\n")
        assert self._stands.wait(SECONDS)
        self.order.clear()

    def go(self, *awaited: str) -> list[str]:
        """What was done until all of these had been, and control had its answer."""
        self.control.send(Ping(0))
        self._go.set()
        self.control.hear(lambda message: message == Pong(0))
        while not set(awaited) <= set(self.order):
            self.control.go_on()
        return list(self.order)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A loop for which every turn takes too long, with ample credit."""
    monkeypatch.setattr(turns, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "SECONDS", 0.0, raising=False)
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        control.send(Credits(100))
        yield control


def test_no_turn_is_lost_where_a_round_takes_too_long(control: Control) -> None:
    """Each round has time for one side alone, and many have more than a chunk to pass."""
    data = bytes(3_000_000)
    control.configure(2, proxy={"protocol": "stream"})
    ends = [control.link(number=2, lines=False) for _ in range(8)]
    senders = [threading.Thread(target=client.sendall, args=(data,)) for client, _ in ends]
    for sender in senders:
        sender.start()
    for _, backend in reversed(ends):
        assert read(backend, len(data)) == data
    for sender in senders:
        sender.join()
    control.go_on()


def test_control_is_heard_amid_the_events_of_one_wake(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come 64 at a time, and each may take a while; a relay that does not answer control is killed."""
    held = Held(monkeypatch, control)
    clients = [control.link()[0] for _ in range(30)]
    held.stand()
    for index, client in enumerate(clients):
        client.sendall(f"pass {index}\n".encode())
    lines = [f"pass {index}" for index in range(30)]
    order = held.go(*lines)
    assert order.index("control") <= 5
    assert sorted(line for line in order if line != "control") == sorted(lines), "each is shown once"


def test_events_of_one_wake_go_round_by_user(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has many connections does not keep another user waiting, whose event is the last."""
    held = Held(monkeypatch, control)
    clients = [control.link(user=ONE)[0] for _ in range(30)]
    other, _ = control.link(user=OTHER)
    held.stand()
    for index, client in enumerate(clients):
        client.sendall(f"pass {index}\n".encode())
    other.sendall(b"pass other\n")
    order = [line for line in held.go("pass other") if line != "control"]
    assert order.index("pass other") <= 6


def test_one_turn_is_of_few_requests(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk has room for thousands; those of others come between, and none of them is lost."""
    held = Held(monkeypatch, control)
    client, backend = control.link(user=ONE)
    other, _ = control.link(user=OTHER)
    held.stand()
    many = b"".join(b"pass %d\n" % index for index in range(1000))
    client.sendall(many)
    other.sendall(b"pass other\n")
    assert held.go("pass other").index("pass other") <= MAX_SHOWN + 1
    assert read(backend, len(many)) == many
    client.close()
    assert control.outcome() == ("closed", "")


def test_credits_go_round_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second credit is another user's, however many connections of the first user wait before."""
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        for _ in range(12):
            client, _ = control.link(user=ONE)
            client.sendall(b"deny 1\ndeny 2\n")
            control.go_on()
        other, _ = control.link(user=OTHER)
        other.sendall(b"deny 1\n")
        control.go_on()
        control.send(Credits(1))
        control.send(Credits(1))
        control.go_on()
        assert [row[0] for row in control.requests] == [1, 13]


def test_who_owes_nothing_does_not_wait_for_the_debts_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 credits that another has used up a user still has an eighth, and then waits as well."""
    with running(monkeypatch) as control:
        control.configure(1, sets=[[0, []]])
        control.send(Credits(80))
        client, _ = control.link(user=ONE)
        client.sendall(b"deny 1\n" * 200)
        control.hear(lambda _: len(control.requests) >= 80)
        other, backend = control.link(user=OTHER)
        other.sendall(b"pass 1\n")
        assert read(backend, 7) == b"pass 1\n"
        other.sendall(b"deny 2\n" * 50)
        control.hear(lambda _: len(control.requests) >= 90)
        control.go_on()
        assert [row[0] for row in control.requests] == [1] * 80 + [2] * 10
        control.send(Credits(90))
        control.hear(lambda _: len(control.requests) >= 90 + 80)
        assert [row[0] for row in control.requests].count(2) == 50, "by turns: that user has all by now"
        assert not select.select([backend], [], [], 0)[0]


class Side:
    """A fake of a side that notes what it is asked for; turns know nothing else of one."""

    def __init__(self, user: int, name: str, done: list[tuple[str, object]]) -> None:
        self.link = SimpleNamespace(user=user, fail=lambda error: done.append((name, error)))
        self.name, self.done = name, done

    def pump(self) -> None:
        self.done.append((self.name, "pump"))

    def retry(self) -> None:
        self.done.append((self.name, "retry"))

    def on_events(self, events: int) -> None:
        self.done.append((self.name, events))


def test_turns_go_round_by_user_and_then_by_side() -> None:
    done: list[tuple[str, object]] = []
    waiting = Turns()
    for user, name in [(ONE, "a"), (ONE, "b"), (ONE, "c"), (OTHER, "x"), (3, "y")]:
        waiting.add(Side(user, name, done))  # type: ignore[arg-type]
    assert len(waiting) == 5
    assert waiting.give()
    assert [name for name, _ in done] == ["a", "x", "y", "b", "c"]
    assert not waiting
    assert not waiting._users, "who has no side any more is in no table"


def test_what_is_asked_of_one_turn_is_all_done() -> None:
    done: list[tuple[str, object]] = []
    waiting, one = Turns(), Side(ONE, "a", done)
    waiting.add(one, select.EPOLLIN)  # type: ignore[arg-type]
    waiting.add(one, RETRY)  # type: ignore[arg-type]
    waiting.add(one, select.EPOLLHUP)  # type: ignore[arg-type]
    while waiting:
        assert waiting.give()
    assert done == [("a", "retry"), ("a", select.EPOLLIN | select.EPOLLHUP)]
    done.clear()
    waiting.add(one)  # type: ignore[arg-type]
    waiting.add(one, select.EPOLLOUT)  # type: ignore[arg-type]
    assert waiting.give()
    assert done == [("a", select.EPOLLIN | select.EPOLLOUT)], "an event that comes beside must not take its reading"


def test_who_is_taken_out_has_no_turn() -> None:
    done: list[tuple[str, object]] = []
    waiting, one = Turns(), Side(ONE, "a", done)
    waiting.discard(one)  # type: ignore[arg-type]
    waiting.add(one)  # type: ignore[arg-type]
    waiting.discard(one)  # type: ignore[arg-type]
    assert waiting.give()
    assert not done
    assert not waiting._users


def test_debts_are_paid_in_their_order_and_nothing_is_kept_of_who_has_none() -> None:
    debts = Debts()
    for user in [ONE] * 30 + [OTHER] * 2 + [ONE]:
        debts.add(user)
    assert not debts.has_share(ONE, 80 - 33)
    assert debts.has_share(OTHER, 80 - 33)
    debts.pay(30)
    assert debts._owed == {OTHER: 2, ONE: 1}
    debts.pay(1)
    assert debts._owed == {OTHER: 1, ONE: 1}
    debts.pay(100)
    assert not debts._owed
    assert not debts._told
    assert not debts.has_share(ONE, 0), "without any credit there are no shares"
