"""The side of the service: its responses to the one request that is under way, read strictly and written anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from sockguard.protocols.base import BACKEND, CLIENT, FOREVER, Effects, RequestVerdict
from sockguard.protocols.http.body import BadChunk, Transfer
from sockguard.protocols.http.grammar import BadLine, find_end
from sockguard.protocols.http.head import RequestHead
from sockguard.protocols.http.known import Known, has_credentials, part_length
from sockguard.protocols.http.limits import MAX_HEAD, MAX_INTERIM
from sockguard.protocols.http.request import Request, with_upgrade
from sockguard.protocols.http.response_head import TO_THE_END, ResponseHead, read_response
from sockguard.protocols.http.responses import BadResponse, reply

if TYPE_CHECKING:
    from sockguard.protocols.http.judge import HttpRules


def hijack_verdict(rules: HttpRules, request: Request, body: bytes | None, *, enforce: bool) -> RequestVerdict | None:
    """Say whether the service may make a tunnel of the connection without being asked to, as Docker's attach does:
    where the request would be allowed with the upgrade that this stands for. None: it may not.

    body: all of it, if it was judged; None else. Not ``enforce``: what would be denied may be done, and is told.
    """
    if request.method != "POST":
        return None
    asked = with_upgrade(request)
    if not rules.wants_body(asked):
        verdict = rules.judge(asked)
    elif body is None:
        return None
    else:
        verdict = rules.judge_body(asked, body)
    return verdict if verdict.allowed or not (enforce or verdict.uncertain) else None


Read = tuple[str, ResponseHead, bytes]
"""A response's head, read as the answer to that method, and as it is passed on where the connection stays open."""


class ClientSide(Protocol):
    """What is asked of the client's side when a response has come."""

    @property
    def uploading(self) -> bool: ...
    @property
    def pending(self) -> int: ...
    def next_request(self) -> None: ...
    def open_tunnel(self) -> None: ...
    def close(self, outcome: str, why: str = "") -> None: ...
    def end(self, outcome: str, why: str = "") -> None: ...


class Answers:
    """Responses of one connection.

    due    a request is under way whose response is not complete
    begun  some of the final response to it has been sent to the client
    asked  that request, with the upgrade that a tunnel without one stands for

    known  heads of responses: one service says much the same to everybody
    """

    def __init__(self, effects: Effects, client: ClientSide, known: Known[Read]) -> None:
        self._known = known
        self.due = self.begun = False
        self._effects = effects
        self._client = client
        self._step: Callable[[memoryview], int] = self._unasked
        self._request: RequestHead | None = None
        self.asked = Request("", ("/",))
        self._hijack: Callable[[], RequestVerdict | None] = lambda: None
        self._looked = 0
        self._interim = 0
        self._body: Transfer | None = None
        self._to_the_end = self._close = self._refused = False

    def expect(self, request: RequestHead, rules: HttpRules, body: bytes | None, *, enforce: bool) -> None:
        """A request goes to the service, by these rules. body: see hijack_verdict, which few responses ask."""
        self.due, self.begun = True, False
        self._request, self.asked = request, request.request
        self._hijack = partial(hijack_verdict, rules, request.request, None, enforce=enforce)
        if body is not None:  # asked now, so that the body need not be kept
            verdict = hijack_verdict(rules, request.request, body, enforce=enforce)
            self._hijack = lambda: verdict
        self._interim = 0
        self._step = self._read_head

    def received(self, data: memoryview) -> int:
        """Look at what has come of the service; return how many bytes are used."""
        used = 0
        while used < len(data):
            count = self._step(data[used:])
            if not count:
                break
            used += count
        return used

    def ended(self) -> None:
        """The service sends no more."""
        if self._step == self._discard:
            return
        if not self.due:
            self._client.close("closed")
        elif not self.begun:
            if self._looked:
                self._bad("the service ended within the head of a response")
            else:  # as it did to us: a client that knows an idle connection's end can try again
                self._client.close("backend_malformed", "the service ended without a response")
        elif self._to_the_end:
            self._client.close("upgrade_refused" if self._refused and self._client.pending else "closed")
        else:
            self._client.end("backend_malformed", "the service ended within the body of a response")

    def close(self) -> None:
        """Nothing more of the service matters."""
        self._step = self._discard

    def _unasked(self, data: memoryview) -> int:
        self._client.end("backend_malformed", "the service sent what nobody had asked for")
        return len(data)

    def _discard(self, data: memoryview) -> int:
        return len(data)

    def _read_head(self, data: memoryview) -> int:
        request = cast("RequestHead", self._request)
        try:
            end = find_end(data, self._looked, b"\r\n\r\n", MAX_HEAD)
            if not end:
                self._looked = len(data)
                return 0
            self._looked = 0
            head, wire = self._read(bytes(data[:end]), request.request.method)
            if head.status == 101:
                self._switch(request, head)
            elif head.status < 200:
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise BadResponse("too many interim responses")
                if not request.old:
                    self._effects.send(CLIENT, wire)
            else:
                end += self._final(request, head, wire, data[end:])
        except (BadLine, BadResponse, BadChunk) as error:
            self._bad(f"{error}, from the service")
            return len(data)
        return end

    def _read(self, raw: bytes, method: str) -> tuple[ResponseHead, bytes]:
        read = self._known.get(raw)
        if read is not None and read[0] == method:
            return read[1], read[2]
        key, length = part_length(raw)
        read = self._known.get(key)
        if read is not None and read[0] == method and length is not None:
            head = read[1]._replace(announced=length)
            return head, head.serialise(close=False, dechunked=False)
        head = read_response(raw, method)
        read = method, head, head.serialise(close=False, dechunked=False)
        private = has_credentials(raw)
        self._known.keep(raw, read, private=private)
        if length is not None and length == head.announced:  # else its status rules out any length but 0
            self._known.keep(key, read, private=private)
        return head, read[2]

    def _switch(self, request: RequestHead, head: ResponseHead) -> None:
        if not head.protocols or not {p.lower() for p in request.protocols}.issuperset(head.protocols):
            raise BadResponse("a switch to a protocol that was not asked for")
        self._effects.send(CLIENT, head.serialise(close=False, dechunked=False))
        self._open_tunnel()

    def _open_tunnel(self) -> None:
        self.due, self.begun = False, True
        self._step = self._hold
        self._effects.passthrough(BACKEND, FOREVER)
        self._client.open_tunnel()

    def _hold(self, data: memoryview) -> int:
        return 0

    def _final(self, request: RequestHead, head: ResponseHead, wire: bytes, rest: memoryview) -> int:
        """Send a final response's head, with what has come of its body; return how many bytes of that are used.

        wire: see Read.
        """
        length = head.length
        self._to_the_end = length == TO_THE_END
        raw = self._to_the_end and head.raw and head.status == 200
        hijack = self._hijack() if raw else None
        if hijack is not None:
            if not hijack.allowed:
                self._effects.audit("would_deny", f"{request.text} upgrade=tcp", hijack)
            self._effects.send(CLIENT, wire)
            self.asked = with_upgrade(self.asked)
            self._open_tunnel()
            return 0
        if raw and self._client.uploading:  # what is still to come of the body would be its input
            self._client.end("upgrade_refused", "a raw stream amid a request, without the permission to upgrade")
            return len(rest)
        # Bytes behind a request for another protocol may be of that protocol: they are no request.
        ahead = bool(request.protocols) and (self._client.uploading or self._client.pending > 0)
        self._refused = raw or bool(request.protocols)
        self._close = request.close or request.last or head.close or ahead
        if self._close:  # as with every request of HTTP/1.0
            wire = head.serialise(close=self._close, dechunked=request.old)
        if len(rest) == length:
            self._effects.send(CLIENT, wire + bytes(rest))
            self.begun = True
            self._done()
            return length
        self._body = Transfer(self._effects, BACKEND, CLIENT, length, dechunked=request.old)
        used = self._body.read(rest, wire, alone=True)
        self.begun = True
        self._step = self._pass_body
        self._sent()
        return used

    def _pass_body(self, data: memoryview) -> int:
        try:
            used = cast("Transfer", self._body).read(data, alone=True)
        except BadChunk as error:
            self._bad(f"{error}, from the service")
            return len(data)
        self._sent()
        return used

    def _sent(self) -> None:
        if cast("Transfer", self._body).done:
            self._done()

    def _done(self) -> None:
        self.due = False
        self._step = self._unasked
        if self._refused and (self._client.uploading or self._client.pending):
            self._client.close("upgrade_refused")
        elif self._close:
            self._client.close("closed")
        else:
            self._client.next_request()

    def _bad(self, why: str) -> None:
        """Answer in the service's place if nothing of its answer has been sent; end in either case."""
        request = self._request
        if not self.begun and request is not None:
            self._effects.send(CLIENT, reply(502, why, close=True, to_head=request.request.method == "HEAD"))
            self._client.close("backend_malformed", why)
        else:
            self._client.end("backend_malformed", why)
