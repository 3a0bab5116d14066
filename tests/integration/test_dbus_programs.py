"""The D-Bus project's own test programs, and dbus-broker in dbus-daemon's place, with and without sockguard between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import running
from tests.support.dbus import (
    BUS,
    BUS_PATH,
    ECHO,
    OBJECT,
    Client,
    chmod_tree_for_all,
    dbus_broker,
    dbus_tests,
    echo_tool,
    service,
)
from tests.support.dbus_stage import EVERY_WAY, GUARDED, People, Stage, Way, people, proxy_table, stages
from tests.support.identities import open_folder, wait_started, wait_until
from tests.support.servers import control_ids, private_folder

pytestmark = pytest.mark.root

CASES = {
    # These two want the features of a bus that systemd has started.
    "test-dbus-daemon": ("-s", "/properties/features", "-s", "/properties/get-all"),
    "test-dbus-daemon-eavesdrop": (),
    "test-monitor": (),
}
BY_PID = ("-s", "/creds", "-s", "/processid")
"""Cases that expect the bus to know their pid: through a proxy it knows the proxy's."""
OF_ROOT = ("-s", "/canonical-path/uae")
"""A case that expects the bus to know that they are root, as the programs do that monitor: a proxy that shows itself is
taken for control, which is root only where there is no user sockguard."""


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who) as made:
        yield made


@pytest.fixture(params=EVERY_WAY)
def any_way(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


def test_programs_of_dbus_tests(any_way: Stage) -> None:
    """What the programs say of each of their cases is the same as on the bus itself. Run as root: they monitor."""
    is_root = any_way.way != "proxy" or control_ids()[0] == 0
    for program, options in CASES.items():
        skipped: tuple[str, ...] = ()
        if program == "test-dbus-daemon":
            skipped = (*(() if any_way.way == "direct" else BY_PID), *(() if is_root else OF_ROOT))
        elif not is_root:
            continue
        lines = dbus_tests(program, any_way.client("root"), *options, *skipped)
        assert all(line.startswith("ok") for line in lines), lines


def test_dbus_test_tool(any_way: Stage) -> None:
    """Thousands of calls, one at a time, 32 at a time and all at once, to a service that is there through the guard."""
    admin = any_way.client("admin")
    with echo_tool(admin.address, "com.example.Tool"):
        for options in (("--queue=1",), ("--queue=32",), ("--flood",), ("--no-reply",), ("--bytes", "--queue=8")):
            said = admin.tool("dbus-test-tool", "spam", "--dest=com.example.Tool", "--count=2000", *options)
            assert (said.status, said.err) == (0, ""), options
    behind = any_way.backstage()
    has_owner = (BUS, f"{BUS}.NameHasOwner", "com.example.Tool")
    wait_until(lambda: behind.gdbus_call(*has_owner, path=BUS_PATH).out == "(false,)\n", "its name is free again")


def test_dbus_broker(folder: Path, who: People) -> None:
    """dbus-broker is guarded as dbus-daemon is."""
    private = private_folder(folder, 0) / "bus"
    with dbus_broker(private) as bus, service(bus.address, ECHO):
        file = folder / "sockguard.toml"
        file.write_text("\n".join(proxy_table(way, folder, private, who, identity=way) for way in GUARDED))
        with running(file, *(folder / way for way in GUARDED)) as daemon:
            wait_started(daemon)
            for way in GUARDED:
                for person in (who.admin, who.reader):
                    speak(Client(folder / way, person.uid))
                said = Client(folder / way, who.owner.uid).gdbus_call(ECHO, f"{ECHO}.Echo", "hi")
                assert "org.freedesktop.DBus.Error.AccessDenied" in said.err
            names = Client(folder / "client", who.reader.uid).gdbus_call(BUS, f"{BUS}.ListNames", path=BUS_PATH).out
            assert ECHO in names
            assert "org.freedesktop.systemd1" not in names
        chmod_tree_for_all(private)
        speak(Client(private, who.admin.uid))


def speak(client: Client) -> None:
    assert client.busctl("call", ECHO, OBJECT, ECHO, "Echo", "s", "x").out == 's "x"\n'
    assert client.gdbus_call(ECHO, f"{ECHO}.Echo", "hi").out == "('hi',)\n"
    assert 'string "hi"' in client.dbus_send(ECHO, f"{ECHO}.Echo", "string:hi").out
    said = client.python(f"print(service('{ECHO}').Echo('hi', dbus_interface='{ECHO}'))")
    assert said.out == "hi\n", said.err
    assert ECHO in client.busctl("list").out


def test_the_stage_is_what_it_says(ways: dict[Way, Stage]) -> None:
    """On the direct way nothing is refused, so that a refusal in another test is sockguard's."""
    speak(ways["direct"].client("owner"))
