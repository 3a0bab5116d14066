"""The cage of relays: what a relay that is taken over can still do is move bytes between the sockets it was handed.

Entered once, before the first byte from outside is read, and never left. Several parts, each of which holds without
the others (as OpenSSH's sandbox-*.c, several at a time); ``enter(())`` is the one that holds nothing. A part that
the kernel lacks is left out, and Cage says so; one that fails although the kernel has it ends the relay.

    empty_root         no path leads to a file or a socket of the machine      (chroot(2))
    no_new_privs       exec gains nothing: no set-uid, no file capabilities
    no_capabilities    none left, none to gain
    not_dumpable       no core; other processes of its uid cannot read or trace it
    limits             no new process, no byte into a file, no core            (getrlimit(2))
    landlock           no file by its path; no abstract socket, TCP or signal  (landlock(7))
    seccomp            a short list of system calls, and few of their arguments (seccomp(2))

What is left: the attacker's own connection, the other connections of this relay, and the channel, on which control
takes a few messages and believes none of them (privsep/messages.py). A client can also pass a descriptor of its
own: a datagram socket, over which sendmsg would name an address in memory, where no filter looks. The empty root stops
that for paths, Landlock for abstract names. The root takes CAP_SYS_CHROOT, which only the monitor can pass on; without
privilege Landlock holds paths, too, since its ABI 9. What nothing here stops: sending through a datagram socket that
the client has connected before it passed it. Such a message shows the uid of the process that sends it.
After this the interpreter can open no file, so whatever the relay needs has to be imported before.

Carriers, and the master that forks them (sockguard/carriers), have a cage of the same parts, in which a process can
fork.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from sockguard.errors import SockguardError
from sockguard.sandbox import landlock, limits, policy, root, seccomp, standing

RELAY: Final = policy.RELAY
CARRIERS: Final = policy.CARRIERS
"""What a cage is for."""

TAKES: Final = root.TAKES
"""The capabilities to have on entering, where they can be had (rights.become). None is left afterwards."""

_Enter = Callable[[policy.Kind, Collection[int]], int]

_PARTS: Final[dict[str, _Enter]] = {
    "empty_root": lambda *_: root.enter(),
    "no_new_privs": lambda *_: standing.no_new_privs(),
    "no_capabilities": lambda *_: standing.no_capabilities(),
    "not_dumpable": lambda *_: standing.not_dumpable(),
    "limits": lambda kind, _: limits.enter(kind),
    "landlock": lambda *_: landlock.enter(),
    "seccomp": seccomp.enter,  # last: it refuses what the others are made with
}

PARTS: Final = tuple(_PARTS)
"""The names of all parts, in the order in which they are entered."""


@dataclass(frozen=True, slots=True)
class Cage:
    """Which parts hold: 0 for one that does not. ``landlock`` is the number of its ABI, the others are 1."""

    empty_root: int = 0
    no_new_privs: int = 0
    no_capabilities: int = 0
    not_dumpable: int = 0
    limits: int = 0
    landlock: int = 0
    seccomp: int = 0

    def names(self) -> tuple[str, ...]:
        """The parts that hold, for people; as in "landlock 7"."""
        return tuple(f"{name} {self.landlock}" if name == "landlock" else name for name in PARTS if getattr(self, name))

    def absent(self) -> tuple[str, ...]:
        """The parts that do not hold."""
        return tuple(name for name in PARTS if not getattr(self, name))


def enter(parts: Collection[str] = PARTS, kind: policy.Kind = RELAY, channels: Collection[int] = ()) -> Cage:
    """Put this process, which must have a single thread, into the cage for that kind. There is no way back.

    channels: of a relay, the descriptors by which it passes others on to its carriers. It cannot close them.

    Raises SockguardError when a part cannot be entered although the kernel has it: then nothing may be served.
    """
    if not parts:
        return Cage()
    held = {}
    with standing.within_reach():
        standing.check_single_thread()  # Landlock and seccomp hold for the thread that enters and those it starts
        for name in _PARTS:
            if name in parts and name != "seccomp":
                held[name] = _enter_part(name, kind, channels)
    if "seccomp" in parts:
        held["seccomp"] = _enter_part("seccomp", kind, channels)
    return Cage(**held)


def _enter_part(name: str, kind: policy.Kind, channels: Collection[int]) -> int:
    try:
        return _PARTS[name](kind, channels)
    except (OSError, ValueError) as error:
        raise SockguardError(f"the cage cannot be closed: {name}: {error}") from error
