"""Between a client and a service that speak HTTP/1.1: each request judged, written anew, answered in its turn.

One request is under way at a time. The next is not read before the response to it is complete, so replies of our own
stand in their place, and nothing that follows can be taken for a part of what was judged. What a service is sent:
heads that were read and written anew, and bodies in a framing of our own. Tunnels are opened by the service's own
answer alone, and only where the rules allow an upgrade; they, and responses that have begun, end when new rules do not
allow them.

A client's half-close is not passed on, but for a tunnel: HTTP gives it no meaning, and Go's net/http (dockerd, podman)
takes it for a client that has gone, and cancels what it asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, cast

from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, RequestRules, RequestVerdict, Source, Start
from sockguard.protocols.http import limits
from sockguard.protocols.http.answers import Answers, Read
from sockguard.protocols.http.body import BadChunk, Stay, Transfer
from sockguard.protocols.http.grammar import BadLine, find_end
from sockguard.protocols.http.head import Fields, RequestHead, read_request
from sockguard.protocols.http.known import Known
from sockguard.protocols.http.responses import CONTINUE, Refused, reply
from sockguard.protocols.http.texts import describe

if TYPE_CHECKING:
    from sockguard.protocols.http.judge import HttpRules

_TOO_LARGE: Final = f"a body of more than {limits.MAX_JUDGED_BODY} bytes, and rules that look into it"

_ENCODED: Final = RequestVerdict(False, None, "rules look into the body, and it has a Content-Encoding")

_OUTCOMES: Final = {408: "timeout", 413: "limit", 431: "limit"}


class HttpInspector:
    """One connection."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {"closed", "malformed", "backend_malformed", "timeout", "limit", "upgrade_refused", "revoked"}
    )

    def __init__(self, start: Start, /) -> None:
        self.max_buffer = limits.MAX_HEAD
        self._effects = start.effects
        self._rules = cast("HttpRules", start.rules)
        self._enforce = start.enforce
        self._tell_allowed = start.tell_allowed
        self._step: Callable[[memoryview], int] = self._read_head
        self._looked = 0  # bytes of an incomplete head
        self._pending = 0  # bytes of the client that are shown and not used
        self._client_ended = False
        self._fields = cast("Known[Fields]", start.shared.setdefault("fields", Known()))
        self._answers = Answers(start.effects, self, cast("Known[Read]", start.shared.setdefault("responses", Known())))
        self._head: RequestHead | None = None  # whose body is judged or read away
        self._stay = Stay(0, 0, keep=False)
        self._discarded = 0
        self._upload: Transfer | None = None
        self._tunnel = self._over = False
        self._last_words = ("closed", "")

    @property
    def busy(self) -> bool:
        """Whether a response is awaited or on its way, or a tunnel is open: events and logs may be silent for hours."""
        return (self._answers.due and self._upload is None) or self._tunnel

    def start(self) -> None:
        """Nothing to do: the client speaks first, and an idle connection has no limit here."""

    def received(self, source: Source, data: memoryview, fds: int) -> int:
        if source == BACKEND:
            return self._answers.received(data)
        used, count = 0, 1
        while count and used < len(data):
            step = self._step
            count = step(data[used:])
            used += count
            if self._step in (self._read_head, step):
                break  # between two requests, or amid a body of many chunks, the loop may look after others
        self._pending = len(data) - used
        if self._client_ended and not (count and self._pending):
            self._no_more()
        return used

    def eof(self, source: Source) -> None:
        if source == BACKEND:
            self._answers.ended()
            return
        self._client_ended = True
        self._no_more()

    def answered(self, answer: Sequence[int | str]) -> None:
        """Nothing is asked."""

    def timed_out(self) -> None:
        if self._step == self._discard:
            self.end(*self._last_words)
        elif self._step == self._drain:
            self.end("timeout", "the client did not send the body of a denied request")
        else:
            self._refuse(408, "the client did not send a whole request in time")

    def new_rules(self, rules: RequestRules, *, enforce: bool, tell_allowed: bool) -> None:
        self._rules = cast("HttpRules", rules)
        self._enforce = enforce
        self._tell_allowed = tell_allowed
        if self._tunnel or (self._answers.due and self._answers.begun):
            self._judge_again()

    def _judge_again(self) -> None:
        """End a tunnel, or a response that has begun and may go on for ever, which these rules would not allow: by the
        head of its request alone, since no body is kept.
        """
        asked = self._answers.asked
        verdict = self._rules.judge(asked)
        if not verdict.allowed and (self._enforce or verdict.uncertain) and not self._over:
            self._effects.audit("denied", describe(asked), verdict)
            self.end("revoked", verdict.reason)

    # What the side of the service asks for

    @property
    def uploading(self) -> bool:
        """Whether the request under way has not come in full."""
        return self._upload is not None

    @property
    def pending(self) -> int:
        """Bytes that the client has sent ahead."""
        return self._pending

    def next_request(self) -> None:
        """The response is complete: go on with the client's next request."""
        if self._upload is not None:
            return
        self._step = self._read_head
        if self._pending:
            self._effects.resume(CLIENT)
        elif self._client_ended:
            self.end("closed")

    def open_tunnel(self) -> None:
        """What the client sends behind its request goes to the service unread, its half-close too."""
        self._tunnel = True
        self._judge_again()  # other rules may have come since the request
        if self._over or self._upload is not None:
            return
        self._effects.timer(0)
        self._step = self._hold
        if not self._client_ended:
            self._effects.passthrough(CLIENT, FOREVER)
        elif self._pending:
            self._step = self._pass_last
        else:
            self._effects.half_close(BACKEND)
        self._effects.resume(CLIENT)

    def close(self, outcome: str, why: str = "") -> None:
        """End once the client has read what was sent to it, or has had its time for that."""
        self._last_words = outcome, why
        self._answers.close()
        if self._client_ended:
            self.end(outcome, why)
            return
        self._step = self._discard
        self._effects.half_close(CLIENT)
        self._effects.timer(limits.LINGER_SECONDS)

    def end(self, outcome: str, why: str = "") -> None:
        """End now."""
        if not self._over:
            self._over = True
            self._step = self._discard
            self._answers.close()
            self._effects.end(outcome, why)

    # The steps: each is shown what has come of the client, and returns how many bytes are used

    def _read_head(self, data: memoryview) -> int:
        rules = self._rules
        if not self._looked and len(data) <= limits.MAX_KNOWN_HEAD and (known := rules.known.get(bytes(data))):
            return len(data) + self._act(known[0], known[1], data[:0], wire=known[2])
        try:
            if data[0] <= 0x20 or data[0] >= 0x7F:
                raise Refused(400, "no request")
            end = find_end(data, self._looked, b"\r\n\r\n", limits.MAX_HEAD)
            if not end:
                if not self._looked:
                    self._effects.timer(limits.HEAD_SECONDS)
                self._looked = len(data)
                return 0
            raw = bytes(data[:end])
            known = rules.known.get(raw)
            head = known[0] if known else read_request(raw, self._fields)
        except BadLine as error:
            return self._refuse(431 if error.too_long else 400, str(error))
        except Refused as refused:
            if refused.status == 403:
                self._effects.audit("denied", _first_words(data), RequestVerdict(False, None, str(refused)))
            return self._refuse(refused.status, str(refused))
        if self._looked:
            self._looked = 0
            self._effects.timer(0)
        if known is None:
            head = head._replace(request=rules.meant(head.request))
            if "h2c" in head.request.upgrade and not rules.allows_h2c(head.request):
                head = head.without_h2c()
            if not rules.wants_body(head.request):
                known = head, rules.judge(head.request), head.serialise(head.length)
                rules.known.keep(raw, known, private=head.private)
        if known is not None:
            return end + self._act(head, known[1], data[end:], wire=known[2])
        if head.encoded:
            return end + self._act(head, _ENCODED, data[end:], wire=head.serialise(head.length))
        if head.length is not None and head.length > limits.MAX_JUDGED_BODY:
            return self._refuse(413, _TOO_LARGE)
        self._keep(head, limits.MAX_JUDGED_BODY, self._judge_body)
        if head.expects and len(data) == end and head.request.has_body:
            self._effects.send(CLIENT, CONTINUE)
        return end if head.request.has_body else end + self._judge_body(data[end:])

    def _keep(self, head: RequestHead, limit: int, step: Callable[[memoryview], int]) -> None:
        """The body comes no further than here: ``step`` is shown it."""
        self._head = head
        self._stay = Stay(head.length or 0, limit, keep=step == self._judge_body)
        self._step = step
        if head.length:
            self._effects.timer(limits.HEAD_SECONDS)

    def _judge_body(self, data: memoryview) -> int:
        head = cast("RequestHead", self._head)
        try:
            used = self._stay.read(data)
        except BadChunk as error:
            return self._refuse(400, str(error))
        if self._stay.too_large:
            return self._refuse(413, _TOO_LARGE)
        if self._stay.done:
            body = bytes(self._stay.body)
            self._stay.body.clear()
            if head.length:
                self._effects.timer(0)
            rules = self._rules  # new ones may have come with the body on its way
            wanted = rules.wants_body(head.request)
            verdict = rules.judge_body(head.request, body) if wanted else rules.judge(head.request)
            self._act(head, verdict, data[:0], body)
        return used

    def _act(
        self, head: RequestHead, verdict: RequestVerdict, rest: memoryview, body: bytes | None = None, wire: bytes = b""
    ) -> int:
        """Do as the verdict says. Return how many bytes of ``rest`` are used.

        body: all of it, if it was judged. wire: if not, the head as it is passed on.
        """
        if not verdict.allowed and (self._enforce or verdict.uncertain):
            self._effects.audit("denied", head.text, verdict)
            return self._deny(head, verdict, read=body is not None)
        if not verdict.allowed:
            self._effects.audit("would_deny", head.text, verdict)
        elif self._tell_allowed:
            self._effects.audit("allowed", head.text, verdict)
        self._answers.expect(head, self._rules, body, enforce=self._enforce)
        self._step = self._hold
        if body is not None:
            length = head.length if head.length is None else len(body)
            self._effects.send(BACKEND, head.serialise(length) + body)
            return 0
        if not head.length:
            self._effects.send(BACKEND, wire)
            return 0
        if head.expects and not rest:  # not asked of the service: what it made of bytes behind its refusal is unknown
            self._effects.send(CLIENT, CONTINUE)
        self._upload = Transfer(self._effects, CLIENT, BACKEND, head.length)
        self._step = self._pass_body
        try:
            used = self._upload.read(rest, wire)
        except BadChunk as error:
            return self._refuse(400, str(error))
        self._uploaded()
        return used

    def _deny(self, head: RequestHead, verdict: RequestVerdict, *, read: bool) -> int:
        """Answer in the service's place, and read the body away if it is small."""
        length = 0 if read else head.length or 0
        # Behind a refused upgrade may come bytes of another protocol, and without 100 (Continue) a body or none.
        close = head.close or bool(head.protocols) or (head.expects and length != 0) or length > limits.MAX_DRAINED
        self._effects.send(CLIENT, reply(403, verdict.reason, close=close, to_head=head.request.method == "HEAD"))
        if close:
            self.close("closed")
        elif length:
            self._keep(head, limits.MAX_DRAINED, self._drain)
        else:
            self._step = self._read_head
        return 0

    def _drain(self, data: memoryview) -> int:
        try:
            used = self._stay.read(data)
        except BadChunk as error:
            self.close("malformed", str(error))
            return len(data)
        if self._stay.done:
            self._effects.timer(0)
            self._step = self._read_head
        elif self._stay.too_large:
            self.close("closed")
        return used

    def _pass_body(self, data: memoryview) -> int:
        try:
            used = cast("Transfer", self._upload).read(data)
        except BadChunk as error:
            return self._refuse(400, str(error))
        self._uploaded()
        return used

    def _uploaded(self) -> None:
        if not cast("Transfer", self._upload).done:
            return
        self._upload = None
        if self._tunnel:
            self.open_tunnel()
        else:
            self._step = self._hold if self._answers.due else self._read_head

    def _pass_last(self, data: memoryview) -> int:
        self._effects.send(BACKEND, data)
        self._effects.half_close(BACKEND)
        self._step = self._hold
        return len(data)

    def _hold(self, data: memoryview) -> int:
        return 0

    def _discard(self, data: memoryview) -> int:
        self._discarded += len(data)
        if self._discarded > limits.MAX_LINGER:
            self.end(*self._last_words)
        return len(data)

    def _refuse(self, status: int, why: str) -> int:
        """Answer what cannot be judged, unless an answer has begun, and close. Use up everything."""
        outcome = "closed" if status == 403 else _OUTCOMES.get(status, "malformed")
        if self._answers.begun and (self._answers.due or self._upload is not None):
            self.end(outcome, why)
        else:
            self._effects.send(CLIENT, reply(status, why, close=True))
            self.close(outcome, why)
        return 1

    def _no_more(self) -> None:
        """The client has ended, and all that it has sent is read as far as it can be."""
        if self._step == self._discard:
            self.end(*self._last_words)
        elif self._step == self._read_head:
            if self._pending:
                self._refuse(400, "the client ended within a request")
            else:
                self.end("closed")
        elif self._step == self._drain:
            self.end("malformed", "the client ended within the body of a denied request")
        elif self._step != self._hold:
            self._refuse(400, "the client ended within a body")


def _first_words(data: memoryview) -> str:
    """The method and the target of a request that no rule can allow, for people."""
    return " ".join(bytes(data[: limits.MAX_HEAD]).decode("latin-1").split(" ", 2)[:2])


INSPECTOR: Final = HttpInspector
