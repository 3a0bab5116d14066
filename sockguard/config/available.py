"""What this version lacks, in one table, and the pass over the file that refuses it by name.

The model (model.py) knows what is available and nothing else; this pass runs before it and takes out what it refuses,
so that nothing is said twice. A version that brings something moves its entry from the tables to the types above them.
It also refuses what belongs to another protocol than the proxy's.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from sockguard.config.document import Document, Faults
from sockguard.config.locate import Path
from sockguard.config.words import listed, quoted

Protocol: TypeAlias = Literal["stream"]
Identity: TypeAlias = Literal["proxy"]
Sender: TypeAlias = Literal["any"]
Delivery: TypeAlias = Literal["relay"]

LATER: Final[dict[str, tuple[str | bool, ...]]] = {
    "protocol": ("seqpacket", "http", "dbus", "thrift", "someip", "vsomeip"),
    "identity": ("client",),
    "sender": ("same-user",),
    "delivery": ("in-place",),
    "allow_root_identity": (True,),
}
"""Values of a proxy's keys that come later."""
LATER_DAEMON: Final = {"control": "the control socket", "metrics": "the metrics endpoint"}
"""Keys of [daemon] that may only be "" so far."""

OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "http": ("http",),
    "dbus": ("dbus",),
    "thrift": ("thrift",),
    "someip": ("someip", "vsomeip"),
    "vsomeip": ("vsomeip",),
}
"""Option tables ``[proxy.NAME.http]``: the protocols that each is for."""
WHAT: Final[dict[str, tuple[str, ...]]] = {
    "http": ("http",),
    "presets": ("http",),
    "dbus": ("dbus",),
    "thrift": ("thrift",),
    "someip": ("someip", "vsomeip"),
}
"""Keys of a rule that say *what*: the protocols that each is for."""


def refuse_unavailable(document: Document, faults: Faults) -> None:
    """Take what is not available, or of another protocol, out of the document's data, with a mistake for each."""
    daemon = document.data.get("daemon")
    if isinstance(daemon, dict):
        for key, name in LATER_DAEMON.items():
            if isinstance(daemon.get(key), str) and daemon[key]:
                faults.add(document, ("daemon", key), f'{name} is not available in this version; write ""')
                del daemon[key]
    proxies = document.data.get("proxy")
    for name, proxy in proxies.items() if isinstance(proxies, dict) else ():
        if isinstance(proxy, dict):
            _proxy(document, faults, ("proxy", name), proxy)


def _proxy(document: Document, faults: Faults, path: Path, proxy: dict[str, Any]) -> None:
    protocol = proxy.get("protocol", "stream")
    for key in [key for key in OPTIONS if key in proxy]:
        _foreign(document, faults, (*path, key), OPTIONS[key], protocol, "holds options")
        del proxy[key]
    for kind in ("allow", "deny"):
        rules = proxy.get(kind)
        for index, rule in enumerate(rules if isinstance(rules, list) else ()):
            for key in [key for key in WHAT if key in rule] if isinstance(rule, dict) else ():
                _foreign(document, faults, (*path, kind, index, key), WHAT[key], protocol, "is a rule")
                del rule[key]
    for key, values in LATER.items():
        given = proxy.get(key)
        if isinstance(given, str | bool) and given in values:
            said = f"protocol {quoted(str(given))}" if key == "protocol" else f"{key} = {_toml(given)}"
            faults.add(document, (*path, key), f"{said} is not available in this version")
            del proxy[key]


def _foreign(
    document: Document, faults: Faults, path: Path, owners: tuple[str, ...], protocol: object, what: str
) -> None:
    """Say that a key is of another protocol, unless the proxy's own protocol is a mistake that is said anyway."""
    if protocol == "stream":
        faults.add(document, path, f"{what} of protocol {listed(owners)}; proxy.{path[1]} has protocol 'stream'")
    elif protocol in LATER["protocol"] and protocol not in owners:
        faults.add(document, path, f"{what} of protocol {listed(owners)}; proxy.{path[1]} has protocol '{protocol}'")
    else:
        faults.mute(document, path)


def _toml(value: str | bool) -> str:
    return quoted(value) if isinstance(value, str) else str(value).lower()
