"""The monitor: holds the capabilities, answers control's few questions, starts processes, and says how they ended.

It never takes a value from control that it can find out itself: control names a proxy, and what that proxy listens
on comes from the file (plan.py); control passes a client's descriptor, and who that is the kernel says. A message
that is not on the list (privsep/messages.py) ends control, and with it everything.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from sockguard.config.read import Source, read_sources
from sockguard.config.runtime import runtime_folder
from sockguard.errors import EXIT_FILE, EXIT_WORLD, ChannelError, ConfigError, Mistake, SockguardError
from sockguard.identity import peercred, process
from sockguard.identity.peer import OVERFLOW_ID, Unknown
from sockguard.monitor import impersonate, plan
from sockguard.monitor.children import MAX_RELAYS, Children
from sockguard.monitor.disposal import ForkDisposal
from sockguard.monitor.doors import Doors
from sockguard.monitor.lookers import Lookers
from sockguard.monitor.watchdog import Watchdog
from sockguard.policy.patterns import executable_matches
from sockguard.privsep import activation, channel, foreign, listening, memfd, notification, rights
from sockguard.privsep.leaving import leave
from sockguard.privsep.messages import (
    CONTROL_TO_MONITOR,
    MAX_BATCH,
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
    Message,
    NotConnected,
    ProcessFacts,
    ReadConfig,
    RelayExited,
    Signal,
    SpawnRelay,
    Tell,
    Unbind,
    in_packets,
)
from sockguard.privsep.runtime import prepare_runtime_folder
from sockguard.protocols.registry import PROTOCOLS

_SPAWNING: Final = frozenset({rights.CAP_SETUID, rights.CAP_SETGID})
_CAGING: Final = frozenset({rights.CAP_SYS_CHROOT})
"""Passed on to those that are started, who enter their cage with it."""

_USEFUL: Final = _SPAWNING | {rights.CAP_SYS_PTRACE, rights.CAP_CHOWN}


def is_useful() -> bool:
    """Is there privilege to hold? Without, everything runs under one uid and there is no monitor."""
    return bool(rights.effective_capabilities() & _USEFUL)


def main(config: str) -> NoReturn:
    """Run the daemon with this process as its monitor. Exits with control's exit status."""
    rights.harden("sockguard")
    leave(Monitor(config).run())


def _socket(fd: int) -> socket.socket:
    """A copy of a descriptor that control has passed, as a socket. Raises SockguardError when it is none."""
    try:
        copy = os.dup(fd)
        try:
            return socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            raise
    except OSError as error:
        raise SockguardError(f"not a connection whose peer can be known: {error.strerror}") from error


def _refused(mistakes: Sequence[Mistake]) -> ConfigRefused:
    """These mistakes: as many as a message holds, and how many there are besides."""
    answer = next(in_packets(ConfigRefused, [(m.file, m.line, m.key, m.text) for m in mistakes]))
    told = len(answer.rows)
    if told == len(mistakes):
        return answer
    return ConfigRefused((*answer.rows[:-1], ("", 0, "", f"and {len(mistakes) - told + 1} more mistakes")))


class _HangsError(Exception):
    """The service manager says so: its watchdog was not fed."""


class Monitor:
    """One control process, its relays, and what was bound for them."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._adopted = activation.adopt()
        self._sources: tuple[Source, ...] = ()
        self._specs: dict[str, listening.ListenSpec] = {}
        self._impersonations: dict[str, plan.Impersonation] = {}
        self._in_force: dict[str, listening.ListenSpec] = {}
        self._bound: dict[str, listening.Bound] = {}
        self._working_set: frozenset[int] | None = None  # once the start is over
        self._children = Children()
        self._watchdog_seconds = notification.watchdog_seconds(os.environ)
        self._disposal = ForkDisposal()
        self._doors = Doors(self._disposal)
        self._poll = select.poll()
        self._lookers = Lookers(self._poll)
        self._executables: dict[str, frozenset[str]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[type[Message], Callable[..., tuple[Message, list[int]]]] = {
            ReadConfig: self._read_config,
            Bind: self._bind,
            Facts: self._facts,
            Accept: self._accept,
            ConnectAs: self._connect_as,
            SpawnRelay: self._spawn_relay,
            EndRelay: self._end_relay,
            Unbind: self._unbind,
            Adopt: self._adopt,
            Tell: self._tell,
        }

    def run(self) -> int:
        """Start control, serve it until it ends, clean up. Gives the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGABRT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        if rights.effective_capabilities() >= _SPAWNING:
            self._children.find_accounts()
        self._make_runtime_folder()
        control = self._children.start_control(self._config)
        fault = ""
        try:
            self._serve(control)
        except _HangsError:
            fault = "the control process does not answer"
        except ChannelError as error:
            fault = f"the control process sent {error}"
        # Not closed: connections of clients may wait in it, and this process would be the last that has them.
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)
        self._lookers.end()
        status = self._children.wait_for_control()
        self._children.wait_for_relays()
        if status == EXIT_FILE:  # RestartPreventExitStatus= of the unit: systemd lets go of what it has kept
            listening.end_kept(self._adopted, self._disposal)
        listening.clean_up(self._bound.values(), os.environ, started=self._working_set is not None)
        if status is None:
            fault = fault or "the control process does not end; it is left to the kernel"
        elif status < 0:
            fault = fault or f"the control process was ended by {signal.Signals(-status).name}"
        if fault:
            print(f"sockguard: {fault}", file=sys.stderr)
        return EXIT_WORLD if fault or status is None else status

    def _make_runtime_folder(self) -> None:
        """Where control makes its socket: root's folder, given to control's user."""
        folder = runtime_folder(os.environ, os.geteuid())
        account = self._children.control_account
        if folder is not None and account is not None:
            try:
                prepare_runtime_folder(folder, account.uid, account.gid)
            except SockguardError as error:
                print(f"sockguard: {error}", file=sys.stderr)
            else:
                os.environ["RUNTIME_DIRECTORY"] = folder

    def _serve(self, control: socket.socket) -> None:
        poll = self._poll
        poll.register(control.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        self._watchdog = Watchdog(
            self._watchdog_seconds, lambda number: channel.send(control, Heartbeat(number)), notification.feed_watchdog
        )
        while True:
            seconds = self._watchdog.seconds_left()
            ready = {fd for fd, _ in poll.poll(None if seconds is None else math.ceil(seconds * 1000))}
            try:
                self._watchdog.turn()
                for fd in [fd for fd in ready if fd in self._lookers]:
                    if looked := self._lookers.heard(fd):
                        channel.send(control, looked)
                if self._wake_read in ready:
                    self._on_signals(control)
                if control.fileno() in ready:
                    received = channel.receive(control, CONTROL_TO_MONITOR)
                    if received is None:
                        return
                    self._answer(control, *received)
            except (BrokenPipeError, ConnectionResetError):
                return

    def _answer(self, control: socket.socket, message: Message, fds: list[int]) -> None:
        if isinstance(message, Alive):
            self._watchdog.answered(message.number)
            return
        try:
            try:
                answer, answer_fds = self._handlers[type(message)](message, *fds)
            except ChannelError:
                raise
            except SockguardError as error:
                answer, answer_fds = Failed(str(error)), []
        finally:
            # Before the answer: until it has come, control has them too, so this is never the last copy.
            self._close(control, fds)
        channel.send(control, answer, answer_fds)
        self._close(control, answer_fds)

    def _close(self, control: socket.socket, fds: Sequence[int]) -> None:
        """Close copies of what control has. Where it may be gone, or may have closed its own already, what peers have
        sent could be waiting in them: then a process that exits is the last that has them.
        """
        poll = select.poll()
        poll.register(control.fileno(), 0)
        gone = bool(poll.poll(0))  # POLLHUP
        for fd in fds:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.close(fd)
                continue
            sock = socket.socket(fileno=fd)
            if gone:
                self._disposal.dispose((sock,))
            else:
                foreign.close_shared(sock, self._disposal)

    def _on_signals(self, control: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._wake_read, 1024)
        if signal.SIGABRT in numbers:  # WatchdogSignal= of the unit
            raise _HangsError
        if signal.SIGTERM in numbers:
            channel.send(control, Signal("terminate"))
        elif signal.SIGINT in numbers:  # RestartKillSignal= of the unit
            channel.send(control, Signal("restart"))
        if signal.SIGHUP in numbers:
            channel.send(control, Signal("reload"))
        self._disposal.reap()
        self._lookers.reap()
        for number, status in self._children.ended_relays():
            channel.send(control, RelayExited(number, status))

    # ── answers ──

    def _read_config(self, _: ReadConfig) -> tuple[Message, list[int]]:
        try:
            sources = read_sources(self._config)
        except ConfigError as error:
            return _refused(error.mistakes), []
        answer, *more = in_packets(ConfigText, [(source.path, len(source.text)) for source in sources])
        if more:
            text = f"the names of its {len(sources) - 1} files are too long together; use shorter ones, or fewer files"
            return _refused([Mistake(os.path.dirname(sources[-1].path), 0, "", text)]), []
        try:
            fd = memfd.write("sockguard-config", b"".join(source.text for source in sources))
        except OSError as error:
            raise SockguardError(f"the configuration cannot be passed on: {error.strerror}") from error
        self._sources = sources
        self._specs = plan.listen_specs(sources)
        return answer, [fd]

    def _bind(self, message: Bind) -> tuple[Message, list[int]]:
        spec = self._specs.get(message.proxy)
        if spec is None:
            raise SockguardError(f"proxy.{message.proxy[:64]}: not in the file as the monitor reads it")
        if message.proxy in plan.impersonations(self._sources) and not rights.effective_capabilities() >= _SPAWNING:
            raise SockguardError(f'proxy.{message.proxy}.identity: "client" needs CAP_SETUID and CAP_SETGID')
        sock, bound = listening.listen(spec, self._adopted)
        if bound:
            self._bound[message.proxy] = bound
        self._doors.keep(spec, sock)
        return Done(1), [sock.detach()]

    def _unbind(self, message: Unbind) -> tuple[Message, list[int]]:
        bound = self._bound.pop(message.proxy, None)
        if bound:
            bound.remove()
        self._doors.forget((message.proxy,))
        return Done(0), []

    def _adopt(self, _: Adopt) -> tuple[Message, list[int]]:
        """From the first one on only what goes on being needed: binding in others' folders was the start's matter."""
        needed = _SPAWNING | _CAGING | plan.needed_capabilities(self._sources)
        if self._working_set is None:
            listening.end_kept(self._adopted, self._disposal)
            rights.keep_capabilities(needed)
            self._working_set = needed
        elif missing := needed - self._working_set:
            names = ", ".join(sorted(rights.CAPABILITY_NAMES[number] for number in missing))
            raise SockguardError(f"{names} was given up at the start, when no proxy needed it: restart sockguard")
        self._doors.store()
        self._impersonations = plan.impersonations(self._sources)
        self._executables = plan.executables(self._sources)
        self._in_force = self._specs
        return Done(0), []

    def _tell(self, message: Tell) -> tuple[Message, list[int]]:
        if message.state not in notification.STATES:
            raise SockguardError("there is no such state")
        notification.tell(message.state, message.status)
        return Done(0), []

    def _facts(self, message: Facts, client: int) -> tuple[Message, list[int]]:
        with _socket(client) as sock:
            try:
                peercred.credentials(sock)
            except OSError as error:
                raise SockguardError(f"not a connection whose peer can be known: {error.strerror}") from error
            found = process.program(sock)
        if isinstance(found, Unknown):
            return ProcessFacts("", found.reason), []
        try:
            patterns = self._executables.get(message.proxy, ())
            if not any(executable_matches(pattern, found.path) for pattern in patterns):
                return ProcessFacts(found.path, ""), []
            if not self._lookers.look(message.number, found):
                return ProcessFacts("", "too many programs are being looked at"), []
        except OSError as error:
            return ProcessFacts("", f"the program cannot be looked at: {error.strerror}"), []
        finally:
            os.close(found.pidfd)
        return Done(0), []

    def _accept(self, message: Accept) -> tuple[Message, list[int]]:
        door = self._doors.get(message.proxy)
        if door is None or message.proxy not in self._impersonations:
            raise SockguardError(f"proxy.{message.proxy[:64]}: no identity = 'client' as the monitor reads the file")
        accepted, number = door.accept(min(message.most, MAX_BATCH))
        return Accepted(number, tuple((proof,) for _, proof in accepted)), [sock.detach() for sock, _ in accepted]

    def _connect_as(self, message: ConnectAs, client: int) -> tuple[Message, list[int]]:
        """Who the client is, the kernel says here, too; what control made of it does not count.

        Only for what the proxy's own listener has accepted: the peer of any other socket is somebody who never asked
        for anything, perhaps root.
        """
        target = self._impersonations.get(message.proxy)
        if target is None:
            raise SockguardError(f"proxy.{message.proxy[:64]}: no identity = 'client' as the monitor reads the file")
        door = self._doors.get(message.proxy)
        fits = door is not None and door.fits(self._in_force.get(message.proxy))
        with _socket(client) as sock:
            if door is None or not fits or not door.has_accepted(sock, message.proof):
                raise SockguardError(f"proxy.{message.proxy}: not a connection that the monitor accepted for it")
            try:
                _pid, uid, gid = peercred.credentials(sock)
            except OSError as error:
                raise SockguardError(f"not a connection whose peer can be known: {error.strerror}") from error
            groups = peercred.supplementary_groups(sock)
        if isinstance(groups, Unknown) or OVERFLOW_ID in (uid, gid, *groups):
            raise SockguardError("an id of the client has no mapping here: it cannot be shown to the service")
        if uid == 0 and not target.root:
            raise SockguardError("uid 0 is not shown to the service: allow_root_identity is false")
        account = rights.Account(uid, gid, tuple(groups))
        try:
            connected = impersonate.connect_as(
                target.backend, target.type, account, self._children.control_account, refuse_fds=target.refuse_fds
            )
        except OSError as error:
            raise SockguardError(f"the client's identity cannot be taken over: {error.strerror}") from error
        return (NotConnected(connected), []) if isinstance(connected, int) else (Done(1), [connected.detach()])

    def _spawn_relay(self, message: SpawnRelay) -> tuple[Message, list[int]]:
        if self._children.relays >= MAX_RELAYS:
            raise SockguardError(f"{MAX_RELAYS} relays are alive: no more are started")
        if any(name not in PROTOCOLS for name in filter(None, message.protocols.split(","))):
            raise SockguardError("a relay for a protocol that there is not")
        try:
            sock, pipe = self._children.start_relay(message.number, message.protocols)
        except OSError as error:
            raise SockguardError(f"a relay cannot be started: {error.strerror}") from error
        return Done(2), [sock.detach(), pipe]

    def _end_relay(self, message: EndRelay) -> tuple[Message, list[int]]:
        self._children.kill_relay(message.number)
        return Done(0), []
