"""What proxies mean to each other: whose socket is whose. Looks at tables, so it runs whatever else is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sockguard.config.document import Document, Faults
from sockguard.config.model import ProxyTable
from sockguard.config.settings import Listen, ListenKind


@dataclass(frozen=True, slots=True)
class _Taken:
    """Whose a listening socket is."""

    proxy: str
    document: Document

    @property
    def place(self) -> str:
        return self.document.place(("proxy", self.proxy, "listen"))


def check_sockets(proxies: Mapping[str, tuple[Document, ProxyTable]], faults: Faults) -> None:
    """Refuse two proxies on one socket, and a backend that is some proxy's own listening socket."""
    taken: dict[tuple[ListenKind, str], _Taken] = {}
    for name, (document, table) in proxies.items():
        if table.listen is None:
            continue
        first = taken.setdefault(_key(table.listen), _Taken(name, document))
        if first.proxy != name:
            text = f"is already the listening socket of proxy.{first.proxy} ({first.place})"
            faults.add(document, ("proxy", name, "listen"), text)
    for name, (document, table) in proxies.items():
        if table.backend is None:
            continue
        # connect() follows a symlink in the last place, bind() does not: look at both readings of the backend.
        readings = [_canonical(table.backend), os.path.realpath(table.backend)]
        own = next((taken[ListenKind.PATH, path] for path in readings if (ListenKind.PATH, path) in taken), None)
        if own is not None:
            whose = "this proxy" if own.proxy == name else f"proxy.{own.proxy}"
            faults.add(document, ("proxy", name, "backend"), f"is the listening socket of {whose} ({own.place})")


def _key(listen: Listen) -> tuple[ListenKind, str]:
    return listen.kind, _canonical(listen.text) if listen.kind is ListenKind.PATH else listen.text


def _canonical(path: str) -> str:
    """One spelling for one place: links in the folders followed (as far as they exist), the last part as it is."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
