"""What control cannot do by itself: asked of the monitor, or done with the process's own rights where there is none."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

import trio

from sockguard.config.read import Source, read_sources
from sockguard.config.settings import ListenKind, Proxy
from sockguard.errors import ChannelError, ConfigError, Mistake, SockguardError
from sockguard.identity import process
from sockguard.identity.peer import Unknown, unchecked
from sockguard.policy.decide import asks_about
from sockguard.privsep import activation, channel, listening, memfd, notification, spawn
from sockguard.privsep.messages import (
    MONITOR_TO_CONTROL,
    Accept,
    Accepted,
    Adopt,
    Alive,
    Bind,
    ConfigRefused,
    ConfigText,
    ConnectAs,
    Done,
    EndRelay,
    Facts,
    Failed,
    Heartbeat,
    Looked,
    Message,
    NotConnected,
    ProcessFacts,
    ReadConfig,
    RelayExited,
    Signal,
    SpawnRelay,
    Tell,
    Unbind,
    check_row,
)
from sockguard.server.listener import Arrival
from sockguard.server.looks import HANGS, LOOK_SECONDS, Looks


class Privileges(Protocol):
    """What both ways have in common. Every method raises SockguardError with a text for the administrator."""

    async def read_config(self) -> tuple[Source, ...]: ...

    def refuses(self, proxy: Proxy) -> str | None:
        """Why such a proxy cannot be guarded by the rights that there are, as far as that is known beforehand."""
        ...

    async def bind(self, proxy: Proxy) -> socket.socket: ...

    async def executable(self, proxy: Proxy, client: socket.socket, user: int) -> str | Unknown:
        """The program of a client, as far as the proxy's rules ask for it. user: whom it counts for (looks.py)."""
        ...

    async def accept(self, proxy: Proxy, most: int) -> list[Arrival]:
        """What has come in for a proxy with ``identity = "client"``, ``most`` at most. Raises OSError as accept(2)."""
        ...

    async def connect_as(self, proxy: Proxy, client: socket.socket, proof: str) -> socket.socket | int:
        """A connection to the backend that shows the client's identity, or the errno of connect(2)."""
        ...

    async def spawn_relay(self, number: int, protocols: str) -> tuple[socket.socket, int]:
        """Its channel, and the reading end of its pipe."""
        ...

    async def end_relay(self, number: int) -> None: ...

    async def unbind(self, name: str) -> None:
        """Remove the socket file of a proxy that is there no more."""
        ...

    async def adopt(self) -> None:
        """What was read last is in force."""
        ...

    async def tell(self, state: str, status: str) -> None:
        """Tell the service manager (notification.tell). Never fails."""
        ...

    async def keep_alive(self) -> None:
        """Until cancelled: feed the service manager's watchdog, if that is this process's to do."""
        ...

    def signals(self) -> AsyncIterator[str]:
        """ "terminate", "restart" or "reload", as they come; ends when the monitor has gone."""
        ...

    def relay_status(self, number: int) -> int | None:
        """How that relay ended (-9: by signal 9), where it is known by now."""
        ...

    def close(self) -> None: ...


END_SECONDS: Final = 2.0
"""For relays that were killed. One that the kernel keeps longer is left to it."""


_NO_IDENTITY: Final = "the client's identity cannot be shown without CAP_SETUID and CAP_SETGID"
_SIGNALS: Final = {signal.SIGHUP: "reload", signal.SIGTERM: "terminate", signal.SIGINT: "restart"}


class OwnRights:
    """No monitor: this process has no privilege to hold, and everything runs under its uid."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._adopted = activation.adopt()
        self._bound: dict[str, listening.Bound] = {}
        self._relays: dict[int, int] = {}
        self._not_stored: dict[str, socket.socket] = {}
        self._watchdog_seconds = notification.watchdog_seconds(os.environ)
        self._looks = Looks()
        self._started = False

    async def read_config(self) -> tuple[Source, ...]:
        return read_sources(self._config)

    def refuses(self, proxy: Proxy) -> str | None:
        if proxy.identity == "client":
            return f'proxy.{proxy.name}.identity: "client" needs CAP_SETUID and CAP_SETGID: start sockguard as root'
        return None

    async def bind(self, proxy: Proxy) -> socket.socket:
        if refusal := self.refuses(proxy):
            raise SockguardError(refusal)
        spec = listening.ListenSpec(
            proxy=proxy.name,
            kind=proxy.listen.kind.value,
            text=proxy.listen.text,
            mode=proxy.mode,
            owner=proxy.owner,
            group=proxy.group,
            refuse_fds=proxy.fds == "refuse",
            records=proxy.protocol == "seqpacket",
            credentials=proxy.sender == "same-user",
        )
        sock, bound = listening.listen(spec, self._adopted)
        if bound:
            self._bound[proxy.name] = bound
        if proxy.listen.kind is not ListenKind.ADOPTED:  # that one is systemd's anyway
            self._not_stored[proxy.name] = sock
        return sock

    async def executable(self, proxy: Proxy, client: socket.socket, user: int) -> str | Unknown:
        """Looked at in a thread. Nobody but users whose uid is this process's own can have it hang."""
        found = process.program(client)
        if isinstance(found, Unknown):
            return found
        try:
            if not asks_about(proxy.rules, found.path):
                return unchecked(found.path)
            pidfd = os.dup(found.pidfd)
        finally:
            os.close(found.pidfd)
        with trio.move_on_after(LOOK_SECONDS):
            async with self._looks.one(user):
                fault = await trio.to_thread.run_sync(_compare, pidfd, found, abandon_on_cancel=True)
            return fault or found.path
        return HANGS

    async def accept(self, proxy: Proxy, most: int) -> list[Arrival]:
        raise SockguardError(_NO_IDENTITY)

    async def connect_as(self, proxy: Proxy, client: socket.socket, proof: str) -> socket.socket | int:
        raise SockguardError(_NO_IDENTITY)

    async def spawn_relay(self, number: int, protocols: str) -> tuple[socket.socket, int]:
        try:
            pid, sock, pipe = spawn.spawn_relay(None, protocols)
        except OSError as error:
            raise SockguardError(f"a relay cannot be started: {error.strerror}") from error
        self._relays[number] = pid
        return sock, pipe

    async def end_relay(self, number: int) -> None:
        if number in self._relays and self.relay_status(number) is None:
            os.kill(self._relays[number], signal.SIGKILL)

    async def unbind(self, name: str) -> None:
        bound = self._bound.pop(name, None)
        if bound:
            bound.remove()
        if not self._not_stored.pop(name, None):
            notification.forget(listening.kept_name(name))

    async def adopt(self) -> None:
        """It has systemd keep what was bound since the last time over a restart."""
        self._started = True
        for name, sock in self._not_stored.items():
            notification.store(listening.kept_name(name), sock.fileno())
        self._not_stored.clear()
        listening.end_kept(self._adopted)

    async def tell(self, state: str, status: str) -> None:
        notification.tell(state, status)

    async def keep_alive(self) -> None:
        while self._watchdog_seconds is not None:
            notification.feed_watchdog()
            await trio.sleep(self._watchdog_seconds / 3)

    async def signals(self) -> AsyncIterator[str]:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                yield _SIGNALS[signal.Signals(number)]

    def relay_status(self, number: int) -> int | None:
        pid = self._relays[number]
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        del self._relays[number]
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        for number, pid in list(self._relays.items()):
            if self.relay_status(number) is None:
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + END_SECONDS
        while any(self.relay_status(number) is None for number in list(self._relays)) and time.monotonic() < end:
            time.sleep(0.01)
        listening.clean_up(self._bound.values(), os.environ, started=self._started)


@dataclass(slots=True, eq=False)
class _Look:
    """A look at a program's file that the monitor was asked for. ``user``: whom it counts for."""

    user: int
    found: str | Unknown = HANGS
    ended: trio.Event = field(default_factory=trio.Event)


def _compare(pidfd: int, found: process.Program) -> Unknown | None:
    try:
        return process.compare(pidfd, found.pid, found.path)
    finally:
        os.close(pidfd)


class FromMonitor:
    """Asks the monitor, one question at a time. ``run`` has to run meanwhile: it reads the monitor's side."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._turn = trio.Lock()
        self._answers, self._answered = trio.open_memory_channel[tuple[Message, list[int]] | None](1)
        self._told, self._tells = trio.open_memory_channel[str](16)
        self._statuses: dict[int, int] = {}
        self._numbers = count(1)
        self._looks = Looks()
        self._looking: dict[int, _Look] = {}

    async def run(self) -> None:
        """Read what the monitor says until it has gone."""
        async with self._answers, self._told:
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    received = channel.receive(self._sock, MONITOR_TO_CONTROL)
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    return
                if received is None:
                    return
                match received[0]:
                    case Signal(name):
                        with contextlib.suppress(trio.WouldBlock):  # sixteen untold ones say enough
                            self._told.send_nowait(name)
                    case RelayExited(number, status):
                        self._statuses[number] = status
                    case Looked(number, executable, unknown):
                        self._end_look(number, executable or Unknown(unknown))
                    case Heartbeat(number):
                        await self._say_alive(number)
                    case _:
                        self._answers.send_nowait(received)

    async def _say_alive(self, number: int) -> None:
        """The event loop goes round, since this task has had its turn."""
        while True:
            try:
                channel.send(self._sock, Alive(number))
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except (BrokenPipeError, ConnectionResetError):
                return
            else:
                return

    async def _ask(self, question: Message, *fds: int) -> tuple[Message, list[int]]:
        async with self._turn:
            try:
                channel.send(self._sock, question, fds)
                with trio.CancelScope(shield=True):  # else the next question would get this one's answer
                    answer = await self._answered.receive()
            except (OSError, trio.EndOfChannel) as error:
                raise ChannelError("the monitor has gone") from error
        if answer is None:
            raise ChannelError("the monitor has gone")
        if isinstance(answer[0], Failed):
            raise SockguardError(answer[0].text)
        return answer

    async def read_config(self) -> tuple[Source, ...]:
        answer, fds = await self._ask(ReadConfig())
        if isinstance(answer, ConfigRefused):
            rows = [check_row(row, str, int, str, str) for row in answer.rows]
            raise ConfigError([Mistake(str(a), int(b), str(c), str(d)) for a, b, c, d in rows])
        if not isinstance(answer, ConfigText):
            raise ChannelError(f"the monitor answered with {answer.TAG}")
        try:
            text = memfd.read(fds[0])
        finally:
            channel.close_all(fds)
        sources = []
        for row in answer.rows:
            path, size = check_row(row, str, int)
            sources.append(Source(str(path), text[: int(size)]))
            text = text[int(size) :]
        return tuple(sources)

    def refuses(self, proxy: Proxy) -> str | None:
        return None  # the monitor knows its rights, and says so when it is to bind or to adopt

    async def bind(self, proxy: Proxy) -> socket.socket:
        _, fds = await self._ask(Bind(proxy.name))
        return socket.socket(fileno=fds[0])

    async def executable(self, proxy: Proxy, client: socket.socket, user: int) -> str | Unknown:
        with trio.move_on_after(LOOK_SECONDS):
            await self._looks.begin(user)
            number = next(self._numbers)
            look = self._looking[number] = _Look(user)
            try:
                answer, _ = await self._ask(Facts(number, proxy.name), client.fileno())
            except BaseException:
                self._end_look(number)
                raise
            if not isinstance(answer, Done):  # else it counts until it has come to its end, whoever waits
                self._end_look(number)
                await trio.lowlevel.checkpoint_if_cancelled()  # nobody is let in by what nobody waits for
                if not isinstance(answer, ProcessFacts):
                    raise ChannelError(f"the monitor answered with {answer.TAG}")
                return unchecked(answer.unchecked) if answer.unchecked else Unknown(answer.unknown)
            await look.ended.wait()
            return look.found
        return HANGS

    def _end_look(self, number: int, found: str | Unknown = HANGS) -> None:
        look = self._looking.pop(number, None)
        if look:
            look.found = found
            look.ended.set()
            self._looks.end(look.user)

    async def accept(self, proxy: Proxy, most: int) -> list[Arrival]:
        answer, fds = await self._ask(Accept(proxy.name, most))
        if not isinstance(answer, Accepted):
            raise ChannelError(f"the monitor answered with {answer.TAG}")
        proofs = [str(check_row(row, str)[0]) for row in answer.rows]
        arrivals = [Arrival(socket.socket(fileno=fd), proof) for fd, proof in zip(fds, proofs, strict=True)]
        if not arrivals:
            raise OSError(answer.number or errno.EAGAIN, os.strerror(answer.number or errno.EAGAIN))
        return arrivals

    async def connect_as(self, proxy: Proxy, client: socket.socket, proof: str) -> socket.socket | int:
        answer, fds = await self._ask(ConnectAs(proxy.name, proof), client.fileno())
        if isinstance(answer, NotConnected):
            return answer.number
        return socket.socket(fileno=fds[0])

    async def spawn_relay(self, number: int, protocols: str) -> tuple[socket.socket, int]:
        _, (sock, pipe) = await self._ask(SpawnRelay(number, protocols))
        return socket.socket(fileno=sock), pipe

    async def end_relay(self, number: int) -> None:
        await self._ask(EndRelay(number))

    async def unbind(self, name: str) -> None:
        await self._ask(Unbind(name))

    async def adopt(self) -> None:
        await self._ask(Adopt())

    async def tell(self, state: str, status: str) -> None:
        with contextlib.suppress(SockguardError):  # the monitor has gone: there is nobody to tell
            await self._ask(Tell(state, status[: notification.MAX_STATUS + 1]))

    async def keep_alive(self) -> None:
        return  # the monitor does, as long as its pings are answered

    async def signals(self) -> AsyncIterator[str]:
        async for name in self._tells:
            yield name

    def relay_status(self, number: int) -> int | None:
        return self._statuses.pop(number, None)

    def close(self) -> None:
        self._sock.close()
