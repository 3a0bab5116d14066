"""What passes through sockguard arrives as it was sent: order, byte order, descriptors, long bodies; and is told of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import running
from tests.support.dbus import BUS, ECHO, OBJECT, OTHER, SECRET, Client, dbus_daemon, service
from tests.support.dbus_stage import GUARDED, People, Stage, Way, files_when_idle, people, proxy_table, stages
from tests.support.dbus_wire import (
    CALL,
    DESTINATION,
    MEMBER,
    PATH,
    REPLY_SERIAL,
    SIGNATURE,
    UNIX_FDS,
    Field,
    Wire,
    call,
    error_of,
    message,
    request_name,
    to_bus,
    value,
)
from tests.support.identities import open_folder, wait_started, wait_until
from tests.support.passing import Tracer, open_files
from tests.support.servers import ended, private_folder

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
MOST_FDS_OF_A_MESSAGE: Final = 16
"""dbus-daemon's max_message_unix_fds."""

PERMISSIVE: Final = "permissive"


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    """One proxy more than the two: PERMISSIVE. All requests are told of."""
    with open_folder() as folder:
        more = proxy_table(
            PERMISSIVE, folder, folder / "private" / "bus", who, identity="proxy", options="enforce = false"
        )
        with stages(folder, who, GUARDED, more=f'\n{more}\n[log]\nrequests = "all"\n') as made:
            yield made


@pytest.fixture(scope="module", autouse=True)
def idle(ways: dict[Way, Stage]) -> dict[int, int]:
    return files_when_idle(ways["proxy"])


@pytest.fixture(params=GUARDED)
def guarded(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


@pytest.fixture
def permissive(ways: dict[Way, Stage]) -> Stage:
    place = ways["proxy"]
    return Stage(place.folder, place.bus, place.people, place.folder / PERMISSIVE, place.daemon, "proxy")


# ── order ──


def test_denied_calls_among_pipelined_ones(guarded: Stage) -> None:
    """96 calls in one write: the bus's answers and denials in the order of their calls, the service's in its own."""
    sent, of_bus, of_service = b"", {}, {}
    for serial in range(10, 106):
        match serial % 4:
            case 0:
                sent += call(serial, ECHO, "Echo", text=str(serial))
                of_service[serial] = str(serial)
            case 1:
                sent += call(serial, SECRET, "Reveal", text=str(serial), interface=SECRET)
                of_bus[serial] = DENIED
            case 2:
                sent += to_bus(serial, "GetId")
                of_bus[serial] = ""
            case _:
                sent += to_bus(serial, "GetNameOwner", SECRET)
                of_bus[serial] = NO_OWNER
    wire = guarded.wire("reader")
    wire.send(sent)
    answers = [wire.reply() for _ in range(96)]
    found = [(answer.header.fields[REPLY_SERIAL], answer) for answer in answers]
    assert [(serial, error_of(answer)) for serial, answer in found if serial in of_bus] == [*of_bus.items()]
    assert [(serial, answer.body[0]) for serial, answer in found if serial in of_service] == [*of_service.items()]


def test_big_endian(guarded: Stage) -> None:
    """A client of the other byte order: calls, denials, names asked for and owned."""
    wire = guarded.wire("reader")
    wire.send(call(2, ECHO, "Echo", text="turned round", order=">"))
    assert wire.answer(2).body == ("turned round",)
    for serial, data in (
        (3, call(3, SECRET, "Reveal", interface=SECRET, text="x", order=">")),
        (4, to_bus(4, "AddMatch", "eavesdrop='true'", order=">")),
        (5, request_name(5, "org.example.App", order=">")),
    ):
        wire.send(data)
        assert error_of(wire.answer(serial)) == DENIED
    wire.send(to_bus(6, "GetNameOwner", SECRET, order=">"))
    assert error_of(wire.answer(6)) == NO_OWNER
    owner = guarded.wire("owner")
    owner.send(request_name(2, "org.example.App", order=">"))
    assert owner.answer(2).body == (1,)
    owner.send(to_bus(3, "ReleaseName", "org.example.App", order=">"))
    assert owner.answer(3).body == (1,)


# ── descriptors and long bodies ──

_FILES: Final = f"""
before = len(os.listdir("/proc/self/fd"))
files = [os.memfd_create("file") for _ in range(16)]
for number, fd in enumerate(files):
    os.pwrite(fd, b"file %d" % number, 0)
given = dbus.Array([dbus.types.UnixFd(fd) for fd in files], "h")
words, back = service("{ECHO}").PassFds(given, dbus_interface="{ECHO}")
print(*words, sep=",")
taken = [fd.take() for fd in back]
print(*[os.pread(fd, 100, 0).decode() for fd in taken], sep=",")
del given, back
for fd in (*files, *taken):
    os.close(fd)
print(len(os.listdir("/proc/self/fd")) - before)
"""


def test_descriptors_both_ways(guarded: Stage) -> None:
    """As many as the bus takes, there and back, each the one it was; the guard and the service keep none."""
    reader = guarded.client("reader")
    assert guarded.daemon is not None
    service_files = f"print(service('{ECHO}').OpenFiles(dbus_interface='{ECHO}'))"
    before = guarded.backstage().python(service_files).out
    for _ in range(3):
        said = reader.python(_FILES)
        assert said.good, said.err
        there, back, left = said.out.splitlines()
        assert there.split(",") == [f"file {number}" for number in range(16)]
        assert back.split(",") == [f"back file {number}" for number in range(16)]
        assert left == "0"
    assert guarded.backstage().python(service_files).out == before


def with_fds(serial: int, name: str, count: int, member: str = "PassFds") -> bytes:
    """A call with that many descriptors."""
    body = value("u", 4 * count, "<") + b"".join(value("u", number, "<") for number in range(count))
    fields = [Field(PATH, OBJECT), Field(MEMBER, member), Field(DESTINATION, name), Field(SIGNATURE, "ah")]
    return message(CALL, serial, [*fields, *([Field(UNIX_FDS, count)] if count else [])], body)


@pytest.mark.parametrize("name", [SECRET, "org.example.Nobody"])
def test_descriptors_of_a_denied_call_are_closed(guarded: Stage, name: str) -> None:
    """At the end of a pipe, which stays while anybody has its other end. The next call's descriptors are its own."""
    wire = guarded.wire("reader")
    tracer = Tracer()
    wire.send(with_fds(2, name, 3), [tracer.reader] * 3)
    assert error_of(wire.answer(2)) == DENIED
    tracer.finish()


@pytest.mark.parametrize("announced", [0, 1, 3])
def test_descriptors_that_are_miscounted(guarded: Stage, announced: int) -> None:
    """Two came: the message that says otherwise ends the connection, and they are closed."""
    wire = guarded.wire("reader")
    tracer = Tracer()
    wire.send(with_fds(2, ECHO, announced, "Echo"), [tracer.reader] * 2)
    assert wire.ended()
    tracer.finish()


def test_more_descriptors_than_the_bus_takes(guarded: Stage) -> None:
    """It ends the connection, and nothing is left in the guard."""
    wire = guarded.wire("reader")
    tracer = Tracer()
    wire.send(with_fds(2, ECHO, MOST_FDS_OF_A_MESSAGE + 1), [tracer.reader] * (MOST_FDS_OF_A_MESSAGE + 1))
    assert wire.ended()
    tracer.finish()


_LONG: Final = f"""
size = 8 << 20
echo = service("{ECHO}")
print(echo.Size(dbus.ByteArray(b"y" * size), dbus_interface="{ECHO}") == size)
back = echo.Big(dbus.UInt32(size), dbus_interface="{ECHO}", byte_arrays=True)
print(back == b"x" * size)
"""


def test_long_bodies_both_ways(guarded: Stage) -> None:
    said = guarded.client("reader").python(_LONG)
    assert (said.out, said.err) == ("True\nTrue\n", "")


def test_a_denied_call_with_a_long_body(guarded: Stage) -> None:
    """It is dropped as it comes, and what follows it is judged."""
    body = value("u", 8 << 20, "<") + bytes(8 << 20)
    fields = [Field(PATH, OBJECT), Field(MEMBER, "Size"), Field(DESTINATION, SECRET), Field(SIGNATURE, "ay")]
    wire = guarded.wire("reader")
    wire.send(message(CALL, 2, fields, body) + call(3, ECHO, "Echo", text="after it"))
    assert error_of(wire.answer(2)) == DENIED
    assert wire.answer(3).body == ("after it",)


# ── what is told ──


def test_events_of_requests(guarded: Stage) -> None:
    """Each has who asked, on which connection, what, and by which rule; allowed ones too where the file asks."""
    wire = guarded.wire("reader")
    wire.send(call(2, ECHO, "Echo", text="told") + call(3, SECRET, "Told", text="x", interface=SECRET))
    assert error_of(wire.answer(3)) == DENIED
    denied = guarded.denied(f"call {SECRET} {OBJECT} {SECRET}.Told", "reader")
    assert denied["request"] == f"call {SECRET} {OBJECT} {SECRET}.Told"
    assert (denied["rule"], denied["reason"]) == (None, "no allow rule matches")
    assert denied["user"] == guarded.people.reader.name
    allowed = guarded.told("request_allowed", f"call {ECHO} {OBJECT} {ECHO}.Echo", "reader")
    assert (allowed["rule"], allowed["reason"]) == ("reader", "allowed by reader")
    assert guarded.daemon is not None
    admitted = guarded.daemon.wait_for("connection_admitted", lambda event: event["connection"] == denied["connection"])
    assert (admitted["uid"], admitted["proxy"]) == (denied["uid"], denied["proxy"])


def test_an_event_is_one_line(guarded: Stage) -> None:
    """Nothing that a client may put into a message makes two of one, or hides it."""
    wire = guarded.wire("reader")
    wire.send(to_bus(2, "AddMatch", 'eavesdrop=true,arg0=\'\n{"event":"connection_admitted"}\u2028\''))
    assert error_of(wire.answer(2)) == DENIED
    guarded.denied(f"call {BUS} /org/freedesktop/DBus {BUS}.AddMatch eavesdrop=true", "reader")
    assert guarded.daemon is not None
    numbers = [event["seq"] for event in guarded.daemon.events()]
    assert numbers == [*range(1, len(numbers) + 1)]


def test_permissive(permissive: Stage) -> None:
    """What the rules would deny passes and is told of; what is malformed ends as ever."""
    with Wire(permissive.path, permissive.uid("reader")) as wire:
        wire.send(call(2, SECRET, "Reveal", text="all", interface=SECRET))
        assert wire.answer(2).body == ("the secret of all",)
        wire.send(request_name(3, "org.example.Mine"))
        assert wire.answer(3).body == (1,)
        wire.send(to_bus(4, "GetNameOwner", OTHER))
        assert not error_of(wire.answer(4))
        wire.send(to_bus(5, "ListNames"))
        assert {SECRET, OTHER} <= set(wire.answer(5).body[0])
        wire.send(message(CALL, 0, [Field(PATH, OBJECT), Field(MEMBER, "Echo"), Field(DESTINATION, ECHO)]))
        assert wire.ended()
    for request in (f"call {SECRET} {OBJECT} {SECRET}.Reveal", "own org.example.Mine"):
        event = permissive.told("would_deny", request, "reader")
        assert event["reason"] == "no allow rule matches"


# ── many, and the ends of connections ──


def test_three_users_at_the_same_time(guarded: Stage) -> None:
    """Each gets what its rules give, every time, while the others are busy."""
    wanted = {
        "admin": {ECHO: "", SECRET: "", OTHER: ""},
        "reader": {ECHO: "", SECRET: DENIED, OTHER: DENIED},
        "owner": {ECHO: DENIED, SECRET: DENIED, OTHER: DENIED},
    }
    wires = [(name, guarded.wire(name)) for name in wanted for _ in range(3)]
    wrong: list[str] = []

    def work(name: str, wire: Wire) -> None:
        serial = 10
        for turn in range(20):
            asked = {}
            for target, error in wanted[name].items():
                for _ in range(3):
                    asked[serial] = (error, f"{name} {turn} {serial}")
                    wire.send(call(serial, target, "Echo", text=f"{name} {turn} {serial}"))
                    serial += 1
            while asked:
                answer = wire.reply()
                error, text = asked.pop(answer.header.fields[REPLY_SERIAL])
                if error_of(answer) != error or (not error and answer.body != (text,)):
                    wrong.append(f"{name}: {answer}")

    threads = [threading.Thread(target=work, args=each) for each in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_clients_that_die_amid_a_message(guarded: Stage, ways: dict[Way, Stage], idle: dict[int, int]) -> None:
    """Within a header, within a body that passes, within one that is dropped, with descriptors: nobody else notices."""
    for place in ways.values():
        place.close()
    other = guarded.wire("reader")
    long = [Field(PATH, OBJECT), Field(MEMBER, "Size"), Field(SIGNATURE, "ay")]
    body = value("u", 1 << 20, "<") + bytes(1 << 20)
    tracer = Tracer()
    for target in (ECHO, SECRET):
        whole = message(CALL, 2, [*long, Field(DESTINATION, target)], body)
        for cut in (1, 15, 40, 1000, 500_000, len(whole) - 1):
            with Wire(guarded.path, guarded.uid("reader")) as wire:
                wire.send(whole[:cut])
        with Wire(guarded.path, guarded.uid("reader")) as wire:
            wire.send(with_fds(3, target, 5)[:-4], [tracer.reader] * 5)
    tracer.finish()
    other.send(call(3, ECHO, "Echo", text="still here"))
    assert other.answer(3).body == ("still here",)
    other.close()
    daemon = guarded.daemon
    assert daemon is not None
    wait_until(lambda: open_files(daemon) == idle, "all descriptors are closed again")


def test_who_reads_nothing_holds_nobody_up(guarded: Stage) -> None:
    """A client that makes calls with long answers and takes none: the others go on."""
    greedy, other = guarded.wire("reader"), guarded.wire("reader")
    fields = [Field(PATH, OBJECT), Field(MEMBER, "Big"), Field(DESTINATION, ECHO), Field(SIGNATURE, "u")]
    size = value("u", 4 << 20, "<")
    greedy.send(b"".join(message(CALL, serial, fields, size) for serial in range(2, 10)))
    for serial in range(2, 30):
        other.send(call(serial, ECHO, "Echo", text="meanwhile"))
        assert other.answer(serial).body == ("meanwhile",)
    assert len(greedy.answer(9).body[0]) == 4 << 20


def test_monitors_are_refused(guarded: Stage) -> None:
    """busctl's and dbus-monitor's, by the guard: the bus itself would let root in."""
    reader = guarded.client("reader")
    assert "Access denied" in reader.busctl("monitor").err
    with ended(reader.monitor()) as monitor:
        assert monitor.stdout is not None
        assert any(b"AccessDenied" in line for line in iter(monitor.stdout.readline, b""))  # it goes on without
    guarded.denied(f"call {BUS} /org/freedesktop/DBus {BUS}.Monitoring.BecomeMonitor", "reader")


# ── guards and buses ──


def test_two_guards_in_a_row(ways: dict[Way, Stage], who: People) -> None:
    """The second one's clients see one bus, and get what both allow."""
    first = ways["client"]
    with open_folder() as folder:
        file = folder / "sockguard.toml"
        file.write_text(proxy_table("second", folder, first.path, who, identity="client"))
        with running(file, folder / "second") as daemon:
            wait_started(daemon)
            for name in ("admin", "reader"):
                with Wire(folder / "second", first.uid(name)) as wire:
                    wire.send(b"".join(call(n, SECRET if n % 3 else ECHO, "Echo", text=str(n)) for n in range(2, 300)))
                    for _ in range(2, 300):
                        answer = wire.reply()
                        serial = answer.header.fields[REPLY_SERIAL]
                        refused = name == "reader" and serial % 3
                        assert error_of(answer) == (DENIED if refused else "")
                        assert refused or answer.body == (str(serial),)
            with service(f"unix:path={folder}/second", "org.example.App", uid=who.owner.uid):
                said = first.client("admin").gdbus_call("org.example.App", f"{ECHO}.Echo", "through three")
                assert said.out == "('through three',)\n"


def test_a_bus_that_is_started_anew(folder: Path, who: People) -> None:
    """Connections end with their bus; while there is none clients are refused, and afterwards served."""
    private = private_folder(folder, 0) / "bus"
    file = folder / "sockguard.toml"
    options = 'connect_timeout = "1s"'
    file.write_text(proxy_table("bus", folder, private, who, identity="client", options=options))
    reader = Client(folder / "bus", who.reader.uid)
    with ExitStack() as first:
        bus = first.enter_context(dbus_daemon(private))
        first.enter_context(service(bus.address, ECHO))
        with running(file, folder / "bus") as daemon:
            wait_started(daemon)
            with Wire(folder / "bus", who.reader.uid) as wire:
                wire.send(call(2, ECHO, "Echo", text="first"))
                assert wire.answer(2).body == ("first",)
                first.close()
                assert wire.ended()
            assert not reader.gdbus_call(ECHO, f"{ECHO}.Echo", "none").good
            private.unlink(missing_ok=True)
            with dbus_daemon(private) as bus, service(bus.address, ECHO):
                assert reader.gdbus_call(ECHO, f"{ECHO}.Echo", "second").out == "('second',)\n"
                assert DENIED in reader.gdbus_call(SECRET, f"{SECRET}.Reveal", "second").err
