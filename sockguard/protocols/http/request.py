"""A request as it is judged: what the reader makes and the rules look at. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Request:
    """What a verdict may rest on.

    method        as it came; methods are case-sensitive (RFC 9110, 9.1)
    paths         every way in which a service may read the path, never empty: escapes of unreserved characters are
                  decoded; an escaped slash stands in one reading as "/" and in another as "%2F"; an escape of
                  another character that could stand there plainly (":", "@", "!$&'()*+,;=") likewise. The escapes
                  that remain have upper-case digits. What else services make of parameters (";...") and of escapes
                  of "%", "?" and "#" stands behind them (readings.py). An allow must match all of them, a deny any;
                  the first is the path as it is passed on. Of COPY and MOVE also those of their destination
    query         keys and values of the query, decoded as a form; None: a key without "=". Where "&" and ";" may both
                  separate, the pairs of both readings
    upgrade       protocols asked for by Upgrade, lower case (RFC 9110, 7.8); () when none is
    has_body      whether a body follows the head (one of no bytes, by Content-Length: 0, does not count)
    content_type  the value of Content-Type, as it came
    """

    method: str
    paths: tuple[str, ...]
    query: tuple[tuple[str, str | None], ...] = ()
    upgrade: tuple[str, ...] = ()
    has_body: bool = False
    content_type: str | None = None


def with_upgrade(request: Request) -> Request:
    """The request with the upgrade that a stream without one stands for, as Docker's attach does."""
    return request if request.upgrade else replace(request, upgrade=("tcp",))
