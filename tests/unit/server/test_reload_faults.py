"""A reload that cannot be done, or only in part: what is refused beforehand, and what one fault takes along."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from sockguard.errors import SockguardError
from sockguard.identity import accounts
from sockguard.privsep import memfd
from sockguard.privsep.messages import Close, Credits
from sockguard.server.privileges import OwnRights
from tests.unit.server.conftest import Control, File, Make, allow, config, proxy, reloader

WEB = """
[proxy.web]
listen = "/web"
backend = "/web-private"
protocol = "http"
allow = [{{ users = [0, 1] }}]
{}
"""


def file_of(options: str) -> File:
    file = File()
    file.text = WEB.format(options)
    return file


async def test_root_that_the_service_is_to_see_no_more(control: Make) -> None:
    """Who would not be admitted now is closed: root too, where allow_root_identity is taken away."""
    before = config(proxy("web", allow("a", 0, 1), identity="client", allow_root_identity=True))
    async with control(before) as made:
        await made.relays.told(Credits)
        root, _other = made.admit(0), made.admit(1)
        await made.relays.handed()
        await made.relays.handed()

        async def as_relay() -> None:
            assert await made.relays.told(Close) == Close(((root.number, "revoked"),))
            await made.relays.generation()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(as_relay)
            _, revoked = await reloader(made, file_of('identity = "client"')).reload(before, lambda: None)
        assert revoked == 1


async def test_an_identity_that_cannot_be_shown() -> None:
    """Without a monitor nobody can be shown as the client: a reload refuses that as the start does."""
    before = config(proxy("web", allow("a", 1)))
    made, file = Control(before), file_of('identity = "client"')
    file.refuses = OwnRights("unused").refuses  # type: ignore[method-assign]
    for attempt in (
        lambda: reloader(made, file).reload(before, lambda: None),
        lambda: OwnRights("unused").bind(proxy("web", identity="client")),
    ):
        with pytest.raises(SockguardError, match=r"^proxy\.web\.identity: .* start sockguard as root$"):
            await attempt()
    assert made.admissions["web"].proxy.identity == "proxy"


async def test_a_relay_that_cannot_be_told_the_rules(control: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Want of a file in the midst of a reload costs that relay; the new rules are in force, and in all the others."""
    before = config(proxy("web", allow("a", 1)))
    failures = [OSError(errno.ENFILE, os.strerror(errno.ENFILE))]
    write = memfd.write

    def write_or_fail(name: str, data: bytes) -> int:
        if failures:
            raise failures.pop()
        return write(name, data)

    async with control(before, 2) as made:
        for relay in (0, 1):
            await made.relays.told(Credits, relay)
        monkeypatch.setattr(memfd, "write", write_or_fail)

        async def as_relays() -> None:
            await made.relays.told_to_go(0)
            for relay in (1, 2):
                await made.until(lambda relay=relay: len(made.relays.ends) > relay)  # type: ignore[misc]
                number, _ = await made.relays.generation(relay)
                assert number == 2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(as_relays)
            await reloader(made, file_of("max_connections = 7")).reload(before, lambda: None)
        assert made.relays.killed == [1]
        assert made.admissions["web"].limits.total_limit == 7


async def test_sub_uids_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The reload is refused, and says which file: nobody would know whom sub-uids count for."""
    before = config(proxy("web", allow("a", 1)))
    made = Control(before)
    monkeypatch.setattr(accounts, "SUBUID_FILE", str(folder))
    with pytest.raises(SockguardError, match=f"^{folder}: cannot be read: Is a directory$"):
        await reloader(made, file_of("")).reload(before, lambda: None)
