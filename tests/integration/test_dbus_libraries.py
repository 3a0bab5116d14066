"""Two client libraries in Python that do not stand on libdbus: jeepney and dbus-fast, as reader and as owner.

Each runs in a process of its own, as the user whom it is for.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from jeepney import DBusAddress, MatchRule, message_bus, new_method_call  # type: ignore[import-untyped]
from jeepney.io.blocking import Proxy, open_dbus_connection  # type: ignore[import-untyped]

from tests.support.clients import as_user
from tests.support.dbus import BUS, BUS_PATH, ECHO, OBJECT, SECRET
from tests.support.dbus_stage import APP, GUARDED, People, Stage, Way, people, stages
from tests.support.identities import open_folder

pytestmark = pytest.mark.root

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"


@pytest.fixture(scope="module")
def who() -> Iterator[People]:
    with people() as made:
        yield made


@pytest.fixture(scope="module")
def ways(who: People) -> Iterator[dict[Way, Stage]]:
    with open_folder() as folder, stages(folder, who, GUARDED) as made:
        yield made


@pytest.fixture(params=GUARDED)
def guarded(request: pytest.FixtureRequest, ways: dict[Way, Stage]) -> Stage:
    return ways[request.param]


def by_jeepney(path: Path) -> str:
    """reader: a call, a denial, names, a signal that it makes its service emit; a file passed and one got back."""
    said: list[object] = []
    with open_dbus_connection(f"unix:path={path}", enable_fds=True) as connection:
        echo, secret = (DBusAddress(OBJECT, name, ECHO) for name in (ECHO, SECRET))
        for address in (echo, secret):
            reply = connection.send_and_get_reply(new_method_call(address, "Echo", "s", ("hi",)), timeout=20)
            said.append(reply.header.fields.get(4, reply.body))
        bus = Proxy(message_bus, connection)
        names = bus.ListNames()[0]
        said += [ECHO in names, SECRET in names, bus.NameHasOwner(SECRET)[0]]
        rule = MatchRule(type="signal", interface=ECHO, path=OBJECT)
        bus.AddMatch(rule)
        with connection.filter(rule) as heard:
            connection.send_and_get_reply(new_method_call(echo, "Emit", "s", ("ding",)), timeout=20)
            said.append(connection.recv_until_filtered(heard, timeout=20).body)
        fd = os.memfd_create("file")
        os.pwrite(fd, b"a file", 0)
        there, back = connection.send_and_get_reply(new_method_call(echo, "PassFds", "ah", ([fd],)), timeout=20).body
        said += [there, back[0].to_file("rb").read()]
        os.close(fd)
    return repr(said)


def test_jeepney(guarded: Stage) -> None:
    said = as_user(lambda: by_jeepney(guarded.path), guarded.uid("reader"))
    assert said == repr([("hi",), DENIED, True, False, False, ("ding",), ["a file"], b"back a file"])


async def _by_dbus_fast(path: Path) -> str:
    bus = await MessageBus(f"unix:path={path}").connect()
    said: list[object] = []

    async def call(name: str, path: str, interface: str, member: str, *body: Any) -> Message:
        signature = "s" * len(body)
        message = Message(name, path, interface, member, signature=signature, body=list(body))
        reply = await bus.call(message)
        assert reply is not None
        return reply

    for name in (ECHO, SECRET):
        reply = await call(name, OBJECT, ECHO, "Echo", "hi")
        said.append(reply.error_name if reply.message_type is MessageType.ERROR else reply.body)
    names = (await call(BUS, BUS_PATH, BUS, "ListNames")).body[0]
    said += [ECHO in names, SECRET in names]
    heard: asyncio.Queue[Message] = asyncio.Queue()
    bus.add_message_handler(lambda message: heard.put_nowait(message) if message.member == "Said" else None)
    await call(BUS, BUS_PATH, BUS, "AddMatch", f"type='signal',sender='{ECHO}'")
    await call(ECHO, OBJECT, ECHO, "Emit", "ding")
    said.append((await asyncio.wait_for(heard.get(), 20)).body)
    introspected = await bus.introspect(ECHO, OBJECT)
    proxy: Any = bus.get_proxy_object(ECHO, OBJECT, introspected).get_interface(ECHO)
    said.append(await proxy.call_echo("by introspection"))
    unanswered = Message(
        SECRET, OBJECT, SECRET, "Reveal", signature="s", body=["x"], flags=MessageFlag.NO_REPLY_EXPECTED
    )
    await bus.send(unanswered)
    said.append((await call(ECHO, OBJECT, ECHO, "Echo", "after")).body)
    bus.disconnect()
    return repr(said)


def test_dbus_fast(guarded: Stage) -> None:
    """reader: calls and a denial, one of a call that wants no answer, names, signals, a proxy by introspection."""
    said = as_user(lambda: asyncio.run(_by_dbus_fast(guarded.path)), guarded.uid("reader"))
    assert said == repr([["hi"], DENIED, True, False, ["ding"], "by introspection", ["after"]])
    assert "Reveal x" not in guarded.calls()


async def _served_by_dbus_fast(path: Path, ready: int, done: int) -> str:
    bus = await MessageBus(f"unix:path={path}").connect()

    def serve(message: Message) -> Message | None:
        if message.member == "Serve":
            return Message.new_method_return(message, "s", [f"served {message.body[0]}"])
        return None

    bus.add_message_handler(serve)
    owned = await bus.request_name(APP)
    try:
        await bus.request_name(f"{APP}.Below")
        refused = ""
    except Exception as error:
        refused = str(getattr(error, "type", error))
    os.write(ready, b"x")
    enough = asyncio.Event()
    asyncio.get_running_loop().add_reader(done, enough.set)
    await enough.wait()
    await bus.release_name(APP)
    bus.disconnect()
    return f"{owned.name} {refused}"


def test_dbus_fast_as_a_service(guarded: Stage) -> None:
    """owner: it owns its name and serves admin by it; the name below is refused."""
    (ready_read, ready), (done, done_write) = os.pipe(), os.pipe()
    said: list[str] = []
    work = threading.Thread(
        target=lambda: said.append(
            as_user(lambda: asyncio.run(_served_by_dbus_fast(guarded.path, ready, done)), guarded.uid("owner"))
        )
    )
    work.start()
    assert os.read(ready_read, 1) == b"x"
    answer = guarded.client("admin").gdbus_call(APP, f"{ECHO}.Serve", "admin")
    os.write(done_write, b"x")
    work.join(20)
    for fd in (ready_read, ready, done, done_write):
        os.close(fd)
    assert said == [f"PRIMARY_OWNER {DENIED}"]
    assert answer.out == "('served admin',)\n", answer
