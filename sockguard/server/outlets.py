"""Where the daemon can be asked: the control socket and the metrics endpoint, opened before anything is promised."""

from __future__ import annotations

import os
import socket

import trio

from sockguard.config.runtime import control_path, metrics_place
from sockguard.config.settings import Daemon
from sockguard.errors import SockguardError
from sockguard.logs import log
from sockguard.privsep import foreign
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.listening import Bound
from sockguard.privsep.runtime import prepare_runtime_folder
from sockguard.server import control, metrics
from sockguard.server.metrics import Metrics, NullMetrics
from sockguard.server.operator import Operator


class Outlets:
    """Both sockets, as the file has them. A default place that cannot be had is said; a given one is a fault."""

    def __init__(self, daemon: Daemon, disposer: Disposer) -> None:
        self._daemon = daemon
        self._disposer = disposer
        self._control: socket.socket | None = None
        self._metrics: socket.socket | None = None
        self._bound: list[Bound] = []

    def open(self) -> None:
        """Raises SockguardError when a socket that the file names cannot be had."""
        try:
            path = control_path(self._daemon.control, os.environ, os.geteuid())
            if path is not None:
                if self._daemon.control is None:
                    prepare_runtime_folder(os.path.dirname(path), os.geteuid(), os.getegid())
                self._control, bound = control.listen(path)
                self._bound.append(bound)
        except SockguardError as error:
            if self._daemon.control is not None:
                raise
            log.warning("no control socket: status and reload will not find this daemon", reason=str(error))
        if self._daemon.metrics:
            self._metrics, at_path = metrics.listen(metrics_place(self._daemon.metrics))
            if at_path:
                self._bound.append(at_path)

    async def serve(self, operator: Operator, numbers: NullMetrics) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._control:
                nursery.start_soon(control.serve, self._control, operator, self._disposer)
            if self._metrics and isinstance(numbers, Metrics):
                nursery.start_soon(metrics.serve, self._metrics, numbers, self._disposer)

    def close(self) -> None:
        """Close what is open, and remove its files."""
        for sock in (self._control, self._metrics):
            if sock and sock.family == socket.AF_UNIX:
                foreign.end_listener(sock, self._disposer)
            elif sock:
                sock.close()
        for bound in self._bound:
            bound.remove()
