"""Sources to Config, or every mistake in them at once. Reads no file itself (read.py) and binds nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from sockguard.config.available import refuse_unavailable
from sockguard.config.crosscheck import check_sockets
from sockguard.config.document import Document, Faults, parse
from sockguard.config.expectations import check_expectations
from sockguard.config.lookup import AccountsLike
from sockguard.config.model import FileTable, ProxyTable, Table, WhoTable
from sockguard.config.read import FOLDER, Source, read_sources
from sockguard.config.resolve import Resolver
from sockguard.config.settings import Config, Daemon, Log, Proxy
from sockguard.config.shape import shape
from sockguard.config.values import NAME_PATTERN
from sockguard.errors import ConfigError, Mistake

_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
TableT = TypeVar("TableT", bound=Table)
_Placed = dict[str, tuple[Document, TableT]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A good configuration, and how many expectations it met."""

    config: Config
    expectations: int


def load(sources: Sequence[Source], accounts: AccountsLike) -> Config:
    """Make the configuration of FILE (the first source) and the files of ``sockguard.d`` (the others).

    Raises ConfigError holding every mistake of all files, in their order.
    """
    return examine(sources, accounts).config


def load_file(path: str, accounts: AccountsLike | None = None) -> Config:
    """Read and load FILE and ``sockguard.d`` beside it, by default with this system's accounts. Raises ConfigError."""
    return examine(read_sources(path), _system_accounts() if accounts is None else accounts).config


def examine(sources: Sequence[Source], accounts: AccountsLike) -> Loaded:
    """What ``load`` does, and the number of expectations besides."""
    if not sources:
        raise ConfigError([Mistake("sockguard.toml", 0, "", "nothing was read")])
    faults = Faults()
    documents = [parse(index, source, faults) for index, source in enumerate(sources)]
    main = FileTable()
    sets: _Placed[WhoTable] = {}
    proxies: _Placed[ProxyTable] = {}
    for document in documents:
        if document is None:
            continue
        if document.index:
            _only_proxy_and_who(document, faults)
        refuse_unavailable(document, faults)
        table = shape(document, faults)
        if not document.index:
            main = table
        _merge(sets, document, "who", table.who, faults)
        _merge(proxies, document, "proxy", table.proxy, faults)
    check_sockets(proxies, faults)
    made = _resolve(sets, proxies, accounts, faults)
    _check_names("who", sets, faults)
    _check_names("proxy", proxies, faults)
    mistakes = faults.listed()
    if mistakes:
        raise ConfigError(mistakes)
    config = Config(
        Daemon(
            relays=main.daemon.relays,
            drain_timeout=main.daemon.drain_timeout,
            control=main.daemon.control,
            metrics=main.daemon.metrics,
        ),
        Log(level=main.log.level, format=main.log.format, requests=main.log.requests),
        {name: proxy for name, proxy in made.items() if proxy is not None},
    )
    return Loaded(config, sum(len(table.expect) for _, table in proxies.values()))


def _only_proxy_and_who(document: Document, faults: Faults) -> None:
    for key in [key for key in document.data if key not in ("proxy", "who")]:
        faults.add(document, (key,), f"a file of {FOLDER} may only have [proxy.NAME] and [who.NAME]")
        del document.data[key]


def _merge(placed: _Placed[TableT], document: Document, kind: str, tables: dict[str, TableT], faults: Faults) -> None:
    """Add one file's tables; a name that another file has given already is a mistake here."""
    for name, table in tables.items():
        path = (kind, name)
        if name in placed:
            first = placed[name][0].place(path)
            faults.add(document, path, f"is given twice; first at {first}")
        else:
            placed[name] = (document, table)


def _check_names(kind: str, placed: _Placed[TableT], faults: Faults) -> None:
    for name, (document, _) in placed.items():
        if not _NAME.fullmatch(name):
            faults.add(document, (kind, name), "a name has 1 to 64 of the characters A-Z a-z 0-9 _ -")


def _resolve(
    sets: _Placed[WhoTable], proxies: _Placed[ProxyTable], accounts: AccountsLike, faults: Faults
) -> dict[str, Proxy | None]:
    resolver = Resolver(accounts, faults)
    for name, (document, who) in sets.items():
        resolver.add_set(document, name, who)
    made = {name: resolver.proxy(document, name, table) for name, (document, table) in proxies.items()}
    now = datetime.now(UTC)
    for name, (document, table) in proxies.items():
        check_expectations(document, name, table, made[name], now, accounts=accounts, faults=faults)
    return made


def _system_accounts() -> AccountsLike:
    from sockguard.identity.accounts import Accounts

    return Accounts.from_system()
