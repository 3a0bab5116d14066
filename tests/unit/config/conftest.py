"""What tests of the configuration share: a small account database, and a loader of texts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sockguard.config.load import load
from sockguard.config.read import Source
from sockguard.config.settings import Config
from sockguard.errors import ConfigError
from sockguard.identity.accounts import Accounts

Load = Callable[..., Config]
Mistakes = Callable[..., list[str]]

HEAD = '[proxy.p]\nlisten = "/run/p.sock"\nbackend = "/run/private/p.sock"\n'
"""Three lines; what a test adds starts on line 4."""


@pytest.fixture(scope="session")
def accounts() -> Accounts:
    """root, ci, nobody and their groups, given by hand: the system's would differ from machine to machine."""
    return Accounts(
        users=[("root", 0, 0), ("ci", 1000, 100), ("7up-1", 1001, 100), ("nobody", 65534, 65534)],
        groups=[("root", 0), ("users", 100), ("docker", 999), ("nogroup", 65534)],
    )


@pytest.fixture(scope="session")
def load_texts(accounts: Accounts) -> Load:
    """Load one text, or several: the first is FILE ("f"), the others are of sockguard.d ("d1", …)."""

    def run(*texts: str | bytes) -> Config:
        names = ["f", *(f"d{number}" for number in range(1, len(texts)))]
        raw = [text.encode() if isinstance(text, str) else text for text in texts]
        return load([Source(name, text) for name, text in zip(names, raw, strict=True)], accounts)

    return run


@pytest.fixture(scope="session")
def mistakes_of(load_texts: Load) -> Mistakes:
    """Every mistake in the texts, as they are printed."""

    def run(*texts: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_texts(*texts)
        return [str(mistake) for mistake in caught.value.mistakes]

    return run


@pytest.fixture(scope="session")
def in_proxy(mistakes_of: Mistakes) -> Callable[[str], list[str]]:
    """Every mistake of a proxy that is good but for these lines, which start on line 4."""
    return lambda text: mistakes_of(HEAD + text)


@pytest.fixture(scope="session")
def in_rule(mistakes_of: Mistakes) -> Callable[[str], list[str]]:
    """Every mistake of an allow that has these lines, which start on line 5."""
    return lambda text: mistakes_of(f"{HEAD}[[proxy.p.allow]]\n{text}")
