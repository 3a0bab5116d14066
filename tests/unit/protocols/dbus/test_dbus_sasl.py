"""Authentication, both sides: the lines that programs send, and those that must not work."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus.sasl import MAX_AUTH, MAX_REJECTED, ClientSide, Refused, ServerSide
from sockguard.protocols.dbus.signature import Malformed
from tests.unit.protocols.playing import Played, Receive, play, play_all_ways

GUID = "0123456789abcdef0123456789abcdef"
OK = f"OK {GUID}\r\n".encode()
UID = 1000
HEX = b"31303030"
AUTH = b"AUTH EXTERNAL " + HEX + b"\r\n"
REJECTED = b"REJECTED EXTERNAL\r\n"


def server(*, ready: bool = True, fds: bool | None = True, forward_fds: bool = True) -> Receive:
    """A client's counterpart: replies byte by byte, then "begun", after which nothing more is used."""
    side = ServerSide(UID, forward_fds)
    over = False
    if ready:
        side.ready(GUID, fds)

    def receive(data: bytes) -> tuple[int, list[Any]]:
        nonlocal over
        if over:
            return 0, []
        used, reply, over = side.feed(data)
        return used, [*reply, *(["begun"] if over else [])]

    return receive


def said(data: bytes, **options: bool) -> bytes:
    """What the server says to a client that sends that, however it comes."""
    played = play_all_ways(lambda: server(**options), data, Malformed)
    assert played.error is None, played.error
    return bytes(byte for byte in played.results if byte != "begun")


def begun(data: bytes, trailing: bytes) -> Played:
    """Play data that ends in BEGIN, and messages behind it."""
    played = play_all_ways(server, data, Malformed, trailing=trailing, pieces=(7,))
    assert played.results[-1] == "begun"
    return played


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (b"\0" + AUTH + b"BEGIN\r\n", OK),
        (b"\0" + AUTH + b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\n", OK + b"AGREE_UNIX_FD\r\n"),
        (b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n", b"DATA\r\n" + OK + b"AGREE_UNIX_FD\r\n"),
        (b"\0AUTH EXTERNAL\r\nDATA \r\nBEGIN\r\n", b"DATA\r\n" + OK),
        (b"\0AUTH EXTERNAL\r\nDATA " + HEX + b"\r\nBEGIN\r\n", b"DATA\r\n" + OK),
        (b"\0AUTH\r\n" + AUTH + b"BEGIN\r\n", REJECTED + OK),
        (b"\0AUTH ANONYMOUS 6c69\r\n" + AUTH + b"BEGIN\r\n", REJECTED + OK),
    ],
)
def test_what_programs_send(data: bytes, answers: bytes) -> None:
    """libdbus, systemd, GLib and others; at once and byte by byte; what is behind BEGIN is left alone."""
    for trailing in (b"l\1\0\1", b"\0\r\n\xff" * 10000):
        played = begun(data, trailing)
        assert bytes(played.results[:-1]) == answers


@pytest.mark.parametrize(
    "line",
    [
        b"AUTH EXTERNAL 30", b"AUTH EXTERNAL 313030", b"AUTH EXTERNAL 3130303030", b"AUTH EXTERNAL 1000",
        b"AUTH EXTERNAL zz", b"AUTH EXTERNAL " + HEX + b" ", b"AUTH EXTERNAL " + HEX + HEX,
        b"AUTH EXTERNAL  " + HEX, b"AUTH  EXTERNAL " + HEX, b"AUTH EXTERNAL ", b"AUTH external " + HEX,
        b"AUTH DBUS_COOKIE_SHA1 " + HEX, b"AUTH ANONYMOUS", b"AUTH", b"AUTH ", b"AUTH EXTERNAL 2031303030",
        b"AUTH EXTERNAL 30" + HEX, b"ERROR", b"ERROR no",
    ],
)  # fmt: skip
def test_rejected(line: bytes) -> None:
    """CVE-2018-6560 among them: another uid, other mechanisms, more or other white space than the grammar's."""
    assert said(b"\0" + line + b"\r\n") == REJECTED
    played = play_all_ways(server, b"\0" + line + b"\r\nBEGIN\r\n", Malformed)
    assert played.error is not None
    assert "before" in played.error


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b" AUTH EXTERNAL " + HEX, b"AUTHEXTERNAL", b"auth EXTERNAL " + HEX, b"DATA", b"DATA 31", b"CANCEL",
        b"NEGOTIATE_UNIX_FD", b"OK " + GUID.encode(), b"BEGIN ", b"BEGIN x", b" BEGIN", b"REJECTED", b"AGREE_UNIX_FD",
        b"CANCEL x",
    ],
)  # fmt: skip
def test_error(line: bytes) -> None:
    """Unknown here: said so, and nobody is authenticated by it."""
    assert said(b"\0" + line + b"\r\n") == b"ERROR\r\n"
    assert said(b"\0" + line + b"\r\n" + AUTH) == b"ERROR\r\n" + OK


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (b"AUTH EXTERNAL\r\nCANCEL\r\nDATA\r\n", b"DATA\r\n" + REJECTED + b"ERROR\r\n"),
        (b"AUTH EXTERNAL\r\nAUTH EXTERNAL\r\nDATA\r\n", b"DATA\r\nERROR\r\n" + OK),
        (b"AUTH EXTERNAL\r\nNEGOTIATE_UNIX_FD\r\n", b"DATA\r\nERROR\r\n"),
        (b"AUTH EXTERNAL\r\nDATA  \r\n", b"DATA\r\n" + REJECTED),
        (b"AUTH EXTERNAL\r\nDATA 30\r\nDATA\r\n", b"DATA\r\n" + REJECTED + b"ERROR\r\n"),
        (AUTH + AUTH + b"DATA\r\n", OK + b"ERROR\r\n" * 2),
        (AUTH + b"CANCEL\r\nNEGOTIATE_UNIX_FD\r\n", OK + REJECTED + b"ERROR\r\n"),
        (AUTH + b"ERROR x\r\n" + AUTH, OK + REJECTED + OK),
        (AUTH + b"BEGIN x\r\n", OK + b"ERROR\r\n"),
    ],
)
def test_states(data: bytes, answers: bytes) -> None:
    """The specification's state diagram, and nothing beside it."""
    assert said(b"\0" + data) == answers


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"AUTH", "NUL"),
        (b"\1", "NUL"),
        (b"\0BEGIN\r\n", "before"),
        (b"\0AUTH EXTERNAL\r\nBEGIN\r\n", "before"),
        (b"\0" + AUTH + b"CANCEL\r\nBEGIN\r\n", "before"),
        (b"\0AUTH EXTERNAL\t" + HEX + b"\r\n", "control"),
        (b"\0AUTH\nEXTERNAL\r\n", "control"),
        (b"\0AUTH\rEXTERNAL\r\n", "control"),
        (b"\0\0AUTH\r\n", "control"),
        (b"\0AUTH \xc3\xa9\r\n", "control"),
        (b"\0" + b"A" * MAX_AUTH, "too many"),
        (b"\0" + b"x\r\n" * MAX_AUTH, "too many"),
        (b"\0" + b"AUTH\r\n" * MAX_REJECTED, "too often"),
    ],
)
def test_ends(data: bytes, why: str) -> None:
    """What ends the connection, whole or byte by byte."""
    if len(data) < 1000:
        played = play_all_ways(server, data, Malformed, pieces=(7,))
    else:  # byte by byte would be the same over and over
        played = play(server(), data, len(data), Malformed)
        assert play(server(), data, 100, Malformed) == played
    assert played.error is not None
    assert why in played.error


def test_waits_for_the_bus() -> None:
    """Before the bus has let us in nobody is told OK, and nothing that needs it is used; then all goes on."""
    side = ServerSide(UID, True)
    data = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\1"
    used, reply, over = side.feed(data)
    assert (data[used:][:6], reply, over) == (b"DATA\r\n", b"DATA\r\n", False)
    assert side.feed(data[used:]) == (0, b"", False)
    side.ready(GUID, True)
    more, reply, over = side.feed(data[used:])
    assert (data[used + more :], reply, over) == (b"l\1", OK + b"AGREE_UNIX_FD\r\n", True)
    assert side.fds


def test_who_asks_for_fds_waits_for_the_bus() -> None:
    """The bus is asked when the client asks, and its answer is the client's."""
    for agreed, answer in ((True, b"AGREE_UNIX_FD\r\n"), (False, b"ERROR\r\n")):
        side = ServerSide(UID, True)
        side.ready(GUID, None)
        data = b"\0" + AUTH + b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\1"
        used, reply, over = side.feed(data)
        assert (data[used:][:9], reply, over) == (b"NEGOTIATE", OK, False)
        assert side.asks_fds
        side.ready(GUID, agreed)
        more, reply, over = side.feed(data[used:])
        assert (data[used + more :], reply, over) == (b"l\1", answer, True)
        assert not side.asks_fds
        assert side.fds == agreed


def test_who_does_not_ask_for_fds_waits_for_nothing() -> None:
    side = ServerSide(UID, True)
    side.ready(GUID, None)
    data = b"\0" + AUTH + b"BEGIN\r\n"
    assert side.feed(data) == (len(data), OK, True)
    assert not side.asks_fds
    assert not side.fds


def test_where_fds_are_refused_the_bus_is_not_asked_for_them() -> None:
    side = ServerSide(UID, False)
    side.ready(GUID, None)
    data = b"\0" + AUTH + b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
    assert side.feed(data) == (len(data), OK + b"ERROR\r\n", True)
    assert not side.asks_fds


def test_a_wrong_uid_need_not_wait() -> None:
    """It is rejected at once."""
    assert said(b"\0AUTH EXTERNAL 30\r\n", ready=False) == REJECTED


@pytest.mark.parametrize(("fds", "forward_fds"), [(False, True), (True, False), (False, False)])
def test_fds_only_if_both_agree(fds: bool, forward_fds: bool) -> None:
    """AGREE_UNIX_FD needs the bus's agreement and leave to forward."""
    assert said(b"\0" + AUTH + b"NEGOTIATE_UNIX_FD\r\n", fds=fds, forward_fds=forward_fds) == OK + b"ERROR\r\n"


# ── the bus ──


def feed(side: ClientSide, data: bytes, piece: int) -> None:
    """Answers of the bus in pieces; all of them are used, and it is done at the last one and not before."""
    waiting = b""
    for at in range(0, len(data), piece):
        assert not side.done
        waiting += data[at : at + piece]
        waiting = waiting[side.feed(waiting) :]
    assert (side.done, waiting) == (True, b"")


def test_greeting() -> None:
    """The uid that the bus sees; never BEGIN before the answer."""
    assert ClientSide(UID).greeting() == b"\0" + AUTH


@pytest.mark.parametrize(
    ("answer", "fds"), [(b"AGREE_UNIX_FD\r\n", True), (b"ERROR\r\n", False), (b"ERROR x\r\n", False)]
)
def test_let_in(answer: bytes, fds: bool) -> None:
    """However the answers come; fds only when they were asked for."""
    for piece in (1, 5, 100):
        side = ClientSide(UID)
        feed(side, OK, piece)
        assert (side.guid, side.fds) == (GUID, None)
        assert side.negotiate() == b"NEGOTIATE_UNIX_FD\r\n"
        feed(side, answer, piece)
        assert (side.guid, side.fds) == (GUID, fds)


@pytest.mark.parametrize(
    "data",
    [
        b"REJECTED EXTERNAL\r\n", b"ERROR\r\n", b"DATA\r\n", b"OK\r\n", b"OK \r\n", b"OK 0123\r\n", b"ok " + OK[3:],
        b"OK  " + OK[3:], OK[:-2] + b" \r\n", OK[:-2] + b"0\r\n", b"\r\n", b"\0" + OK, OK + OK,
        OK + b"AGREE_UNIX_FD\r\n", OK + b"l\1", b"x" * MAX_AUTH, b"l\1\0\1\r\n",
    ],
)  # fmt: skip
def test_not_let_in(data: bytes) -> None:
    """Anything but the answer, or more than it, is Refused: in printable words."""
    with pytest.raises(Refused) as caught:
        ClientSide(UID).feed(data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data", [b"AGREE_UNIX_FD \r\n", b"ERRORS\r\n", b"AGREE_UNIX_FD\r\nl\1", b"ERROR\r\nx", OK, b"x" * MAX_AUTH]
)
def test_no_answer_about_fds(data: bytes) -> None:
    """Nor is anything else taken for one, or more."""
    side = ClientSide(UID)
    side.feed(OK)
    side.negotiate()
    with pytest.raises(Refused) as caught:
        side.feed(data)
    assert str(caught.value).isprintable()


def test_the_buss_words_are_printable() -> None:
    """They go into an audit event."""
    with pytest.raises(Refused) as caught:
        ClientSide(UID).feed(b'REJECTED \x1b[2J\xff"\n\r\n')
    assert str(caught.value) == 'the bus answered AUTH with "REJECTED ?[2J?"?"'


lines = st.lists(
    st.sampled_from([
        b"\0", AUTH, b"AUTH EXTERNAL\r\n", b"DATA\r\n", b"DATA " + HEX + b"\r\n", b"NEGOTIATE_UNIX_FD\r\n",
        b"CANCEL\r\n", b"BEGIN\r\n", b"ERROR\r\n", b"AUTH\r\n", b"\r", b"\n", b"\r\n", b" ", b"x", b"\xff", OK,
        b"AGREE_UNIX_FD\r\n",
    ]),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(st.booleans(), lines)
def test_any_lines(nul: bool, data: bytes) -> None:
    """Whole and in pieces alike; only Malformed; nothing begins without AUTH in what came before."""
    data = b"\0" + data if nul else data
    played = play_all_ways(server, data, Malformed, pieces=(3,))
    if "begun" in played.results:
        assert OK in bytes(byte for byte in played.results if byte != "begun")
    with contextlib.suppress(Refused):
        ClientSide(UID).feed(data)
