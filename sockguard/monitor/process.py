"""The monitor: holds the capabilities, answers control's few questions, starts processes, and says how they ended.

It never takes a value from control that it can find out itself: control names a proxy, and what that proxy listens
on comes from the file (plan.py); control passes a client's descriptor, and who that is the kernel says. A message
that is not on the list (privsep/messages.py) ends control, and with it everything.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from sockguard.config.read import Source, read_sources
from sockguard.config.runtime import runtime_folder
from sockguard.errors import EXIT_WORLD, ChannelError, ConfigError, Mistake, SockguardError
from sockguard.identity import peercred, process
from sockguard.identity.peer import OVERFLOW_ID, Unknown
from sockguard.monitor import impersonate, plan
from sockguard.monitor.disposal import ForkDisposal
from sockguard.privsep import activation, channel, foreign, listening, memfd, rights, spawn
from sockguard.privsep.leaving import leave
from sockguard.privsep.messages import (
    CONTROL_TO_MONITOR,
    Adopt,
    Bind,
    ConfigRefused,
    ConfigText,
    ConnectAs,
    Done,
    EndRelay,
    Facts,
    Failed,
    Message,
    NotConnected,
    ProcessFacts,
    ReadConfig,
    RelayExited,
    Signal,
    SpawnRelay,
    Unbind,
    in_packets,
)
from sockguard.privsep.runtime import prepare_runtime_folder
from sockguard.protocols.registry import PROTOCOLS

FALLBACK_RELAY_USER: Final = "nobody"
MAX_RELAYS: Final = 256
"""Relays alive at once, whatever control asks for."""

_SPAWNING: Final = frozenset({rights.CAP_SETUID, rights.CAP_SETGID})
_CAGING: Final = frozenset({rights.CAP_SYS_CHROOT})
"""Passed on to those that are started, who enter their cage with it."""

_USEFUL: Final = _SPAWNING | {rights.CAP_SYS_PTRACE, rights.CAP_CHOWN}
_END_SECONDS: Final = 1.0
_KILLED_SECONDS: Final = 0.5
"""How long is waited at the end: for control, and then for all relays; and again once they are killed."""


def is_useful() -> bool:
    """Is there privilege to hold? Without, everything runs under one uid and there is no monitor."""
    return bool(rights.effective_capabilities() & _USEFUL)


def main(config: str) -> NoReturn:
    """Run the daemon with this process as its monitor. Exits with control's exit status."""
    rights.harden("sockguard")
    leave(Monitor(config).run())


def _account(name: str) -> rights.Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = os.getgrouplist(name, entry.pw_gid) if name == rights.CONTROL_USER else []
    return rights.Account(entry.pw_uid, entry.pw_gid, tuple(sorted(set(groups))))


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
        self._relays: dict[int, tuple[int, int]] = {}  # pid → (control's number, its uid or -1)
        self._control_pid = 0
        self._control_account: rights.Account | None = None
        self._relay_account: rights.Account | None = None
        self._disposal = ForkDisposal()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[type[Message], Callable[..., tuple[Message, list[int]]]] = {
            ReadConfig: self._read_config,
            Bind: self._bind,
            Facts: self._facts,
            ConnectAs: self._connect_as,
            SpawnRelay: self._spawn_relay,
            EndRelay: self._end_relay,
            Unbind: self._unbind,
            Adopt: self._adopt,
        }

    def run(self) -> int:
        """Start control, serve it until it ends, clean up. Gives the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        if rights.effective_capabilities() >= _SPAWNING:
            self._control_account = _account(rights.CONTROL_USER)
            self._relay_account = _account(rights.RELAY_USER) or _account(FALLBACK_RELAY_USER)
        self._make_runtime_folder()
        self._control_pid, control = spawn.spawn_control(
            self._control_account, [str(self._relay_account.uid if self._relay_account else -1), self._config]
        )
        fault = ""
        try:
            self._serve(control)
        except ChannelError as error:
            fault = f"the control process sent {error}"
        # Not closed: connections of clients may wait in it, and this process would be the last that has them.
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)
        status = self._wait_for_control()
        self._wait_for_relays()
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
        account = self._control_account
        if folder is not None and account is not None:
            try:
                prepare_runtime_folder(folder, account.uid, account.gid)
            except SockguardError as error:
                print(f"sockguard: {error}", file=sys.stderr)
            else:
                os.environ["RUNTIME_DIRECTORY"] = folder

    def _serve(self, control: socket.socket) -> None:
        poll = select.poll()
        poll.register(control.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            try:
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
        try:
            try:
                answer, answer_fds = self._handlers[type(message)](message, *fds)
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
        if signal.SIGTERM in numbers:
            channel.send(control, Signal("terminate"))
        elif signal.SIGINT in numbers:  # RestartKillSignal= of the unit
            channel.send(control, Signal("restart"))
        if signal.SIGHUP in numbers:
            channel.send(control, Signal("reload"))
        self._disposal.reap()
        for pid, (relay, _) in list(self._relays.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._relays[pid]
                channel.send(control, RelayExited(relay, os.waitstatus_to_exitcode(status)))

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
        return Done(1), [sock.detach()]

    def _unbind(self, message: Unbind) -> tuple[Message, list[int]]:
        bound = self._bound.pop(message.proxy, None)
        if bound:
            bound.remove()
        return Done(0), []

    def _adopt(self, _: Adopt) -> tuple[Message, list[int]]:
        """From the first one on only what goes on being needed: binding in others' folders was the start's matter."""
        needed = _SPAWNING | _CAGING | plan.needed_capabilities(self._sources)
        if self._working_set is None:
            listening.end_kept(self._adopted)
            rights.keep_capabilities(needed)
            self._working_set = needed
        elif missing := needed - self._working_set:
            names = ", ".join(sorted(rights.CAPABILITY_NAMES[number] for number in missing))
            raise SockguardError(f"{names} was given up at the start, when no proxy needed it: restart sockguard")
        self._impersonations = plan.impersonations(self._sources)
        self._in_force = self._specs
        return Done(0), []

    def _facts(self, _: Facts, client: int) -> tuple[Message, list[int]]:
        with _socket(client) as sock:
            try:
                pid, _uid, _gid = peercred.credentials(sock)
                program, _cgroup = process.process_facts(sock, pid, want_executable=True, want_cgroup=False)
            except OSError as error:
                raise SockguardError(f"not a connection whose peer can be known: {error.strerror}") from error
        if isinstance(program, Unknown):
            return ProcessFacts("", program.reason), []
        return ProcessFacts(program, ""), []

    def _connect_as(self, message: ConnectAs, client: int) -> tuple[Message, list[int]]:
        """Who the client is, the kernel says here, too; what control made of it does not count."""
        target = self._impersonations.get(message.proxy)
        if target is None:
            raise SockguardError(f"proxy.{message.proxy[:64]}: no identity = 'client' as the monitor reads the file")
        with _socket(client) as sock:
            self._check_accepted(message.proxy, sock)
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
                target.backend, target.type, account, self._control_account, refuse_fds=target.refuse_fds
            )
        except OSError as error:
            raise SockguardError(f"the client's identity cannot be taken over: {error.strerror}") from error
        return (NotConnected(connected), []) if isinstance(connected, int) else (Done(1), [connected.detach()])

    def _check_accepted(self, proxy: str, sock: socket.socket) -> None:
        """Only what that proxy's listener has accepted, and that has its address, has a client as its peer.

        The peer of a listener is whoever listens, the peer of a socket that control has connected is the service
        there: either way somebody who never asked for anything, perhaps root.
        """
        spec = self._in_force.get(proxy)
        address = listening.address(spec, self._adopted) if spec else None
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family != socket.AF_UNIX or listens or not address or sock.getsockname() != address:
            raise SockguardError(f"proxy.{proxy[:64]}: not a connection that came in by its listening socket")

    def _spawn_relay(self, message: SpawnRelay) -> tuple[Message, list[int]]:
        if len(self._relays) >= MAX_RELAYS:
            raise SockguardError(f"{MAX_RELAYS} relays are alive: no more are started")
        if any(name not in PROTOCOLS for name in filter(None, message.protocols.split(","))):
            raise SockguardError("a relay for a protocol that there is not")
        account = self._relay_account
        try:
            pid, sock, pipe = spawn.spawn_relay(account, message.protocols)
        except OSError as error:
            raise SockguardError(f"a relay cannot be started: {error.strerror}") from error
        self._relays[pid] = (message.number, account.uid if account else -1)
        return Done(2), [sock.detach(), pipe]

    def _end_relay(self, message: EndRelay) -> tuple[Message, list[int]]:
        for pid, (number, uid) in self._relays.items():
            if number == message.number:
                self._kill(pid, uid)
        return Done(0), []

    def _kill(self, pid: int, uid: int) -> None:
        """SIGKILL to a child that is not reaped yet, so the pid is its own. As its uid, since no CAP_KILL is kept."""
        own = os.geteuid()
        try:
            if uid >= 0:
                os.seteuid(uid)
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            if os.geteuid() != own:
                os.seteuid(own)
                rights.stay_undumpable()

    # ── the end ──

    def _wait_for_control(self) -> int | None:
        """Its exit status; None when it does not end."""
        end = time.monotonic() + _END_SECONDS
        killed = False
        while True:
            found, status = os.waitpid(self._control_pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                if killed:
                    return None
                account = self._control_account
                self._kill(self._control_pid, account.uid if account else -1)
                killed, end = True, time.monotonic() + _KILLED_SECONDS
            time.sleep(0.01)

    def _wait_for_relays(self) -> None:
        """Relays end when control's end of their channel closes; one that does not is killed. One that does not end
        even so is left to the kernel.
        """
        end = time.monotonic() + _END_SECONDS
        killed = False
        while self._relays:
            for pid in list(self._relays):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._relays[pid]
            if self._relays and time.monotonic() > end:
                if killed:
                    return
                for pid, (_, uid) in self._relays.items():
                    self._kill(pid, uid)
                killed, end = True, time.monotonic() + _KILLED_SECONDS
            if self._relays:
                time.sleep(0.01)
