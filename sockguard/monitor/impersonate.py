"""Connecting to a backend as a client: for the service, SO_PEERCRED and SO_PEERGROUPS show the client's ids.

The kernel takes a socket's peer credentials from the effective ids and supplementary groups of who calls connect(2),
and checks the path by the filesystem ids (credentials(7)). So for the length of one connect the monitor takes over the
first, and as the second those of control, which is whom the private folder lets in. (Supplementary groups are one set
for both: a folder that lets a group of the client's in lets this connect in, too.) The monitor has one thread; what
is taken over is put back and looked at before anything else is done, and if it is not as it was the process ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from dataclasses import dataclass
from typing import Final, NoReturn

from sockguard.privsep import foreign
from sockguard.privsep.rights import (
    CAP_SETGID,
    CAP_SETUID,
    Account,
    effective_capabilities,
    set_capabilities,
    stay_undumpable,
)

EXIT_IDENTITY_LOST: Final = 70
"""Exit status of a monitor that could not put its own identity back (EX_SOFTWARE of sysexits.h)."""

_KEEP: Final = -1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Identity:
    """Everything about this process that a connection as somebody else changes."""

    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    groups: tuple[int, ...]
    fsids: tuple[int, int]
    capabilities: frozenset[int]

    @classmethod
    def now(cls) -> _Identity:
        return cls(os.getresuid(), os.getresgid(), tuple(os.getgroups()), _fsids(), effective_capabilities())


def _fsids() -> tuple[int, int]:
    # setfsuid(2): an id that is not valid changes nothing and gives the one in force
    return _libc.setfsuid(_KEEP) & 0xFFFFFFFF, _libc.setfsgid(_KEEP) & 0xFFFFFFFF


def connect_as(
    path: str, kind: int, client: Account, files_as: Account | None, *, refuse_fds: bool = False
) -> socket.socket | int:
    """A connected, non-blocking socket to ``path``, or the errno of connect(2).

    kind      SOCK_STREAM or SOCK_SEQPACKET
    client    whom the service is to see
    refuse_fds  have the kernel refuse what the service would pass, where it can
    files_as  whose uid and gid the path is checked by (control's); None: this process's own

    Raises OSError when the identity could not be taken over (nothing has changed then).
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    if refuse_fds:
        foreign.refuse_all(sock)
    own = _Identity.now()
    fsuid, fsgid = (files_as.uid, files_as.gid) if files_as else own.fsids
    try:
        try:
            os.setgroups(client.groups)
            os.setresgid(_KEEP, client.gid, _KEEP)
            os.setresuid(_KEEP, client.uid, _KEEP)
            # A monitor that is root has just lost what is needed to become control for files (capabilities(7)).
            set_capabilities({CAP_SETUID, CAP_SETGID}, own.capabilities)
            _libc.setfsgid(ctypes.c_uint32(fsgid))
            _libc.setfsuid(ctypes.c_uint32(fsuid))
            if _fsids() != (fsuid, fsgid):
                raise PermissionError(errno.EPERM, "the filesystem ids could not be set")
            number = sock.connect_ex(path)
        finally:
            _put_back(own)
    except BaseException:
        sock.close()
        raise
    if number:
        sock.close()
        return number
    return sock


def _put_back(own: _Identity) -> None:
    try:
        os.setresuid(_KEEP, own.uids[1], _KEEP)  # first: it brings the capabilities back that the rest needs
        os.setresgid(_KEEP, own.gids[1], _KEEP)
        if tuple(os.getgroups()) != own.groups:  # else nothing was taken over, perhaps for want of the right to
            os.setgroups(own.groups)
        _libc.setfsgid(ctypes.c_uint32(own.fsids[1]))
        _libc.setfsuid(ctypes.c_uint32(own.fsids[0]))
        set_capabilities(own.capabilities, own.capabilities)  # a monitor that is not root has kept but two in effect
        stay_undumpable()
        restored = _Identity.now() == own
    except OSError:
        restored = False
    if not restored:
        _end()


def _end() -> NoReturn:
    """Not an exception, which somebody could catch: a monitor with a client's identity must do nothing more."""
    print("sockguard: the monitor could not put its own identity back; it ends", file=sys.stderr, flush=True)
    os._exit(EXIT_IDENTITY_LOST)
