"""A relay's life: give up rights, enter the cage, serve, and say why if it ends by a fault of its own.

It ends by _exit (boot.py): what it was handed is closed by the kernel then, which waits for no SO_LINGER.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from typing import Final

from sockguard import sandbox
from sockguard.carriers.master import Master
from sockguard.errors import SockguardError
from sockguard.privsep import rights, spawn
from sockguard.privsep.messages import MAX_FAULT, Fault, Hello
from sockguard.privsep.pipe import Outlet
from sockguard.protocols import registry
from sockguard.relay.loop import Loop

_SPARE_FILES: Final = 600
"""Open files that are not connections: the loop's own, one batch that arrives, and 253 fds in passing."""


def main(arguments: Sequence[str], master: Master) -> int:
    """``arguments``: the account to become (spawn.account_arguments), and the protocols that it must be able to read,
    joined by commas: no file can be opened later. The channel is descriptor 3, the pipe to control descriptor 4.
    master: of its carriers.
    """
    rights.harden("sockguard-relay")
    for protocol in filter(None, arguments[1].split(",")):
        registry.rules_of(protocol)
        registry.inspector_of(protocol)
    files = rights.raise_open_files()
    rights.become(spawn.parse_account(arguments[0]), keep=sandbox.TAKES)
    rights.die_with_parent(signal.SIGKILL)
    # A drain is control's to lead: a terminal's Ctrl-C and systemd's signal reach the whole group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for fd in (spawn.CHANNEL_FD, spawn.OUTLET_FD):
        os.set_inheritable(fd, False)
    control, outlet = socket.socket(fileno=spawn.CHANNEL_FD), Outlet(spawn.OUTLET_FD)
    try:
        os.dup2(0, 2)  # from here on nothing but messages: a relay that was taken over must not write to the log
        master.wait_ready()
        cage = sandbox.enter(channels=master.passing())
        outlet.send(Hello(max(files - _SPARE_FILES, 2) // 2, ",".join(cage.names())))
        gc.freeze()  # what is here by now stays: no collection looks at it again
        Loop(control, outlet, master, files).run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except (Exception, KeyboardInterrupt) as error:
        fault = str(error) if isinstance(error, SockguardError) else traceback.format_exc()
        fault = fault.encode("ascii", "backslashreplace").decode("ascii")  # else JSON makes it longer than a packet
        with contextlib.suppress(OSError):
            os.set_blocking(outlet.fd, True)
            outlet.send(Fault(fault[-MAX_FAULT:]))
        return 1
    return 0
