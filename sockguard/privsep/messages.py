"""Every message between sockguard's processes. What is not on this page ends the process that sent it.

A message is one packet of a SOCK_SEQPACKET pair: a JSON array, its tag first, then the fields in the order
below; passed fds travel with it. Rows are arrays of plain integers and strings, checked field by field.

    control → monitor   read_config · bind · unbind · adopt · facts · accept · connect_as · spawn_relay · end_relay
                        tell
                        alive                                                             in answer to heartbeat
    monitor → control   done · failed · config_text · config_refused · process_facts      one answer a question
                        accepted · not_connected
                        signal · relay_exited · heartbeat · looked                        at any time
    monitor → looker    look
    looker  → monitor   seen                                                              one answer a question
    control → relay     generation · rule_sets · connections · assign · credits · close · ping · stop
    relay   → control   hello · generation_taken · connections_taken · requests · closed · pong · fault
                        these over a pipe (pipe.py), so none can bring a descriptor
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sockguard.privsep.packets import MAX_PACKET as MAX_PACKET
from sockguard.privsep.packets import Message as Message
from sockguard.privsep.packets import MessageTable as MessageTable
from sockguard.privsep.packets import Row as Row
from sockguard.privsep.packets import check_row as check_row
from sockguard.privsep.packets import decode as decode
from sockguard.privsep.packets import encode as encode
from sockguard.privsep.packets import in_packets as in_packets
from sockguard.privsep.packets import table_of

MAX_FDS: Final = 253
"""SCM_MAX_FD of linux/include/net/scm.h: what one message can carry."""

MAX_BATCH: Final = 120
"""Connections in one hand-over: two fds each, and room to spare below MAX_FDS."""

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
    """What program is at the other end of the connection that comes along, for the rules of that proxy?

    Answer: process_facts; or done, and looked with the same number later.
    """

    TAG = "facts"
    number: int
    proxy: str

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Accept(Message):
    """Accept up to ``most`` connections of a proxy with ``identity = "client"`` (up to MAX_BATCH). Answer: accepted."""

    TAG = "accept"
    proxy: str
    most: int


@dataclass(frozen=True, slots=True)
class ConnectAs(Message):
    """Connect to that proxy's backend as the client whose connection comes along.

    proof: what accepted said with it; no other socket is taken. Answer: done with the connected socket, not_connected,
    or failed when that client may not be shown.
    """

    TAG = "connect_as"
    proxy: str
    proof: str

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class SpawnRelay(Message):
    """Start a relay process. ``number`` is control's own name for it; protocols: those that it must be able to read,
    joined by commas. Answer: done with its channel and the reading end of its pipe.
    """

    TAG = "spawn_relay"
    number: int
    protocols: str


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


@dataclass(frozen=True, slots=True)
class Tell(Message):
    """Tell the service manager: ``state`` is one of notification.STATES, ``status`` a line for people, or empty.

    Nothing else of control's gets there. Answer: done.
    """

    TAG = "tell"
    state: str
    status: str


@dataclass(frozen=True, slots=True)
class Alive(Message):
    """Control's event loop goes round: the same number as in heartbeat. There is no answer."""

    TAG = "alive"
    number: int


# ── monitor → control ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Done(Message):
    """It was done. ``count``: how many fds come along (0 to 2)."""

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
    """The peer's program: why it cannot be known, or the path that it has given itself, which no rule of the proxy
    names and nobody has looked at. Exactly one of the two is not empty.
    """

    TAG = "process_facts"
    unchecked: str
    unknown: str


@dataclass(frozen=True, slots=True)
class Accepted(Message):
    """Connections that came in by the proxy's listening socket: rows of (proof,), one fd each, in their order.

    number: the errno of accept(2) that ended it; 0 when no more wait, or it was all that was asked for.
    """

    TAG = "accepted"
    number: int
    rows: tuple[Row, ...]

    def fds(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class NotConnected(Message):
    """connect(2) failed with this errno: the service is down, or has no room."""

    TAG = "not_connected"
    number: int


@dataclass(frozen=True, slots=True)
class Signal(Message):
    """The monitor was told ``name``: "terminate", "restart" or "reload". It may not signal another uid, so it says so.

    restart: end, to be started again; clients may wait in listening sockets that the service manager keeps meanwhile.
    """

    TAG = "signal"
    name: str


@dataclass(frozen=True, slots=True)
class RelayExited(Message):
    """A relay has ended. ``status``: as os.waitstatus_to_exitcode gives it (-9: by signal 9)."""

    TAG = "relay_exited"
    number: int
    status: int


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Are you alive? Answer: alive. Until it comes the service manager is not told that the service is alive."""

    TAG = "heartbeat"
    number: int


@dataclass(frozen=True, slots=True)
class Looked(Message):
    """A program's file was looked at: its path, or why it cannot be known. Exactly one of the two is not empty."""

    TAG = "looked"
    number: int
    executable: str
    unknown: str


# ── monitor ↔ looker ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Look(Message):
    """Is the program of the pinned process the file at this path? pid: by which /proc knows it. Answer: seen."""

    TAG = "look"
    pid: int
    path: str

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Seen(Message):
    """It is, if ``unknown`` is empty; else that says why not, or why that cannot be known."""

    TAG = "seen"
    unknown: str


# ── control → relay ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Generation(Message):
    """What holds from now on, for that relay's live connections too: JSON in a sealed memfd. Answer: generation_taken.

    {"log_allowed": bool, "proxies": [{"name", "protocol", "fds", "sender", "idle_timeout", "enforce", "options",
    "backend_uid", "rules": [[name, deny, what], ...]}, ...], "sets": [[proxy, [rule, ...]], ...],
    "connections": [[connection, set], ...]}, read by relay/options.py. Proxies, the rules of each and sets are known
    by their place in these lists from now on. log_allowed: requests that are allowed are told too. backend_uid: null
    for the client's own. rules, sets and connections: of inspected protocols only. A live connection on one that is
    not listed is being closed.
    """

    TAG = "generation"
    number: int

    def fds(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Connections(Message):
    """Rows of (connection, generation, proxy, set, uid, user): proxy and set of rules count within that generation.

    user: whom it counts for, the uid or the owner of a sub-uid. set: 0 and without meaning where the proxy's protocol
    is not inspected; else one that the relay has been told. Two fds a row, client and backend in turn. Answer:
    connections_taken, before the next batch is sent.
    """

    TAG = "connections"
    rows: tuple[Row, ...]

    def fds(self) -> int:
        return 2 * len(self.rows)


@dataclass(frozen=True, slots=True)
class RuleSets(Message):
    """More sets of the generation told last: rows of (set, proxy, rules), the rules' numbers joined by commas.

    Sets follow one another in number, without gaps.
    """

    TAG = "rule_sets"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Assign(Message):
    """From now on these sets of rules hold: rows of (connection, set). Unknown connections have ended already."""

    TAG = "assign"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Credits(Message):
    """So many rows of requests more may be sent. A relay begins with none."""

    TAG = "credits"
    count: int


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
class Requests(Message):
    """Requests that were judged: rows of (connection, kind, rule, reason, request), before that connection's end.

    kind: protocols.base.Kind; rule: a name of that proxy's rules, or empty; reason and request: at most
    protocols.base.MAX_REQUEST_TEXT characters. Each row takes one credit; without any left a relay shows no more
    bytes of a client to an inspector, unless its user has used up less than a share of them, and half of
    MAX_OVERDRAFT below none no more of anybody. What it showed before may take it as far as MAX_OVERDRAFT below none.
    """

    TAG = "requests"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Closed(Message):
    """Connections that have ended: rows of (connection, bytes from client, bytes from backend, outcome, reason).

    outcome: one of outcomes.OUTCOMES; reason: what the event adds to it, at most MAX_REASON characters, or empty.
    """

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

MAX_REASON: Final = 400
"""Characters of the reason in a row of closed."""

CREDITS: Final = 512
"""Rows of requests that a relay may have under way: sent, and not given back."""

MAX_OVERDRAFT: Final = 4096
"""Rows that a relay may send beyond its credits: what a read of 64 KiB holds if each request has 16 bytes."""

CONTROL_TO_MONITOR: Final = table_of(
    ReadConfig, Bind, Facts, Accept, ConnectAs, SpawnRelay, EndRelay, Unbind, Adopt, Tell, Alive
)
MONITOR_TO_CONTROL: Final = table_of(
    Done,
    Failed,
    ConfigText,
    ConfigRefused,
    ProcessFacts,
    Accepted,
    NotConnected,
    Signal,
    RelayExited,
    Heartbeat,
    Looked,
)
MONITOR_TO_LOOKER: Final = table_of(Look)
LOOKER_TO_MONITOR: Final = table_of(Seen)
CONTROL_TO_RELAY: Final = table_of(Generation, RuleSets, Connections, Assign, Credits, Close, Ping, Stop)
RELAY_TO_CONTROL: Final = table_of(Hello, GenerationTaken, ConnectionsTaken, Requests, Closed, Pong, Fault)
