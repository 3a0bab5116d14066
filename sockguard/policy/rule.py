"""Rules as plain data: names resolved to numbers, globs split, nothing left to look up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sockguard.protocols.base import Json


class Action(Enum):
    """What a rule does when it matches."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Users:
    """A set of uids: single ones, inclusive ranges, or anyone (``"*"``: every uid but the overflow uid)."""

    uids: frozenset[int] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    anyone: bool = False


@dataclass(frozen=True, slots=True)
class Who:
    """Conditions on a peer. None: not asked. All that are asked must hold; in each, any value will do.

    executables, units, labels hold patterns as the file gives them (see patterns.py for what they match).
    """

    users: Users | None = None
    groups: frozenset[int] | None = None
    executables: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class NamedWho:
    """A ``[who.NAME]`` table: its name for explanations, its conditions for judging."""

    name: str
    who: Who


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[proxy.NAME.allow]]`` or ``[[proxy.NAME.deny]]``.

    name   as the file gives it, else "NAME.allow[0]": index among the rules of that kind in that proxy
    own    the conditions written in the rule itself
    sets   the named sets of its ``who`` key: one of them must hold too; empty: none asked
    until  an aware datetime in UTC from which on the rule matches nobody (an allow) or nobody any more (a deny)
    what   requests it is about: entries as the protocol's ``read_what`` made them, any of which may match; None:
           everything
    """

    name: str
    action: Action
    own: Who
    sets: tuple[NamedWho, ...] = ()
    until: datetime | None = None
    what: tuple[Json, ...] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided.

    rule       the name of the rule that gave it, None when no rule did
    reason     for people
    uncertain  denied only because a condition of that deny cannot be known: no permissive proxy lets that through
    """

    allowed: bool
    rule: str | None
    reason: str
    uncertain: bool = False
