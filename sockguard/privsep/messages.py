"""Every message between sockguard's processes. What is not on this page ends the process that sent it.

A message is one packet of a SOCK_SEQPACKET pair: a JSON array, its tag first, then the fields in the order
below; passed fds travel with it. Rows are arrays of plain integers and strings, checked field by field.

    control → monitor   read_config · bind · unbind · adopt · facts · connect_as · spawn_relay · end_relay
    monitor → control   done · failed · config_text · config_refused · process_facts      one answer a question
                        not_connected
                        signal · relay_exited                                             at any time
    control → relay     generation · connections · close · ping · stop
    relay   → control   hello · generation_taken · connections_taken · closed · pong · fault
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Final

from sockguard.errors import ChannelError

MAX_PACKET: Final = 64 * 1024
"""Bytes of one message; a SOCK_SEQPACKET packet ends near 212 KB. What may be larger travels as a sealed memfd."""

MAX_FDS: Final = 253
"""SCM_MAX_FD of linux/include/net/scm.h: what one message can carry."""

MAX_BATCH: Final = 120
"""Connections in one hand-over: two fds each, and room to spare below MAX_FDS."""

Row = tuple[int | str, ...]


class Message:
    """Base of all messages. ``TAG`` names it on the wire, ``fds`` says how many descriptors must come with it."""

    TAG: ClassVar[str]
    __slots__ = ()

    def fds(self) -> int:
        return 0


# ── control → monitor ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ReadConfig(Message):
    """Read the configuration again. Answer: config_text with one memfd, or config_refused.

    What was read is in force from adopt on; until then only bind goes by it.
    """

    TAG = "read_config"


@dataclass(frozen=True, slots=True)
class Bind(Message):
    """Give the listening socket of a proxy, by its name in the file the monitor read last. Answer: done with one fd."""

    TAG = "bind"
    proxy: str


@dataclass(frozen=True, slots=True)
class Unbind(Message):
    """Remove the socket file of a proxy that is there no more, if it is the one that was bound. Answer: done."""

    TAG = "unbind"
    proxy: str


@dataclass(frozen=True, slots=True)
class Facts(Message):
    """What program is at the other end of the connection that comes along? Answer: process_facts."""

    TAG = "facts"

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class ConnectAs(Message):
    """Connect to that proxy's backend as the client whose connection comes along.

    Answer: done with the connected socket, not_connected, or failed when that client may not be shown.
    """

    TAG = "connect_as"
    proxy: str

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class SpawnRelay(Message):
    """Start a relay process. ``number`` is control's own name for it. Answer: done with its channel."""

    TAG = "spawn_relay"
    number: int


@dataclass(frozen=True, slots=True)
class EndRelay(Message):
    """Kill a relay that does not answer. Answer: done; its end is told by relay_exited."""

    TAG = "end_relay"
    number: int


@dataclass(frozen=True, slots=True)
class Adopt(Message):
    """What was read last is in force, and all of it is bound. Answer: done, or failed for want of a capability.

    The first time the monitor gives up what only the start needed.
    """

    TAG = "adopt"


# ── monitor → control ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Done(Message):
    """It was done. ``count``: how many fds come along (0 or 1)."""

    TAG = "done"
    count: int = 0

    def fds(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """It could not be done; ``text`` says why and what to do, ready to be shown."""

    TAG = "failed"
    text: str


@dataclass(frozen=True, slots=True)
class ConfigText(Message):
    """The files, one after another in the memfd: rows of (path, bytes)."""

    TAG = "config_text"
    rows: tuple[Row, ...]

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class ConfigRefused(Message):
    """The files cannot be read or must not be trusted: rows of (file, line, key, text)."""

    TAG = "config_refused"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class ProcessFacts(Message):
    """The peer's program: its path, or why it cannot be known. Exactly one of the two is not empty."""

    TAG = "process_facts"
    executable: str
    unknown: str


@dataclass(frozen=True, slots=True)
class NotConnected(Message):
    """connect(2) failed with this errno: the service is down, or has no room."""

    TAG = "not_connected"
    number: int


@dataclass(frozen=True, slots=True)
class Signal(Message):
    """The monitor was told ``name``: "terminate" or "reload". It may not signal another uid, so it says so."""

    TAG = "signal"
    name: str


@dataclass(frozen=True, slots=True)
class RelayExited(Message):
    """A relay has ended. ``status``: as os.waitstatus_to_exitcode gives it (-9: by signal 9)."""

    TAG = "relay_exited"
    number: int
    status: int


# ── control → relay ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Generation(Message):
    """The proxies' options and the interned rules from now on, as JSON in a sealed memfd. Answer: generation_taken."""

    TAG = "generation"
    number: int

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Connections(Message):
    """Rows of (connection, generation, proxy, rules, uid): proxy and rules count within that generation.

    Two fds a row, client and backend in turn. Answer: connections_taken, before the next batch is sent.
    """

    TAG = "connections"
    rows: tuple[Row, ...]

    def fds(self) -> int:
        return 2 * len(self.rows)


@dataclass(frozen=True, slots=True)
class Close(Message):
    """End these connections: rows of (connection, outcome). Unknown ones have ended already."""

    TAG = "close"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Are you alive? Answer: pong with the same number; a relay that does not answer in time is killed."""

    TAG = "ping"
    number: int


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """End: close what is still there with outcome "stopped", tell, and exit."""

    TAG = "stop"


# ── relay → control ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The relay is up. ``capacity``: connections that its open-file limit allows.

    ``cage``: the parts of its sandbox that hold, joined by commas. Said before it has read anything from outside.
    """

    TAG = "hello"
    capacity: int
    cage: str = ""


@dataclass(frozen=True, slots=True)
class GenerationTaken(Message):
    """From now on this generation is in force in the relay."""

    TAG = "generation_taken"
    number: int


@dataclass(frozen=True, slots=True)
class ConnectionsTaken(Message):
    """A batch has arrived: the next one may be sent."""

    TAG = "connections_taken"
    count: int


@dataclass(frozen=True, slots=True)
class Closed(Message):
    """Connections that have ended: rows of (connection, bytes from client, bytes from backend, outcome)."""

    TAG = "closed"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The relay is alive, and its loop goes round."""

    TAG = "pong"
    number: int


@dataclass(frozen=True, slots=True)
class Fault(Message):
    """The relay ends because of a fault of its own; ``text`` (at most MAX_FAULT characters) is for the log."""

    TAG = "fault"
    text: str


MAX_FAULT: Final = 8000
"""Characters of a fault that are passed on: a traceback's worth."""

MessageTable = dict[str, type[Message]]


def _table(*classes: type[Message]) -> MessageTable:
    return {cls.TAG: cls for cls in classes}


CONTROL_TO_MONITOR: Final = _table(ReadConfig, Bind, Facts, ConnectAs, SpawnRelay, EndRelay, Unbind, Adopt)
MONITOR_TO_CONTROL: Final = _table(
    Done, Failed, ConfigText, ConfigRefused, ProcessFacts, NotConnected, Signal, RelayExited
)
CONTROL_TO_RELAY: Final = _table(Generation, Connections, Close, Ping, Stop)
RELAY_TO_CONTROL: Final = _table(Hello, GenerationTaken, ConnectionsTaken, Closed, Pong, Fault)


def encode(message: Message) -> bytes:
    """The packet of a message. Raises ChannelError when it would be larger than MAX_PACKET."""
    values = [getattr(message, name) for name in _names(type(message))]
    data = json.dumps([message.TAG, *values], separators=(",", ":")).encode("ascii")
    if len(data) > MAX_PACKET:
        raise ChannelError(f"a {message.TAG} message of {len(data)} bytes is over {MAX_PACKET}")
    return data


def decode(data: bytes, table: MessageTable) -> Message:
    """The message in a packet. Raises ChannelError for whatever is not exactly on the table."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError("a packet that is no message") from error
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ChannelError("a packet that is no message")
    cls = table.get(value[0])
    if cls is None:
        raise ChannelError(f"a {value[0][:40]!r} message, which is not on the list")
    names, checks = _names(cls), _checks(cls)
    if len(value) - 1 != len(names):
        raise ChannelError(f"a {cls.TAG} message with {len(value) - 1} fields")
    return cls(*(check(item, cls.TAG) for check, item in zip(checks, value[1:], strict=True)))


def _an_int(item: object, tag: str) -> int:
    if type(item) is not int:
        raise ChannelError(f"a {tag} message with a mistyped field")
    return item


def _a_str(item: object, tag: str) -> str:
    if type(item) is not str:
        raise ChannelError(f"a {tag} message with a mistyped field")
    return item


def _rows(item: object, tag: str) -> tuple[Row, ...]:
    if type(item) is not list:
        raise ChannelError(f"a {tag} message with a mistyped field")
    for row in item:
        if type(row) is not list or not all(type(cell) is int or type(cell) is str for cell in row):
            raise ChannelError(f"a {tag} message with a mistyped row")
    return tuple(map(tuple, item))


_CHECKS: Final[dict[str, Callable[[object, str], object]]] = {"int": _an_int, "str": _a_str, "tuple[Row, ...]": _rows}
_SHAPES: dict[type[Message], tuple[tuple[str, ...], tuple[Callable[[object, str], object], ...]]] = {
    cls: (
        tuple(f.name for f in fields(cls)),  # type: ignore[arg-type]  # each message is a dataclass
        tuple(_CHECKS[str(f.type)] for f in fields(cls)),  # type: ignore[arg-type]
    )
    for table in (CONTROL_TO_MONITOR, MONITOR_TO_CONTROL, CONTROL_TO_RELAY, RELAY_TO_CONTROL)
    for cls in table.values()
}


def _names(cls: type[Message]) -> Sequence[str]:
    return _SHAPES[cls][0]


def _checks(cls: type[Message]) -> Sequence[Callable[[object, str], object]]:
    return _SHAPES[cls][1]


def check_row(row: Row, *types: type) -> Row:
    """``row`` itself, when it has exactly these types; else ChannelError. For rows that an untrusted relay sent."""
    if len(row) != len(types) or any(type(cell) is not kind for cell, kind in zip(row, types, strict=True)):
        raise ChannelError("a row of another shape than its message allows")
    return row
