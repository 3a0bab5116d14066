"""A service on a bus, by dbus-python: run by the system's own interpreter, not imported by tests.

    dbus_service.py ADDRESS NAME... [--slowly] [--mark FILE]

Says "ready" once it owns all names; slowly: it takes its time before each but the first. Every name serves the same
object; its interface is org.example.Echo, and org.example.Secret for what must not come out.
"""

# mypy: ignore-errors
# dbus-python has no types, and is the system's: not there where these are checked.

import os
import sys
import time

import dbus
import dbus.bus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

ECHO, SECRET, PROPERTIES = "org.example.Echo", "org.example.Secret", dbus.PROPERTIES_IFACE


class Asked(dbus.DBusException):
    _dbus_error_name = "org.example.Error.Asked"
    include_traceback = False


class Service(dbus.service.Object):
    def __init__(self, bus: dbus.bus.BusConnection) -> None:
        super().__init__(bus, "/org/example")
        self._bus = bus
        self._calls = []
        self._held = {}
        self._values = {"Colour": "red"}

    @dbus.service.method(ECHO, in_signature="s", out_signature="s")
    def Echo(self, text):
        self._calls.append(f"Echo {text}")
        return text

    @dbus.service.method(ECHO, in_signature="su", out_signature="s", async_callbacks=("answer", "fail"))
    def EchoLater(self, text, milliseconds, answer, fail):
        self._calls.append(f"EchoLater {text}")
        GLib.timeout_add(int(milliseconds), lambda: bool(answer(text)))

    @dbus.service.method(ECHO, in_signature="s")
    def Fail(self, text):
        raise Asked(text)

    @dbus.service.method(ECHO, in_signature="u", out_signature="ay", byte_arrays=True)
    def Big(self, size):
        return dbus.ByteArray(b"x" * size)

    @dbus.service.method(ECHO, in_signature="ay", out_signature="u", byte_arrays=True)
    def Size(self, data):
        return len(data)

    @dbus.service.method(ECHO, in_signature="ah", out_signature="asah")
    def PassFds(self, files):
        """The first bytes of each file, and as many files back."""
        taken = [file.take() for file in files]
        words = [os.pread(fd, 100, 0).decode() for fd in taken]
        back = []
        for fd, word in zip(taken, words, strict=True):
            os.close(fd)
            new = os.memfd_create("back")
            os.pwrite(new, f"back {word}".encode(), 0)
            back.append(dbus.types.UnixFd(new))
            os.close(new)
        return dbus.Array(words, "s"), dbus.Array(back, "h")

    @dbus.service.method(ECHO, out_signature="u")
    def OpenFiles(self):
        return len(os.listdir("/proc/self/fd"))

    @dbus.service.method(ECHO, out_signature="as")
    def Calls(self):
        """What has come so far, of the methods that take text."""
        return dbus.Array(self._calls, "s")

    @dbus.service.method(ECHO, in_signature="s")
    def Emit(self, text):
        self.Said(text)

    @dbus.service.signal(ECHO, signature="s")
    def Said(self, text):
        pass

    @dbus.service.method(ECHO, in_signature="ss")
    def EmitTo(self, name, text):
        """The signal, to one connection alone."""
        message = dbus.lowlevel.SignalMessage("/org/example", ECHO, "Said")
        message.set_destination(name)
        message.append(text, signature="s")
        self._bus.send_message(message)

    @dbus.service.method(ECHO, in_signature="s")
    def Own(self, name):
        self._held[name] = dbus.service.BusName(name, self._bus, do_not_queue=True)

    @dbus.service.method(ECHO, in_signature="s")
    def Release(self, name):
        self._bus.release_name(name)
        self._held.pop(name, None)

    @dbus.service.method(ECHO, out_signature="su", sender_keyword="sender")
    def Sender(self, sender):
        """Who calls: the unique name and the uid that the bus knows."""
        return sender, self._bus.get_unix_user(sender)

    @dbus.service.method(SECRET, in_signature="s", out_signature="s")
    def Reveal(self, text):
        self._calls.append(f"Reveal {text}")
        return f"the secret of {text}"

    @dbus.service.signal(SECRET, signature="s")
    def Leaked(self, text):
        pass

    @dbus.service.method(ECHO, in_signature="s")
    def Leak(self, text):
        self.Leaked(text)

    @dbus.service.method(PROPERTIES, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return self._values[name]

    @dbus.service.method(PROPERTIES, in_signature="s", out_signature="a{sv}")
    def GetAll(self, interface):
        return dbus.Dictionary(self._values, "sv")

    @dbus.service.method(PROPERTIES, in_signature="ssv")
    def Set(self, interface, name, value):
        self._values[name] = value
        self.PropertiesChanged(interface, {name: value}, [])

    @dbus.service.signal(PROPERTIES, signature="sa{sv}as")
    def PropertiesChanged(self, interface, changed, gone):
        pass


def main() -> None:
    address, *names = sys.argv[1:]
    if "--mark" in names:
        *names, _, mark = names
        with open(mark, "w"):
            pass
    slowly = "--slowly" in names
    if slowly:
        names.remove("--slowly")
    dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
    bus = dbus.bus.BusConnection(address)
    service = Service(bus)
    for name in names:
        if slowly and name != names[0]:
            time.sleep(0.5)
        service.Own(name)
    print("ready", flush=True)
    loop = GLib.MainLoop()
    bus.call_on_disconnection(lambda _: loop.quit())
    loop.run()


main()
