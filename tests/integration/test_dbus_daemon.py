"""dbus-daemon behind a stream proxy with `identity = "client"`: its three usual client libraries cannot tell.

busctl is systemd's sd-bus, gdbus and the service are GLib's, dbus-send and the other client libdbus. Their messages
carry file descriptors, and each side knows whom it talks to: by the bus's word, which has it from the kernel.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.identities import PYTHON, Person, account, group
from tests.support.servers import (
    Guarded,
    as_user,
    control_ids,
    ended,
    environment,
    guarded,
    private_folder,
    serving_process,
)

pytestmark = pytest.mark.root

BUS = """
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow send_destination="*"/><allow receive_type="method_call"/><allow receive_type="signal"/>
    <allow receive_type="method_return"/><allow receive_type="error"/>
  </policy>
  <policy user="{owner}"><allow own="org.example.Files"/></policy>
</busconfig>
"""

SERVICE = """
import os, sys
from gi.repository import Gio, GLib
INTERFACE = '''<node><interface name="org.example.Files">
  <method name="Read"><arg type="h" direction="in"/><arg type="s" direction="out"/></method>
  <method name="Change">
    <arg type="ah" direction="in"/><arg type="as" direction="out"/><arg type="h" direction="out"/>
  </method>
</interface></node>'''
def call(bus, sender, object_path, interface, method, parameters, invocation):
    files = invocation.get_message().get_unix_fd_list()
    if method == "Read":
        fd = files.get(parameters[0])
        invocation.return_value(GLib.Variant("(s)", (os.read(fd, 100).decode(),)))
        os.close(fd)
        return
    words = []
    for index in parameters[0]:
        fd = files.get(index)
        words.append(os.read(fd, 100).decode())
        os.pwrite(fd, b"seen", 0)
        os.close(fd)
    back = os.memfd_create("back")
    os.pwrite(back, b"from the service", 0)
    answer = Gio.UnixFDList.new_from_array([back])
    invocation.return_value_with_unix_fd_list(GLib.Variant("(ash)", (words, 0)), answer)
flags = Gio.DBusConnectionFlags
bus = Gio.DBusConnection.new_for_address_sync(
    sys.argv[1], flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None)
bus.register_object("/files", Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0], call, None, None)
Gio.bus_own_name_on_connection(bus, "org.example.Files", 0, lambda *_: print("owned", flush=True), None)
GLib.MainLoop().run()
"""

CLIENT = """
import json, os, sys
import dbus, dbus.bus
bus = dbus.bus.BusConnection(sys.argv[1])
driver = bus.get_object("org.freedesktop.DBus", "/org/freedesktop/DBus", introspect=False)
me = driver.GetConnectionCredentials(bus.get_unique_name(), dbus_interface="org.freedesktop.DBus")
fds = [os.memfd_create("file") for _ in range(16)]
for number, fd in enumerate(fds):
    os.pwrite(fd, b"file %d" % number, 0)
service = bus.get_object("org.example.Files", "/files", introspect=False)
words, back = service.Change(dbus.Array([dbus.types.UnixFd(fd) for fd in fds], "h"), dbus_interface="org.example.Files")
print(json.dumps({
    "uid": me["UnixUserID"], "groups": sorted(me["UnixGroupIDs"]),
    "words": words, "files": sorted({os.pread(fd, 4, 0).decode() for fd in fds}),
    "back": os.pread(back.take(), 100, 0).decode(),
    "open": len(os.listdir("/proc/self/fd")),
}))
"""

AT = "unix:path=PATH"
DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
BUSCTL = ("busctl", f"--address={AT}")
GDBUS = ("gdbus", "call", f"--address={AT}", "--dest=org.freedesktop.DBus", "--object-path=/org/freedesktop/DBus")
DBUS_SEND = ("dbus-send", f"--bus={AT}", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/")


class People(NamedTuple):
    """ann may own the service's name, bob is in the group team. bus is whom the bus runs as."""

    ann: Person
    bob: Person
    bus: Person
    team: int


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    mark = f"sgd{os.getpid()}"
    with ExitStack() as made:
        team = made.enter_context(group(f"{mark}team"))
        ann, bus = (made.enter_context(account(f"{mark}{name}")) for name in ("ann", "bus"))
        bob = made.enter_context(account(f"{mark}bob", "-G", str(team)))
        yield People(ann, bob, bus, team)


def other_proxy(folder: Path, name: str, options: str, who: str) -> str:
    """One more proxy to the same bus, on folder/NAME/bus."""
    (folder / name).mkdir()
    return (
        f'[proxy.{name}]\nlisten = "{folder}/{name}/bus"\nbackend = "{folder}/private/bus"\n{options}\n'
        f"allow = [{{ {who} }}]\n"
    )


@pytest.fixture
def guard(folder: Path, people: People) -> Iterator[Guarded]:
    private = private_folder(folder, people.bus.uid) / "bus"
    config = folder / "bus.conf"
    config.write_text(BUS.format(path=private, owner=people.ann.name))
    users = f"users = {[people.ann.uid, people.bob.uid, 0]}"
    more = f'identity = "client"\n[[proxy.server.allow]]\n{users}\n'
    more += other_proxy(folder, "plain", "", users)
    # A rule by executable has the monitor keep one more capability, which has to be there after each connect.
    who = f'{users}, executables = ["/usr/bin/*"]'
    more += other_proxy(folder, "root", 'identity = "client"\nallow_root_identity = true', who)
    command = [*as_user(people.bus.name), "dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
    with serving_process(command, private), guarded(folder, private.name, more) as server:
        yield server


def behind(guard: Guarded, proxy: str) -> Guarded:
    """The same bus through another proxy."""
    return dataclasses.replace(guard, public=guard.public.parents[1] / proxy / guard.public.name)


def test_calls_and_errors(guard: Guarded, people: People) -> None:
    """Answers and errors of the bus itself, short and long, are what they are on its own socket."""
    bob = as_user(people.bob.name)
    for command in (
        (*BUSCTL, "introspect", *DRIVER[:2]),
        (*BUSCTL, "call", *DRIVER, "GetId"),
        (*BUSCTL, "call", *DRIVER, "NoSuchMethod"),
        (*GDBUS, "--method=org.freedesktop.DBus.NameHasOwner", "org.freedesktop.DBus"),
        ("gdbus", "introspect", *GDBUS[2:], "--xml"),
        (*DBUS_SEND, "org.freedesktop.DBus.GetId"),
        (*DBUS_SEND, "org.freedesktop.DBus.GetNameOwner", "string:org.example.Nobody"),
    ):
        done = guard.compare(*bob, *command, uid=None)
        assert done.stdout or b"NoSuchMethod" in done.stderr or b"NameHasNoOwner" in done.stderr, done.stderr
    listed = guard.client(*bob, *BUSCTL, "list", uid=None)
    assert f" sockguard {people.bob.name} ".encode() in b" ".join(listed.stdout.split()), listed


def test_files_and_identities(folder: Path, guard: Guarded, people: People) -> None:
    """Files come over as they are, both ways, and who sent them the bus knows; it decides by that as always."""
    ann, bob, _, team = people
    word = folder / "word"
    word.write_text("a word")
    with ended(service(guard, ann)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"owned\n"
        expected = {
            "words": [f"file {number}" for number in range(16)],
            "files": ["seen"],
            "back": "from the service",
        }
        credentials = {"uid": bob.uid, "groups": sorted({bob.gid, team})}
        client = (PYTHON, "-I", "-c", CLIENT, AT)
        done = guard.compare(*as_user(bob.name), *client, uid=None)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout).items() >= (expected | credentials).items()
        read = ("gdbus", "call", f"--address={AT}", "--dest=org.example.Files", "--object-path=/files")
        in_shell = ("sh", "-c", 'exec "$@" 3<"$0"', str(word), *read, "--method=org.example.Files.Read", "3")
        assert guard.compare(*as_user(bob.name), *in_shell, uid=None).stdout == b"('a word',)\n"

        own = (*BUSCTL, "call", *DRIVER, "RequestName", "su", "org.example.Files", "0")
        assert guard.compare(*as_user(bob.name), *own, uid=None).stderr == b"Call failed: Access denied\n"

        # uid 0 is shown where the configuration says so, and nowhere else.
        asked = behind(guard, "root").client(*client, uid=None)
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout).items() >= (expected | {"uid": 0}).items()
        assert guard.client(*client, uid=None).returncode != 0
        assert guard.daemon.wait_for("connection_denied", lambda event: event["uid"] == 0)["cause"] == "identity"


def test_without_the_identity(guard: Guarded, people: People) -> None:
    """The bus takes a client for sockguard then: it refuses those that say who they are, and misjudges the others."""
    bob = as_user(people.bob.name)
    plain = behind(guard, "plain")
    for command in ((*GDBUS, "--method=org.freedesktop.DBus.GetId"), (*DBUS_SEND, "org.freedesktop.DBus.GetId")):
        done = plain.client(*bob, *command, uid=None)
        assert (done.returncode, done.stdout) == (1, b"")
    control = pwd.getpwuid(control_ids()[0]).pw_name
    listed = plain.client(*bob, *BUSCTL, "list", uid=None)  # sd-bus leaves it to the kernel to say who it is
    assert f" sockguard-ctl {control} ".encode() in b" ".join(listed.stdout.split())


def service(guard: Guarded, person: Person) -> subprocess.Popen[bytes]:
    """The service, as that user, through the guard as well."""
    command = [*as_user(person.name), PYTHON, "-I", "-c", SERVICE, f"unix:path={guard.public}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd="/")
