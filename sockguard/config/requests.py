"""What a protocol's own module reads of the file: the *what* of rules, option tables, requests of expectations.

That module is imported when a proxy of its protocol is in the file, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator

from sockguard.config.document import Document, Faults
from sockguard.config.locate import Path
from sockguard.protocols.base import Bad, Json
from sockguard.protocols.registry import PROTOCOLS, rules_of
from sockguard.words import kind


def read_options(document: Document, proxy: Path, protocol: str, faults: Faults) -> dict[str, Json]:
    """The table ``[proxy.NAME.<protocol>]``, defaults put in; empty where the protocol is not inspected.

    ``proxy`` is the proxy's key path. Mistakes go to ``faults``; what is returned is then of no use.
    """
    if protocol not in PROTOCOLS:
        return {}
    path: Path = (*proxy, PROTOCOLS[protocol].options)
    table = document.parts.get(path, {})
    if not isinstance(table, dict):
        faults.add(document, path, f"must be a table, not {kind(table)}")
        return {}
    try:
        return rules_of(protocol).read_options(table)
    except* Bad as group:
        _add(document, path, group, faults)
    return {}


def read_what(document: Document, rule: Path, protocol: str, faults: Faults, *, deny: bool) -> tuple[Json, ...] | None:
    """Which requests the rule at this key path is about, its keys added up; None: everything.

    Mistakes go to ``faults``; what is returned is then of no use.
    """
    given = [key for key in PROTOCOLS[protocol].what if (*rule, key) in document.parts] if protocol in PROTOCOLS else []
    found: list[Json] = []
    for key in given:
        path: Path = (*rule, key)
        value = document.parts[path]
        if value == []:
            faults.add(document, path, "an empty list matches no request; leave the key out for all of them")
            continue
        try:
            found += rules_of(protocol).read_what(key, value, deny=deny)
        except* Bad as group:
            _add(document, path, group, faults)
    return tuple(found) if given else None


def _add(document: Document, path: Path, group: BaseExceptionGroup[Bad], faults: Faults) -> None:
    for bad in _each(group):
        faults.add(document, (*path, *bad.path), str(bad))


def _each(group: BaseExceptionGroup[Bad]) -> Iterator[Bad]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _each(one)
        else:
            yield one
