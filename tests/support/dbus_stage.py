"""A bus with services on it and three users before it, each with rules of its own: on the bus's socket itself, or
through sockguard, which shows the bus the client or itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.support.daemon import Daemon, Event, running
from tests.support.dbus import ECHO, OTHER, SECRET, Bus, Client, chmod_tree_for_all, dbus_daemon, service
from tests.support.dbus_wire import Wire
from tests.support.identities import Person, account, wait_started
from tests.support.passing import open_files
from tests.support.servers import private_folder

Way: TypeAlias = Literal["direct", "client", "proxy"]
"""How a client reaches the bus: on its own socket, or through a proxy with that identity."""

APP: Final = "org.example.App"
GUARDED: Final[tuple[Way, ...]] = ("client", "proxy")
EVERY_WAY: Final[tuple[Way, ...]] = ("direct", *GUARDED)

RULES: Final = """
[[proxy.{proxy}.allow]]
name = "admin"
users = [{admin}, 0]

[[proxy.{proxy}.allow]]
name = "reader"
users = [{reader}]
dbus = [{{ destination = "org.example.Echo" }}, {{ receive = "org.example.Echo" }}]

[[proxy.{proxy}.allow]]
name = "owner"
users = [{owner}]
dbus = [{{ own = "org.example.App" }}]
"""

_PROXY: Final = """
[proxy.{proxy}]
listen = "{folder}/{proxy}"
backend = "{backend}"
protocol = "dbus"
identity = "{identity}"
{options}
"""


@dataclass(frozen=True)
class People:
    """admin: an allow without ``dbus``. reader: may call ECHO and receive from it. owner: may own APP, call nobody."""

    admin: Person
    reader: Person
    owner: Person


@contextlib.contextmanager
def people() -> Iterator[People]:
    mark = f"sgb{os.getpid()}"
    with ExitStack() as made:
        yield People(*(made.enter_context(account(f"{mark}{name}")) for name in ("admin", "reader", "owner")))


@dataclass
class Stage:
    """bus: behind the guard. daemon: None on the direct way. path: where clients connect."""

    folder: Path
    bus: Bus
    people: People
    path: Path
    daemon: Daemon | None = None
    way: Way = "direct"
    _wires: ExitStack = field(default_factory=ExitStack)

    def client(self, name: str) -> Client:
        """The usual programs, as that one of the people, or "root"."""
        return Client(self.path, None if name == "root" else self.uid(name))

    def uid(self, name: str) -> int:
        person: Person = getattr(self.people, name)
        return person.uid

    def wire(self, name: str, path: Path | None = None) -> Wire:
        """A connection as that one of the people; it is closed with the stage."""
        return self._wires.enter_context(Wire(path or self.path, 0 if name == "root" else self.uid(name)))

    def close(self) -> None:
        self._wires.close()

    def backstage(self) -> Client:
        """root, on the bus itself: to see what has arrived there."""
        return Client(self.bus.path)

    def calls(self) -> list[str]:
        """What has reached the service's methods that take text."""
        said = self.backstage().python(f"print(*service('{ECHO}').Calls(dbus_interface='{ECHO}'), sep='\\n')")
        assert said.good, said
        return said.out.split("\n")[:-1]

    def denied(self, request: str, name: str) -> Event:
        """The event of a denied request that begins so, of that one of the people."""
        return self.told("request_denied", request, name)

    def told(self, name: str, request: str, person: str) -> Event:
        """The event of that name about a request that begins so, of that one of the people."""
        assert self.daemon is not None
        uid, proxy = self.uid(person), self.path.name
        event = self.daemon.wait_for(
            name,
            lambda event: (event["uid"], event["proxy"]) == (uid, proxy) and event["request"].startswith(request),
        )
        assert event["protocol"] == "dbus"
        return event


def proxy_table(name: str, folder: Path, backend: Path, who: People, *, identity: str, options: str = "") -> str:
    """One proxy of the file, with RULES; it listens on folder/NAME."""
    if identity == "client":
        options += "\nallow_root_identity = true"
    table = _PROXY.format(proxy=name, folder=folder, backend=backend, identity=identity, options=options)
    return table + RULES.format(proxy=name, admin=who.admin.uid, reader=who.reader.uid, owner=who.owner.uid)


@contextlib.contextmanager
def stages(
    folder: Path, who: People, ways: Sequence[Way] = EVERY_WAY, *, options: str = "", more: str = ""
) -> Iterator[dict[Way, Stage]]:
    """dbus-daemon, run by root, with services that own ECHO with SECRET, and OTHER; each way is a proxy of that name.

    options: of each proxy. more: further tables of the file; "FOLDER" in it stands for the folder.
    """
    private = private_folder(folder, 0) / "bus"
    guarded = [way for way in ways if way != "direct"]
    with ExitStack() as made:
        bus = made.enter_context(dbus_daemon(private))
        made.enter_context(service(bus.address, ECHO, SECRET))
        made.enter_context(service(bus.address, OTHER))
        daemon = None
        if guarded:
            file = folder / "sockguard.toml"
            tables = [proxy_table(way, folder, private, who, identity=way, options=options) for way in guarded]
            file.write_text("\n".join(tables) + more.replace("FOLDER", str(folder)))
            daemon = made.enter_context(running(file, *(folder / way for way in guarded)))
            wait_started(daemon)
        if "direct" in ways:
            chmod_tree_for_all(private)
        found: dict[Way, Stage] = {}
        for way in ways:
            path, guard = (private, None) if way == "direct" else (folder / way, daemon)
            found[way] = Stage(folder, bus, who, path, guard, way)
            made.callback(found[way].close)
        yield found


@contextlib.contextmanager
def stage(folder: Path, who: People, way: Way, *, options: str = "", more: str = "") -> Iterator[Stage]:
    """One way alone."""
    with stages(folder, who, (way,), options=options, more=more) as found:
        yield found[way]


def files_when_idle(place: Stage) -> dict[int, int]:
    """How many descriptors the daemon's processes have open when nobody is connected. One connection has come and gone:
    with its end the start is over in control, too, and the monitor was not asked for anything."""
    assert place.daemon is not None
    Wire(place.path, place.uid("reader")).close()
    place.daemon.wait_for("connection_closed")
    return open_files(place.daemon)
