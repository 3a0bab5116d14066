"""The contract between a protocol and whatever moves its bytes. Sans-I/O: nothing here or below knows a socket.

An inspector stands between the two sides of one connection. It is shown what arrives and says what becomes of it;
relay/inspected.py does the reading, writing, holding back and waiting. What an inspector must hold to:

- Nothing reaches the other side but by ``send`` or ``passthrough``. Bytes that a verdict rests on are sent from the
  very buffer that was judged (it may be changed in place before), never read a second time.
- It is bounded: it leaves no more than ``max_buffer`` bytes unused on a side while it waits for more of them, and
  every table of its own has a bound with a name.
- It fails closed: what it cannot read ends the connection, under a permissive proxy too.
- The order of replies is its own, by order.ReplyOrder; the loop keeps nothing but the order of ``send``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias

CLIENT: Final = 0
BACKEND: Final = 1
Source: TypeAlias = int
"""One of the two sides: CLIENT or BACKEND."""

FOREVER: Final = -1
"""As the count of a passthrough: this direction is a tunnel from now on, to its end."""

Kind: TypeAlias = Literal["denied", "would_deny", "allowed"]
"""What is told of a request: would_deny is a denial that a permissive proxy let through."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_REQUEST_TEXT: Final = 400
"""Characters of a request, and of a reason, that an audit event shows; longer ones are cut by the loop."""


class RequestVerdict(NamedTuple):
    """What the rules say of one request. ``rule``: the name of the one that decided; None when none did.

    uncertain: denied by a rule of which it cannot be known whether it is about this peer: no permissive proxy lets
    that through.
    """

    allowed: bool
    rule: str | None
    reason: str
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class RequestRule:
    """One of a peer's reduced rules: those whose *who* matches it (or, for a deny, may match it).

    what: None for everything, else what the protocol's ``read_what`` made of the file, plain JSON.
    uncertain: a deny whose *who* may match or not.
    """

    name: str
    deny: bool
    what: Json
    uncertain: bool = False

    def verdict(self) -> RequestVerdict:
        """What is said of a request that it decides on."""
        reason = f"{'denied' if self.deny else 'allowed'} by {self.name}"
        if self.uncertain:
            reason += ": whether it is about this peer cannot be known"
        return RequestVerdict(not self.deny, self.name, reason, self.uncertain)


class RequestRules(Protocol):
    """A peer's reduced rules, compiled by the protocol for judging. Shared by all peers that have the same; frozen."""

    def judge(self, request: object, /) -> RequestVerdict:
        """Judge one request in the protocol's own form. Pure."""


class Effects(Protocol):
    """What an inspector can do. Nothing here fails or blocks; after ``end`` nothing has an effect any more."""

    def send(self, to: Source, data: bytes | bytearray | memoryview, fds: int = 0) -> None:
        """Send to that side, after all that was sent before, with the first ``fds`` of the waiting fds that came
        from the other side. A view into what was shown stays valid only until ``received`` returns: the loop copies
        what it cannot send at once. While a passthrough to that side has bytes to come, this waits for its end.
        """

    def passthrough(self, source: Source, count: int) -> None:
        """The next ``count`` bytes that come from that side, beyond those that ``received`` reports as used, go to
        the other side unseen; fds among them end the connection. FOREVER: all, with fds and the half-close at its end.
        """

    def half_close(self, to: Source) -> None:
        """Send no more to that side: shut it down for writing once all is sent."""

    def drop_fds(self, source: Source, count: int) -> None:
        """Close the first ``count`` of the waiting fds that came from that side."""

    def pause(self, source: Source) -> None:
        """Leave that side unread, its end included, until ``resume``; but for what passes."""

    def resume(self, source: Source) -> None:
        """Show again what is left unused on that side, soon, though nothing has come to it."""

    def audit(self, kind: Kind, request: str, verdict: RequestVerdict) -> None:
        """Tell of a judged request. ``request`` is for people and may hold a peer's own text."""

    def timer(self, seconds: float, of: Source | None = None) -> None:
        """Call ``timed_out`` after so long, once; instead of any earlier timer. 0: no more.

        of: the side that has so long to answer what was sent to it; while all of that has gone there, and that side is
        left unread because the other one takes nothing, no time passes.
        """

    def ask(self, question: Sequence[int | str]) -> None:
        """Ask control; nothing more is shown of either side until ``answered``."""

    def end(self, outcome: str, why: str = "") -> None:
        """End the connection once all that was sent has gone; unless the outcome is "closed", within a few seconds.

        ``why`` goes into the event.
        """


@dataclass(frozen=True, slots=True)
class Start:
    """What an inspector is made from.

    uid          of the client, by the kernel (SO_PEERCRED)
    backend_uid  that the service sees
    enforce      False: permissive; told as would_deny and let through
    tell_allowed whether allowed requests are told too ([log] requests = "all")
    options      the protocol's own, as its ``read_options`` made them
    shared       of all connections of this proxy in this relay, for the inspector class to keep things in
    """

    uid: int
    backend_uid: int
    rules: RequestRules
    enforce: bool
    tell_allowed: bool
    forward_fds: bool
    options: Mapping[str, Json]
    shared: dict[str, object]
    effects: Effects


class Inspector(Protocol):
    """One connection. Made by calling the class with its Start."""

    max_buffer: int

    @property
    def busy(self) -> bool:
        """Something is under way that may take its time: the proxy's ``idle_timeout`` does not apply."""

    def start(self) -> None:
        """Both sides are connected; nothing has been shown yet."""

    def received(self, source: Source, data: memoryview, fds: int) -> int:
        """Look at everything that has come from ``source`` and is not used yet (writable, not empty).

        fds: how many that came with it, or before, wait to be sent on or dropped.
        Return how many bytes are used up. Fewer than all: the rest is shown again, with more behind it. An inspector
        that waits for something else than more bytes calls ``resume`` when it has come.
        """

    def eof(self, source: Source) -> None:
        """That side sends no more; what is left unused of it never will be whole. Called once, not for a tunnel."""

    def answered(self, answer: Sequence[int | str]) -> None:
        """Control's answer to ``ask``."""

    def timed_out(self) -> None:
        """The time of ``timer`` has passed."""

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        """From now on these hold."""


class Bad(ValueError):
    """A mistake in a protocol's part of the file. ``path``: where, below the value that was read."""

    def __init__(self, text: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(text)
        self.path = path


class ProtocolRules(Protocol):
    """What a protocol's rules.py offers as a module: pure functions, for the file, for relays and for explain."""

    def read_what(self, key: str, value: object, *, deny: bool) -> list[Json]:
        """Make plain JSON of a rule's *what* (``key`` of the file: "dbus", "http", "presets"). All mistakes at once:
        raises a ExceptionGroup of Bad.
        """

    def read_options(self, table: Mapping[str, object]) -> dict[str, Json]:
        """Make plain JSON of ``[proxy.NAME.<protocol>]``, defaults put in. Raises an ExceptionGroup of Bad."""

    def compile_rules(self, rules: Sequence[RequestRule], options: Mapping[str, Json]) -> RequestRules:
        """Make what judges from a peer's reduced rules."""

    def parse_request(self, text: str, options: Mapping[str, Json]) -> object:
        """Read a request as a person types it (``explain --request``, ``expect``). Raises Bad."""

    def suggest_what(self, requests: Sequence[str]) -> list[Json]:
        """Return the fewest entries, for the first of the protocol's *what* keys, that allow these requests, and as
        little else as entries can. Values as TOML has them: strings, lists, tables. The requests are in the form of
        ``parse_request``, as audit events show them; those that cannot be read, or that no entry can mean, are left
        out.
        """

    schema: Mapping[str, Json]
    """JSON Schema of the rule keys and of the options table: {"what": {key: schema}, "options": schema}."""


CompileRules = Callable[[Sequence[RequestRule], Mapping[str, Json]], RequestRules]


class InspectorClass(Protocol):
    """The class that an inspector.py offers, under the name ``INSPECTOR``."""

    OUTCOMES: ClassVar[frozenset[str]]

    def __call__(self, start: Start, /) -> Inspector: ...
