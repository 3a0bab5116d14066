"""What this version lacks, in one table, and the pass over the file that refuses it by name.

The model (model.py) knows what is available and nothing else; this pass runs before it and takes out what it refuses,
so that nothing is said twice. A version that brings something moves its entry from the tables to the types above them,
or, for a protocol, to protocols/registry.py. It also refuses what belongs to another protocol than the proxy's, and
puts aside what belongs to that one: the protocol's own module reads it (requests.py).
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

from sockguard.config.document import Document, Faults
from sockguard.config.locate import Path
from sockguard.protocols.registry import PROTOCOLS
from sockguard.words import listed, quoted

Protocol: TypeAlias = Literal["stream", "seqpacket", "dbus", "http"]
Identity: TypeAlias = Literal["proxy", "client"]
Sender: TypeAlias = Literal["any", "same-user"]
Delivery: TypeAlias = Literal["relay"]

LATER: Final[dict[str, tuple[str, ...]]] = {
    "protocol": ("thrift", "someip", "vsomeip"),
    "delivery": ("in-place",),
}
"""Values of a proxy's keys that come later."""
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    **{entry.options: (name,) for name, entry in PROTOCOLS.items()},
    "thrift": ("thrift",),
    "someip": ("someip", "vsomeip"),
    "vsomeip": ("vsomeip",),
}
"""Option tables ``[proxy.NAME.http]``: the protocols that each is for."""
WHAT: Final[dict[str, tuple[str, ...]]] = {
    **{key: (name,) for name, entry in PROTOCOLS.items() for key in entry.what},
    "thrift": ("thrift",),
    "someip": ("someip", "vsomeip"),
}
"""Keys of a rule that say *what*: the protocols that each is for."""


def refuse_unavailable(document: Document, faults: Faults) -> None:
    """Take what is not available, or of another protocol, out of the document's data, with a mistake for each.

    What is of the proxy's own protocol goes from there to ``document.parts``.
    """
    proxies = document.data.get("proxy")
    for name, proxy in proxies.items() if isinstance(proxies, dict) else ():
        if isinstance(proxy, dict):
            _proxy(document, faults, ("proxy", name), proxy)


def _proxy(document: Document, faults: Faults, path: Path, proxy: dict[str, Any]) -> None:
    protocol = proxy.get("protocol", "stream")
    for key in [key for key in OPTIONS if key in proxy]:
        _part(document, faults, (*path, key), proxy, OPTIONS[key], protocol, "holds options")
    for kind in ("allow", "deny"):
        rules = proxy.get(kind)
        for index, rule in enumerate(rules if isinstance(rules, list) else ()):
            for key in [key for key in WHAT if key in rule] if isinstance(rule, dict) else ():
                _part(document, faults, (*path, kind, index, key), rule, WHAT[key], protocol, "is a rule")
    for key, values in LATER.items():
        given = proxy.get(key)
        if isinstance(given, str) and given in values:
            said = f"protocol {quoted(given)}" if key == "protocol" else f"{key} = {quoted(given)}"
            faults.add(document, (*path, key), f"{said} is not available in this version")
            del proxy[key]


def _part(
    document: Document,
    faults: Faults,
    path: Path,
    table: dict[str, Any],
    owners: tuple[str, ...],
    protocol: object,
    what: str,
) -> None:
    """Put aside a key of the proxy's own protocol; say of any other whose it is, unless the protocol is a mistake."""
    value = table.pop(str(path[-1]))
    if protocol in owners and protocol in get_args(Protocol):
        document.parts[path] = value
    elif protocol in get_args(Protocol) or (protocol in LATER["protocol"] and protocol not in owners):
        faults.add(document, path, f"{what} of protocol {listed(owners)}; proxy.{path[1]} has protocol '{protocol}'")
    else:
        faults.mute(document, path)
