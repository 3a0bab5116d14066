"""The accept loop of one proxy: in bursts, and never ended by what one connection or one full table does."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import trio

from sockguard.logs import log

BURST: Final = 64
"""Connections accepted before everybody else has a turn."""

RESERVE: Final = 4 * BURST
"""Descriptors kept free for connecting to backends and for new relays: else clients that wait could take them all."""

_PAUSE_SECONDS: Final = 0.1
_SAID_SECONDS: Final = 10.0
_OUT_OF_SOMETHING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Arrival(NamedTuple):
    """A connection that came in by a proxy's listening socket. ``proof``: the monitor's word for that, where it is the
    monitor that has accepted it.
    """

    client: socket.socket
    proof: str = ""


async def serve(
    name: str,
    listener: socket.socket,
    arrive: Callable[[socket.socket, str], Awaitable[None]],
    drop: Callable[[socket.socket], None],
    burst_done: Callable[[], None],
    wait_for_room: Callable[[], Awaitable[None]],
    accept: Callable[[int], Awaitable[tuple[Sequence[Arrival], bool]]] | None = None,
) -> None:
    """Accept for ever. Clients wait in the kernel's backlog while there is no room or no descriptor to be had.

    arrive: given a connection and its proof
    drop: closes a connection that ``arrive`` could not deal with
    accept: gives at least one connection, and at most so many, and whether more may wait; or raises as accept(2) does.
    By default it is accepted here. What it gives arrives without a pause in between, if ``arrive`` makes none.
    """
    said = -_SAID_SECONDS
    while True:
        await trio.lowlevel.checkpoint_if_cancelled()  # who ends this has closed the listener already
        await trio.lowlevel.wait_readable(listener)
        await wait_for_room()
        fault = 0 if _has_files(listener) else errno.EMFILE
        left = 0 if fault else BURST
        more = True
        while more and left > 0:
            try:
                arrivals, more = await accept(left) if accept else ((Arrival(listener.accept()[0]),), True)
            except BlockingIOError:
                break
            except OSError as error:
                fault = error.errno or 0
                break
            left -= len(arrivals)
            await _let_arrive(name, arrivals, arrive, drop)
            await trio.lowlevel.checkpoint_if_cancelled()  # an admission need not have noticed
        burst_done()
        if fault and fault != errno.ECONNABORTED:
            if fault not in _OUT_OF_SOMETHING:
                raise OSError(fault, f"proxy.{name}.listen: {errno.errorcode.get(fault, fault)}")
            if trio.current_time() - said >= _SAID_SECONDS:
                said = trio.current_time()
                log.error("clients wait: no more open files can be had", proxy=name, errno=errno.errorcode[fault])
            await trio.sleep(_PAUSE_SECONDS)


async def _let_arrive(
    name: str,
    arrivals: Sequence[Arrival],
    arrive: Callable[[socket.socket, str], Awaitable[None]],
    drop: Callable[[socket.socket], None],
) -> None:
    for number, (client, proof) in enumerate(arrivals):
        try:
            await arrive(client, proof)
        except Exception:
            drop(client)
            log.exception("a connection was dropped by a fault of sockguard's own", proxy=name)
        except BaseException:
            for dropped, _ in arrivals[number:]:
                drop(dropped)
            raise


def _has_files(listener: socket.socket) -> bool:
    """Are more than RESERVE descriptors free (half of them, where there are few)? A duplicate gets the lowest free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = os.dup(listener.fileno())
    except OSError:
        return False
    os.close(lowest)
    return lowest < limit - min(RESERVE, limit // 2)
