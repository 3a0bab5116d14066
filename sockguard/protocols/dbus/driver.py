"""Calls to the bus itself: which are always let through, and which ask about a name. A table, no state.

The bus finds a member among its interfaces when a call names none, and takes any path (facts of dbus-daemon): so a
call is known by its member, and by its interface where it has one.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sockguard.protocols.dbus.names import BUS

PEER: Final = "org.freedesktop.DBus.Peer"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"


class Service(Enum):
    """What a call asks of the bus."""

    HELLO = "hello"
    PLAIN = "plain"  # let through: says nothing about others, changes nothing for them
    ADD_MATCH = "add_match"
    REMOVE_MATCH = "remove_match"
    REQUEST_NAME = "request_name"
    RELEASE_NAME = "release_name"
    LIST = "list"  # its answer is an array of names
    ASK = "ask"  # its first argument is a name
    START = "start"


_MEMBERS: Final[dict[str, tuple[str, Service]]] = {
    "Hello": (BUS, Service.HELLO),
    "GetId": (BUS, Service.PLAIN),
    "Ping": (PEER, Service.PLAIN),
    "GetMachineId": (PEER, Service.PLAIN),
    "Introspect": (INTROSPECTABLE, Service.PLAIN),
    "Get": (PROPERTIES, Service.PLAIN),
    "GetAll": (PROPERTIES, Service.PLAIN),
    "AddMatch": (BUS, Service.ADD_MATCH),
    "RemoveMatch": (BUS, Service.REMOVE_MATCH),
    "RequestName": (BUS, Service.REQUEST_NAME),
    "ReleaseName": (BUS, Service.RELEASE_NAME),
    "ListNames": (BUS, Service.LIST),
    "ListActivatableNames": (BUS, Service.LIST),
    "NameHasOwner": (BUS, Service.ASK),
    "GetNameOwner": (BUS, Service.ASK),
    "ListQueuedOwners": (BUS, Service.ASK),
    "GetConnectionUnixUser": (BUS, Service.ASK),
    "GetConnectionUnixProcessID": (BUS, Service.ASK),
    "GetConnectionCredentials": (BUS, Service.ASK),
    "GetAdtAuditSessionData": (BUS, Service.ASK),
    "GetConnectionSELinuxSecurityContext": (BUS, Service.ASK),
    "StartServiceByName": (BUS, Service.START),
}
"""Dbus specification, Message Bus Messages and Standard Interfaces. The rest needs a rule that names the bus."""

SIGNATURES: Final = {
    Service.ADD_MATCH: "s",
    Service.REMOVE_MATCH: "s",
    Service.REQUEST_NAME: "su",
    Service.RELEASE_NAME: "s",
    Service.ASK: "s",
    Service.START: "su",
}
"""Arguments that are looked at. A call with others cannot be what it says; the bus would refuse it as well."""


def service(interface: str | None, member: str | None) -> Service | None:
    """What a call to the bus asks for; None for what only a rule can let through."""
    found = _MEMBERS.get(member or "")
    if found is None or interface not in (None, found[0]):
        return None
    return found[1]
