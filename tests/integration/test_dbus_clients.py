"""The clients that people have, as three users with different rules, on one bus: what each gets, and how it is refused.

admin's tests run on the bus's own socket too: what they expect is what a bus does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dbus import BUS, BUS_PATH, ECHO, OBJECT, OTHER, SECRET, Client, Said, service
from tests.support.dbus_stage import APP, EVERY_WAY, GUARDED, People, Stage, Way, people, stages
from tests.support.identities import open_folder, wait_until
from tests.support.servers import control_ids, ended

pytestmark = pytest.mark.root

DENIED = "org.freedesktop.DBus.Error.AccessDenied"


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


@pytest.fixture(params=GUARDED)
def guarded(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


def heard(listener: Client, command: tuple[str, ...], until: str, cause: Client, text: str) -> str:
    """What a listening client says up to ``until``, while ``cause`` has the service emit ``text``."""
    with ended(listener.start("stdbuf", "-oL", *command)) as process:
        assert process.stdout is not None
        lines = []
        while True:
            # Until it listens, a signal is lost: it is emitted again for each line that is still missing.
            assert cause.gdbus_call(ECHO, f"{ECHO}.Emit", text).good
            line = process.stdout.readline().decode()
            lines.append(line)
            if until in line or not line:
                return "".join(lines)


# ── admin: an allow without ``dbus`` ──


def test_admin_busctl(any_way: Stage) -> None:
    admin = any_way.client("admin")
    listed = admin.busctl("list")
    assert {BUS, ECHO, SECRET, OTHER} <= {line.split()[0] for line in listed.out.splitlines()}
    assert ".Reveal" in admin.busctl("introspect", SECRET, OBJECT).out
    assert admin.busctl("call", SECRET, OBJECT, SECRET, "Reveal", "s", "x").out == 's "the secret of x"\n'
    assert admin.busctl("get-property", ECHO, OBJECT, ECHO, "Colour").out == 's "red"\n'
    assert admin.busctl("call", ECHO, OBJECT, ECHO, "Fail", "s", "so be it").err == "Call failed: so be it\n"
    assert "PID=" in admin.busctl("status", ECHO).out
    assert OBJECT in admin.busctl("tree", ECHO).out


def test_admin_gdbus(any_way: Stage) -> None:
    admin = any_way.client("admin")
    assert admin.gdbus_call(ECHO, f"{ECHO}.Echo", "hi").out == "('hi',)\n"
    assert admin.gdbus_call(ECHO, f"{ECHO}.EchoLater", "hi", "100").out == "('hi',)\n"
    assert "org.example.Error.Asked: no" in admin.gdbus_call(ECHO, f"{ECHO}.Fail", "no").err
    assert admin.gdbus("wait", "--timeout=20", OTHER).good
    assert admin.gdbus("emit", f"--object-path={OBJECT}", f"--signal={ECHO}.Said", "'mine'").good
    introspected = admin.gdbus("introspect", f"--dest={SECRET}", f"--object-path={OBJECT}")
    assert "Reveal(in  s" in introspected.out


def test_admin_dbus_send(any_way: Stage) -> None:
    admin = any_way.client("admin")
    assert 'string "hi"' in admin.dbus_send(ECHO, f"{ECHO}.Echo", "string:hi").out
    assert "Error org.example.Error.Asked: no" in admin.dbus_send(ECHO, f"{ECHO}.Fail", "string:no").err
    assert f'string "{OTHER}"' in admin.dbus_send(BUS, f"{BUS}.ListNames", path=BUS_PATH).out


def test_admin_dbus_python(any_way: Stage) -> None:
    admin = any_way.client("admin")
    said = admin.python(
        f"""
echo = service("{ECHO}")
print(echo.Echo("hi", dbus_interface="{ECHO}"))
name, uid = echo.Sender(dbus_interface="{ECHO}")
print(name == bus.get_unique_name(), uid)
print(*sorted(n for n in bus.list_names() if n.startswith("org.example")))
print(bus.request_name("{APP}"), bus.get_name_owner("{APP}") == name, bus.release_name("{APP}"))
"""
    )
    shown = control_ids()[0] if any_way.way == "proxy" else any_way.uid("admin")
    assert said.good, said.err
    assert said.out.splitlines()[:3] == ["hi", f"True {shown}", f"{ECHO} {OTHER} {SECRET}"]
    assert said.out.splitlines()[3] == "1 True 1"


def test_admin_hears_signals(any_way: Stage) -> None:
    """gdbus and dbus-monitor, which falls back to match rules where it may not monitor."""
    admin, cause = any_way.client("admin"), any_way.backstage()
    listening = ("gdbus", "monitor", f"--address={admin.address}", f"--dest={ECHO}")
    assert f"{ECHO}.Said ('ding',)" in heard(admin, listening, "ding", cause, "ding")
    listening = ("dbus-monitor", "--address", admin.address, f"type='signal',sender='{ECHO}'")
    assert "member=Said" in heard(admin, listening, "ding", cause, "ding")


# ── reader: calls ECHO, receives its signals ──


def refused(said: Said, *, error: str = DENIED) -> None:
    """A call that was answered with that error, as each program shows it."""
    assert not said.good
    assert error in said.err or "Access denied" in said.err or "rejected" in said.err.lower(), said


def test_reader_calls_what_it_may(guarded: Stage) -> None:
    """Answers of the service by every client, and its own errors as they are."""
    reader = guarded.client("reader")
    assert reader.busctl("call", ECHO, OBJECT, ECHO, "Echo", "s", "x").out == 's "x"\n'
    assert reader.gdbus_call(ECHO, f"{ECHO}.Echo", "hi").out == "('hi',)\n"
    assert 'string "hi"' in reader.dbus_send(ECHO, f"{ECHO}.Echo", "string:hi").out
    said = reader.python(f"print(service('{ECHO}').Echo('hi', dbus_interface='{ECHO}'))")
    assert said.out == "hi\n", said.err
    assert "org.example.Error.Asked" in reader.gdbus_call(ECHO, f"{ECHO}.Fail", "no").err


def test_reader_is_refused_the_rest(guarded: Stage) -> None:
    """AccessDenied in each client's own words; the service never hears of it, and the log says who and what."""
    reader = guarded.client("reader")
    before = guarded.calls()
    assert reader.busctl("call", SECRET, OBJECT, SECRET, "Reveal", "s", "x").err == "Call failed: Access denied\n"
    for said in (
        reader.gdbus_call(SECRET, f"{SECRET}.Reveal", "me"),
        reader.dbus_send(SECRET, f"{SECRET}.Reveal", "string:me"),
        reader.python(f"service('{SECRET}').Reveal('me', dbus_interface='{SECRET}')"),
        reader.gdbus_call(OTHER, f"{ECHO}.Echo", "me"),
    ):
        refused(said)
        assert DENIED in said.err
    assert guarded.calls() == before
    event = guarded.denied(f"call {SECRET} {OBJECT} {SECRET}.Reveal", "reader")
    assert event["rule"] is None
    refused(reader.python(f"bus.request_name('{APP}')"))


def test_reader_hears_what_it_may(guarded: Stage) -> None:
    reader, cause = guarded.client("reader"), guarded.backstage()
    listening = ("gdbus", "monitor", f"--address={reader.address}", f"--dest={ECHO}")
    assert f"{ECHO}.Said ('ding',)" in heard(reader, listening, "ding", cause, "ding")


# ── owner: owns APP, calls nobody ──


def test_owner_owns_and_calls_nobody(guarded: Stage) -> None:
    """It serves admin under its name and may take no other; its own calls are denied."""
    owner = guarded.client("owner")
    with service(owner.address, APP, uid=owner.uid):
        assert guarded.client("admin").gdbus_call(APP, f"{ECHO}.Echo", "hi").out == "('hi',)\n"
        assert f"'{APP}'" in guarded.backstage().gdbus_call(BUS, f"{BUS}.ListNames", path=BUS_PATH).out
        refused(guarded.client("reader").gdbus_call(APP, f"{ECHO}.Echo", "me"))
    behind = guarded.backstage()
    has_owner = (BUS, f"{BUS}.NameHasOwner", APP)
    wait_until(lambda: behind.gdbus_call(*has_owner, path=BUS_PATH).out == "(false,)\n", "its name is free again")
    for name in (f"{APP}.Below", "org.example.Apple", ECHO):
        refused(owner.python(f"bus.request_name('{name}')"))
    refused(owner.gdbus_call(ECHO, f"{ECHO}.Echo", "me"))
    assert "Echo me" not in guarded.calls()
