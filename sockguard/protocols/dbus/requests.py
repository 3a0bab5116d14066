"""What a peer of a bus asks for, as rules judge it, and the text that stands for it. Pure.

    call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager.Reboot
    own org.example.App
    receive org.freedesktop.login1 org.freedesktop.login1.Manager.SessionNew

``parse_request`` reads this form (``explain --request``, ``expect``), ``describe`` writes it (audit events), and
``suggest_what`` makes rules of it. In place of a name, ":1.5" or "-" is a peer that owns no known name; "-" in place
of a path is one that is not known. Who owns a name that is given may own others, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sockguard.protocols.base import Bad, Json
from sockguard.protocols.dbus.names import (
    valid_interface,
    valid_member,
    valid_path,
    valid_unique_name,
    valid_well_known_name,
)
from sockguard.words import did_you_mean, quoted

NOT_KNOWN: Final = "-"
KINDS: Final = ("call", "own", "receive")
FORMS: Final = {
    "call": '"call DESTINATION PATH INTERFACE.MEMBER"',
    "own": '"own NAME"',
    "receive": '"receive SENDER INTERFACE.MEMBER" or "receive SENDER PATH INTERFACE.MEMBER"',
}


@dataclass(frozen=True, slots=True)
class Call:
    """A method call, or a signal to one peer.

    destinations  every well-known name that the one called owns, the name addressed among them; empty: none is known
    path          None: not known
    interface     None: left out, so the called may take it as any that has the member
    addressed     what stood in the message, for ``describe``: no part of what is judged
    whole         False: the called may own more names than these
    """

    destinations: frozenset[str]
    path: str | None
    interface: str | None
    member: str
    addressed: str = field(default="", compare=False)
    whole: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class Own:
    """A request to own a well-known name."""

    name: str


@dataclass(frozen=True, slots=True)
class Receive:
    """A signal on its way to the peer. senders: every well-known name that the sender owns; whole: as of a Call."""

    senders: frozenset[str]
    path: str | None
    interface: str | None
    member: str
    whole: bool = field(default=True, compare=False)


Request: TypeAlias = Call | Own | Receive


def parse_request(text: str) -> Request:
    """Read a request as a person types it. Raises Bad."""
    kind, *words = text.split() or [""]
    if kind not in FORMS:
        forms = ", ".join(FORMS.values())
        raise Bad(f"a request begins with call, own or receive, not {quoted(kind)}{did_you_mean(kind, KINDS)}: {forms}")
    if kind == "own" and len(words) == 1:
        if not valid_well_known_name(words[0]):
            raise Bad(f"{quoted(words[0])} is no well-known name, such as org.example.App")
        return Own(words[0])
    if kind == "call" and len(words) == 3:
        name, path, what = words
        interface, member = _interface_and_member(what)
        names = _names(name)
        return Call(names, _path(path), interface, member, addressed=name, whole=not names)
    if kind == "receive" and len(words) in (2, 3):
        interface, member = _interface_and_member(words[-1])
        if interface is None:
            raise Bad(f"{quoted(words[-1])} has no interface: a signal always has one, such as org.example.App.Changed")
        names = _names(words[0])
        path_given = _path(words[1]) if len(words) == 3 else None
        return Receive(names, path_given, interface, member, whole=not names)
    raise Bad(f"must be {FORMS[kind]}")


def describe(request: Request) -> str:
    """Write a request in the form that ``parse_request`` reads."""
    if isinstance(request, Own):
        return f"own {request.name}"
    what = request.member if request.interface is None else f"{request.interface}.{request.member}"
    if isinstance(request, Call):
        return f"call {_shown_name(request.destinations, request.addressed)} {request.path or NOT_KNOWN} {what}"
    path = "" if request.path is None else f" {request.path}"
    return f"receive {_shown_name(request.senders)}{path} {what}"


def suggest_what(requests: Sequence[str]) -> list[Json]:
    """Return the fewest entries of a rule that allow these requests, and no other but for one without an interface.

    Left out: what ``parse_request`` cannot read, and requests to or from peers without a known name, which no entry
    can mean.
    """
    owned: set[str] = set()
    members: defaultdict[tuple[str, str, str | None, str | None], set[str]] = defaultdict(set)
    for text in requests:
        try:
            request = parse_request(text)
        except Bad:
            continue
        if isinstance(request, Own):
            owned.add(request.name)
        elif isinstance(request, Call):
            for name in request.destinations:
                members["destination", name, request.interface, request.path].add(request.member)
        else:
            for name in request.senders:
                members["receive", name, request.interface, request.path].add(request.member)
    entries = _merged(members)
    if owned:
        entries.append({"own": _one_or_list(owned)})
    return entries


def _merged(members: dict[tuple[str, str, str | None, str | None], set[str]]) -> list[Json]:
    """One entry for all paths on which the same members of an interface were called: nothing more is let through."""
    paths: defaultdict[tuple[str, str, str, tuple[str, ...], bool], set[str]] = defaultdict(set)
    for (kind, name, interface, path), called in members.items():
        key = (kind, name, interface or "", tuple(sorted(called)), path is None)
        paths[key].update([] if path is None else [path])
    entries: list[Json] = []
    for kind, name, interface, called_members in sorted({key[:4] for key in paths}):
        for any_path in (True, False):
            key = (kind, name, interface, called_members, any_path)
            if key in paths:
                entry: dict[str, Json] = {kind: name}
                if paths[key]:
                    entry["path"] = _one_or_list(paths[key])
                if interface:
                    entry["interface"] = interface
                entry["member"] = _one_or_list(called_members)
                entries.append(entry)
    return entries


def _one_or_list(values: Iterable[str]) -> Json:
    found: list[Json] = [*sorted(values)]
    return found[0] if len(found) == 1 else found


def _names(text: str) -> frozenset[str]:
    if text == NOT_KNOWN or valid_unique_name(text):
        return frozenset()
    if not valid_well_known_name(text):
        raise Bad(f"{quoted(text)} is no name of a bus, such as org.example.App")
    return frozenset((text,))


def _path(text: str) -> str | None:
    if text == NOT_KNOWN:
        return None
    if not valid_path(text):
        raise Bad(f"{quoted(text)} is no object path, such as /org/example/App")
    return text


def _interface_and_member(text: str) -> tuple[str | None, str]:
    interface, dot, member = text.rpartition(".")
    if not valid_member(member):
        raise Bad(f"{quoted(member)} is no member's name (letters, digits and _)")
    if dot and not valid_interface(interface):
        raise Bad(f"{quoted(interface)} is no interface, such as org.example.App")
    return interface if dot else None, member


def _shown_name(names: frozenset[str], addressed: str = "") -> str:
    """The name addressed if it says who; else one of the names that the peer owns, always the same one."""
    if addressed and (addressed in names or not names):
        return addressed
    return min(names, default=NOT_KNOWN)
