"""Which protocols are inspected, and where their parts are: names, so that each process loads only what it serves.

Adding a protocol is a folder beside this file and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

if TYPE_CHECKING:
    from sockguard.protocols.base import InspectorClass, ProtocolRules


@dataclass(frozen=True, slots=True)
class Entry:
    """One inspected protocol.

    folder    below sockguard.protocols: its rules.py and inspector.py
    what      the keys of a rule that say *what* for it
    options   the name of its table [proxy.NAME.<options>]
    fds       what becomes of passed descriptors unless the file says it; "refuse" alone where it carries none
    carries_fds whether the file may say "forward"
    """

    folder: str
    what: tuple[str, ...]
    options: str
    fds: Literal["forward", "refuse"]
    carries_fds: bool


PROTOCOLS: Final[Mapping[str, Entry]] = {
    "dbus": Entry("dbus", ("dbus",), "dbus", "forward", True),
    "http": Entry("http", ("http", "presets"), "http", "refuse", False),
}
"""By the name that the file has for it."""


def default_fds(protocol: str) -> Literal["forward", "refuse"]:
    """What becomes of passed descriptors on a proxy of that protocol, inspected or not, unless the file says it."""
    entry = PROTOCOLS.get(protocol)
    return "forward" if entry is None else entry.fds


def rules_of(protocol: str) -> ProtocolRules:
    """The protocol's rules.py. Raises KeyError for one that is not inspected."""
    return cast("ProtocolRules", importlib.import_module(f"sockguard.protocols.{PROTOCOLS[protocol].folder}.rules"))


def inspector_of(protocol: str) -> InspectorClass:
    """The protocol's inspector. Raises KeyError for one that is not inspected."""
    module = importlib.import_module(f"sockguard.protocols.{PROTOCOLS[protocol].folder}.inspector")
    return cast("InspectorClass", module.INSPECTOR)
