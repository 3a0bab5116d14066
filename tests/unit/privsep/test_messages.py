"""Messages between sockguard's processes: what is on the list goes through unchanged, everything else is refused."""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.config.values import MAX_NAME
from sockguard.errors import ChannelError
from sockguard.privsep import messages
from sockguard.privsep.messages import (
    CONTROL_TO_MONITOR,
    CONTROL_TO_RELAY,
    LOOKER_TO_MONITOR,
    MAX_BATCH,
    MAX_FAULT,
    MAX_FDS,
    MAX_PACKET,
    MAX_REASON,
    MONITOR_TO_CONTROL,
    MONITOR_TO_LOOKER,
    RELAY_TO_CONTROL,
    Close,
    Connections,
    Fault,
    Hello,
    Message,
    MessageTable,
    check_row,
    decode,
    encode,
    in_packets,
)
from sockguard.privsep.outcomes import OUTCOMES
from sockguard.protocols.base import MAX_REQUEST_TEXT
from sockguard.server.rule_sets import MAX_SET_TEXT

EXAMPLES: Final[list[tuple[Message, MessageTable]]] = [
    (messages.ReadConfig(), CONTROL_TO_MONITOR),
    (messages.Bind("docker"), CONTROL_TO_MONITOR),
    (messages.Facts(3, "docker"), CONTROL_TO_MONITOR),
    (messages.Accept("docker", 64), CONTROL_TO_MONITOR),
    (messages.ConnectAs("docker", "0a1b"), CONTROL_TO_MONITOR),
    (messages.Tell("ready", "Guarding 1 sockets"), CONTROL_TO_MONITOR),
    (messages.Alive(7), CONTROL_TO_MONITOR),
    (messages.Looked(3, "/usr/bin/\udcff", ""), MONITOR_TO_CONTROL),
    (messages.Look(4711, "/usr/bin/\udcff"), MONITOR_TO_LOOKER),
    (messages.Seen("it has gone"), LOOKER_TO_MONITOR),
    (messages.Heartbeat(7), MONITOR_TO_CONTROL),
    (messages.SpawnRelay(3, "dbus,http"), CONTROL_TO_MONITOR),
    (messages.EndRelay(3), CONTROL_TO_MONITOR),
    (messages.Unbind("docker"), CONTROL_TO_MONITOR),
    (messages.Adopt(), CONTROL_TO_MONITOR),
    (messages.Done(1), MONITOR_TO_CONTROL),
    (messages.Done(2), MONITOR_TO_CONTROL),
    (messages.Failed("proxy.a.listen: /x: busy\nand another line"), MONITOR_TO_CONTROL),
    (messages.ConfigText((("/etc/a.toml", 10),)), MONITOR_TO_CONTROL),
    (messages.ConfigRefused((("/etc/a.toml", 1, "proxy", "wrong"),)), MONITOR_TO_CONTROL),
    (messages.ProcessFacts("/usr/bin/caf\udce9", ""), MONITOR_TO_CONTROL),
    (messages.Accepted(24, (("0a1b",), ("2c3d",))), MONITOR_TO_CONTROL),
    (messages.NotConnected(11), MONITOR_TO_CONTROL),
    (messages.Signal("terminate"), MONITOR_TO_CONTROL),
    (messages.RelayExited(3, -9), MONITOR_TO_CONTROL),
    (messages.Generation(2), CONTROL_TO_RELAY),
    (messages.Connections(((1, 1, 0, 0, 1007, 1007), (2, 1, 1, 7, 2**32 - 2, 1000))), CONTROL_TO_RELAY),
    (messages.RuleSets(((0, 0, "0,3,4"), (1, 0, ""))), CONTROL_TO_RELAY),
    (messages.Assign(((1, 0), (2, 1))), CONTROL_TO_RELAY),
    (messages.Credits(512), CONTROL_TO_RELAY),
    (messages.Close(((1, "revoked"),)), CONTROL_TO_RELAY),
    (messages.Ping(7), CONTROL_TO_RELAY),
    (messages.Stop(), CONTROL_TO_RELAY),
    (messages.Hello(1000, "seccomp,landlock"), RELAY_TO_CONTROL),
    (messages.GenerationTaken(2), RELAY_TO_CONTROL),
    (messages.ConnectionsTaken(2), RELAY_TO_CONTROL),
    (messages.Requests(((1, "denied", "", "no allow rule matches", "GET /\x1b\udcff"),)), RELAY_TO_CONTROL),
    (messages.Closed(((1, 2**40, 0, "closed", ""),)), RELAY_TO_CONTROL),
    (messages.Pong(7), RELAY_TO_CONTROL),
    (messages.Fault("Traceback …\n"), RELAY_TO_CONTROL),
]
TABLES: Final = {
    "control to monitor": CONTROL_TO_MONITOR,
    "monitor to control": MONITOR_TO_CONTROL,
    "monitor to looker": MONITOR_TO_LOOKER,
    "looker to monitor": LOOKER_TO_MONITOR,
    "control to relay": CONTROL_TO_RELAY,
    "relay to control": RELAY_TO_CONTROL,
}


def packet(*fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(("message", "table"), EXAMPLES, ids=lambda value: getattr(value, "TAG", ""))
def test_round_trip(message: Message, table: MessageTable) -> None:
    """What is encoded is decoded as an equal message, whatever text it holds."""
    assert decode(encode(message), table) == message


def test_every_message_has_an_example() -> None:
    """The list above is complete."""
    assert {type(message) for message, _ in EXAMPLES} == {cls for table in TABLES.values() for cls in table.values()}


@pytest.mark.parametrize("direction", TABLES)
def test_a_message_of_another_direction_is_refused(direction: str) -> None:
    """A process cannot say what only another may say: each direction has a table of its own."""
    table = TABLES[direction]
    for message, own in EXAMPLES:
        if own is not table:
            with pytest.raises(ChannelError, match="not on the list"):
                decode(encode(message), table)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"hello"',
        b"[1]",
        b"[[]]",
        b"[null, 1]",
        b'["hello", 1',
        b"[" * 30_000,
        b'{"a":' * 10_000,
        packet("hello"),
        packet("hello", 1),
        packet("hello", 1, "", 2),
        packet("hello", 1, 2),
        packet("hello", 1, None),
        packet("hello", "1", ""),
        packet("hello", 1.0, ""),
        packet("hello", True, ""),
        packet("hello", None, ""),
        packet("hello", [1], ""),
        packet("Hello", 1, ""),
        packet("fault", 1),
        packet("closed", {}),
        packet("closed", "abc"),
        packet("closed", [1]),
        packet("closed", ["abc"]),
        packet("closed", [{"a": 1}]),
        packet("closed", [[1, 2, 3, None]]),
        packet("closed", [[1, 2, 3, True]]),
        packet("closed", [[1, 2.5, 3, "closed"]]),
        packet("closed", [[1, [2], 3, "closed"]]),
        b'["hello", NaN, ""]',
        b'["hello", 1e400, ""]',
        b'["hello", ' + b"9" * 5000 + b', ""]',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    """Every packet that is not exactly of a listed shape is a ChannelError, and nothing else."""
    with pytest.raises(ChannelError):
        decode(data, RELAY_TO_CONTROL)


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["hello"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
    | st.builds(lambda tag, rest: packet(tag, *rest), st.sampled_from([*RELAY_TO_CONTROL]), st.lists(st.integers()))
)
def test_any_packet_is_a_message_or_a_channel_error(data: bytes) -> None:
    """No bytes of an untrusted relay raise anything but ChannelError, and what is accepted encodes again."""
    try:
        message = decode(data, RELAY_TO_CONTROL)
    except ChannelError:
        return
    assert decode(encode(message), RELAY_TO_CONTROL) == message


def test_a_hostile_tag_does_not_flood_the_log() -> None:
    """The error quotes a bounded, escaped part of an unknown tag."""
    with pytest.raises(ChannelError) as caught:
        decode(packet("\n\x1b[2J" + "x" * 60_000), RELAY_TO_CONTROL)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 200


def test_too_large_a_message_is_not_sent() -> None:
    """A packet is bounded by MAX_PACKET: larger is the sender's own fault."""
    with pytest.raises(ChannelError, match=f"over {MAX_PACKET}"):
        encode(Fault("x" * MAX_PACKET))


def test_the_largest_messages_fit() -> None:
    """What the bounds allow fits a packet: a whole batch, a fault of any characters, one row with its texts."""
    largest = 2**63
    batch = Connections(((largest,) * 5,) * MAX_BATCH)
    assert batch.fds() <= MAX_FDS
    wide = "\U0010ffff"  # twelve bytes of JSON
    text = wide * MAX_REQUEST_TEXT
    end = messages.Closed(((largest, largest, largest, max(OUTCOMES, key=len), wide * MAX_REASON),))
    request = messages.Requests(((largest, "would_deny", wide * MAX_NAME, text, text),))
    rules = messages.RuleSets(((largest, largest, "9" * MAX_SET_TEXT),))
    for message in (batch, end, request, rules, Fault("\udcff" * MAX_FAULT)):
        assert len(encode(message)) <= MAX_PACKET


@given(st.lists(st.tuples(st.integers(), st.text(), st.sampled_from(["", "x" * 30_000, "\udcff" * 10_000]))))
def test_in_packets(rows: list[messages.Row]) -> None:
    """All rows, in their order, in messages that can be sent; none is empty."""
    made = list(in_packets(messages.Closed, rows))
    assert [row for message in made for row in message.rows] == rows
    for message in made:
        assert message.rows
        assert len(encode(message)) <= MAX_PACKET


def test_in_packets_is_as_few_as_can_be() -> None:
    """Many small rows share a packet, and fill it."""
    made = list(in_packets(messages.Assign, [(number, 7) for number in range(10_000)]))
    assert [len(encode(message)) > MAX_PACKET - 100 for message in made] == [True] * (len(made) - 1) + [False]


def test_a_row_that_fits_no_packet() -> None:
    """It is the sender's own fault, and takes no other row along."""
    first, large, last = in_packets(messages.Closed, [(1,), ("x" * MAX_PACKET,), (2,)])
    assert (first.rows, last.rows) == (((1,),), ((2,),))
    with pytest.raises(ChannelError):
        encode(large)


def test_check_row() -> None:
    """A row has exactly the types that its message says: a bool is no int, and none may be missing."""
    row = (1, "closed")
    assert check_row(row, int, str) is row
    bad: list[messages.Row] = [(), (1,), (1, 2), ("1", "closed"), (True, "closed"), (1, "closed", 1)]
    for other in bad:
        with pytest.raises(ChannelError):
            check_row(other, int, str)


def test_fds_a_message_must_have() -> None:
    """How many descriptors come along is part of the message: two a connection, the client's with connect_as."""
    assert Connections(((1, 1, 0, 0, 0, 0),) * 3).fds() == 6
    assert messages.ConnectAs("docker", "").fds() == 1
    assert messages.NotConnected(11).fds() == 0
    assert Close(((1, "revoked"),)).fds() == 0
    assert Hello(1).fds() == 0
