"""A daemon whose proxies admit everybody: for tests of how bytes move, not of who may have them moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.daemon import Daemon, running
from tests.support.identities import wait_started

Proxies = Mapping[str, tuple[Path, str]]
"""By the name of a proxy: its backend, and further keys."""


@contextlib.contextmanager
def open_to_all(folder: Path, proxies: Proxies) -> Iterator[Daemon]:
    """The daemon with one relay; each proxy listens on folder/NAME."""
    text = "[daemon]\nrelays = 1\n"
    for name, (backend, keys) in proxies.items():
        text += f'[proxy.{name}]\nlisten = "{folder / name}"\nbackend = "{backend}"\n{keys}\n'
        text += f'[[proxy.{name}.allow]]\nusers = ["*"]\n'
    config = folder / "sockguard.toml"
    config.write_text(text)
    with running(config, *(folder / name for name in proxies)) as daemon:
        wait_started(daemon)
        yield daemon
