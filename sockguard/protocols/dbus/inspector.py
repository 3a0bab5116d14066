"""One connection to a D-Bus bus: authenticated on both sides, then taken apart into messages that are judged singly.

What passes goes on in the buffer that was judged; a body is waited for only where the bus itself is asked for
something, or says something.
"""

from __future__ import annotations

from typing import ClassVar, Final

from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, RequestRules, RequestVerdict, Source, Start
from sockguard.protocols.dbus import sasl
from sockguard.protocols.dbus.following import ANSWER_SECONDS
from sockguard.protocols.dbus.gate import Revoked, TooMuch
from sockguard.protocols.dbus.outcome import REPLACED, WAIT
from sockguard.protocols.dbus.traffic import MAX_HELD, Traffic
from sockguard.protocols.dbus.wire import FIXED, SERIAL_AT, Fields, Headers, Malformed, extent

AUTH_SECONDS: Final = 30.0
"""For both authentications; dbus-daemon's auth_timeout."""

MAX_JUDGED: Final = 128
"""Messages that are judged in one go; those behind them are left unused, and shown again when others had their turn."""


class DbusInspector:
    """See protocols.base.Inspector."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {"closed", "malformed", "backend_malformed", "auth_failed", "auth_refused", "timeout", "limit", "revoked"}
    )
    max_buffer = MAX_HELD

    def __init__(self, start: Start) -> None:
        self._effects = start.effects
        self._client_auth = sasl.ServerSide(start.uid, start.forward_fds)
        self._bus_auth = sasl.ClientSide(start.backend_uid)
        self._serving = False
        headers = start.shared.setdefault("headers", Headers())  # what one connection has read, others know again
        if not isinstance(headers, Headers):
            raise TypeError("what is shared is another's")
        self._read = headers.read
        self._traffic = Traffic(start)
        self._judges = self._traffic.judges
        self._skip = [0, 0]  # bytes still to come of a message that does not pass
        self._left = [0, 0]  # fds that came with what was left unused

    # ── the contract ──

    @property
    def busy(self) -> bool:
        return self._traffic.busy

    def start(self) -> None:
        self._effects.timer(AUTH_SECONDS)
        self._effects.send(BACKEND, self._bus_auth.greeting())

    def received(self, source: Source, data: memoryview, fds: int) -> int:
        """Judge the messages that are whole, and the last one too if its header is."""
        if not self._serving:
            return self._authenticate(source, data)
        if fds or self._skip[source]:
            return self._received(source, data, fds)
        try:
            found = self._read(data, 0)
        except Malformed:
            return self._received(source, data, 0)
        if found is None:
            return 0
        fields, serial, after, reply_to = found
        if after != len(data) or fields.unix_fds:
            return self._received(source, data, 0)
        traffic = self._traffic  # one message alone, as most come
        try:
            new_serial = self._judges[source](fields, serial, reply_to, data, 0, after)
        except (Malformed, TooMuch, Revoked) as error:
            self._end(source, error)
            return after
        if new_serial > 0:
            pack = fields.pack
            pack(data, SERIAL_AT, new_serial)
            self._effects.send(1 - source, data)
        elif new_serial == REPLACED:
            self._effects.send(BACKEND, traffic.head)
            if fields.length < after:
                self._effects.send(BACKEND, data[fields.length :])
        elif new_serial < 0:
            return 0
        if traffic.more:
            self._say_more()
        return after

    def _received(self, source: Source, data: memoryview, fds: int) -> int:
        """MAX_JUDGED messages, or with descriptors any number. What passes goes out in runs."""
        effects, read, to = self._effects, self._read, 1 - source
        traffic = self._traffic
        judge = self._judges[source]
        end, left = len(data), MAX_JUDGED
        at = run = self._skipped(source, end) if self._skip[source] else 0
        try:
            while at < end and (left or fds):
                left -= 1
                try:
                    found = read(data, at)
                except Malformed as error:
                    if source == CLIENT:
                        raise
                    after = at + self._unreadable(bytes(data[at : at + FIXED]), str(error))
                    if run < at:
                        effects.send(to, data[run:at])
                    fds -= self._drop_fds_of_unreadable(not at, after >= end, fds)
                    self._skip[source] = max(after - end, 0)
                    at = run = min(after, end)
                    continue
                if found is None:
                    break
                fields, serial, after, reply_to = found
                if fields.unix_fds and not self._fds_are_there(source, fields, fds, after - at, after <= end):
                    break
                new_serial = judge(fields, serial, reply_to, data, at, after)
                if new_serial > 0:
                    pack = fields.pack
                    pack(data, at + SERIAL_AT, new_serial)
                    if after <= end and not (fields.unix_fds or traffic.more):
                        at = after
                        continue
                elif new_serial == WAIT:
                    break
                if run < at:
                    effects.send(to, data[run:at])
                run = min(after, end)
                if new_serial == REPLACED:
                    effects.send(to, traffic.head, fields.unix_fds)
                    if at + fields.length < run:
                        effects.send(to, data[at + fields.length : run])
                    if after > end:
                        effects.passthrough(source, after - end)
                elif new_serial:
                    effects.send(to, data[at:run], fields.unix_fds)
                    if after > end:
                        effects.passthrough(source, after - end)
                else:
                    effects.drop_fds(source, fields.unix_fds)
                    self._skip[source] = max(after - end, 0)
                at = run
                fds -= fields.unix_fds
                if traffic.more:
                    self._say_more()
                    if traffic.monitors:
                        return at
            if run < at:
                effects.send(to, data[run:at] if run or at < end else data)
                run = at
            if fds and at == end:
                raise Malformed("descriptors came that belong to no message")
        except (Malformed, TooMuch, Revoked) as error:
            if run < at:
                effects.send(to, data[run:at])  # what came before is good
            self._end(source, error)
            return end
        self._left[source] = fds
        return at

    def _say_more(self) -> None:
        """What the client gets behind the message that was judged last."""
        traffic = self._traffic
        if traffic.then:
            self._effects.send(CLIENT, traffic.then)
            traffic.then = b""
        traffic.more = False
        if traffic.monitors:
            self._effects.passthrough(BACKEND, FOREVER)

    def _end(self, source: Source, error: Exception) -> None:
        if isinstance(error, TooMuch):
            self._effects.end("limit", str(error))
        elif isinstance(error, Revoked):
            self._effects.end("revoked", str(error))
        else:
            self._effects.end("malformed" if source == CLIENT else "backend_malformed", str(error))

    def eof(self, source: Source) -> None:
        refused = source == BACKEND and not self._serving
        self._effects.end("auth_refused" if refused else "closed", "the bus closed the connection" if refused else "")

    def answered(self, answer: object) -> None:
        raise AssertionError("nothing was asked")

    def timed_out(self) -> None:
        if self._serving:
            if self._traffic.following.start_timed_out():
                return
            self._effects.end("timeout", f"the bus did not answer within {ANSWER_SECONDS:g} s")
        else:
            self._effects.end("timeout", f"not authenticated within {AUTH_SECONDS:g} s")

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        self._traffic.new_rules(rules, enforce=enforce, tell_allowed=tell_allowed)

    # ── authentication ──

    def _authenticate(self, source: Source, data: memoryview) -> int:
        try:
            return self._from_bus(bytes(data)) if source == BACKEND else self._from_client(bytes(data))
        except Malformed as error:
            self._effects.end("auth_failed" if source == CLIENT else "backend_malformed", str(error))
        except sasl.Refused as error:
            self._effects.end("auth_refused", str(error))
        return len(data)

    def _from_bus(self, data: bytes) -> int:
        used = self._bus_auth.feed(data)
        if self._bus_auth.done:
            self._client_auth.ready(self._bus_auth.guid, self._bus_auth.fds)
            self._effects.resume(CLIENT)
        return used

    def _from_client(self, data: bytes) -> int:
        used, reply, begun = self._client_auth.feed(data)
        if reply:
            self._effects.send(CLIENT, reply)
        if self._client_auth.asks_fds and self._bus_auth.done:
            self._effects.send(BACKEND, self._bus_auth.negotiate())
        if begun:
            self._effects.send(BACKEND, b"BEGIN\r\n")
            self._effects.timer(0)
            self._serving = True
            self._traffic.takes_fds = self._client_auth.fds
        return used

    # ── messages ──

    def _skipped(self, source: Source, end: int) -> int:
        skipped = min(self._skip[source], end)
        self._skip[source] -= skipped
        return skipped

    def _unreadable(self, start: bytes, why: str) -> int:
        """Give the length of a message of the bus that cannot be read. Raises Malformed.

        Another peer can have the bus send some that it takes and we do not (header.py says which). That must not end
        the client's connection, and skipping one is safe: all readers agree on where it ends.
        """
        length = extent(start)
        self._traffic.tell_once("a message", RequestVerdict(False, None, f"it cannot be read: {why}"), denied=True)
        return length

    def _drop_fds_of_unreadable(self, first: bool, last: bool, fds: int) -> int:
        """Close the fds that came with it; give how many. first, last: of what is shown.

        A reading ends behind the bytes that brought fds (unix(7)). So fds that waited before belong to the first
        message that was not used then, and those that came now to the last that has come.
        """
        count = fds if last else self._left[BACKEND] if first else 0
        self._effects.drop_fds(BACKEND, count)
        return count

    def _fds_are_there(self, source: Source, fields: Fields, fds: int, length: int, whole: bool) -> bool:
        """False: they may still come with the rest of the message. Raises Malformed."""
        if source == CLIENT and not self._traffic.takes_fds:
            raise Malformed("descriptors, which were not agreed on")
        if fields.unix_fds > fds and (whole or length > MAX_HELD):
            raise Malformed("fewer descriptors came than the header says")
        return fields.unix_fds <= fds


INSPECTOR = DbusInspector
