"""Metrics in Prometheus' text format: counted as things happen, the rest asked of the daemon when somebody reads them.

Labels come from the file and from fixed lists only (proxies, rules, causes, outcomes), never from a client, so there
are no more series than the file makes. Where they are served from, and by what, is below; who may read them is whoever
reaches that place.
"""

from __future__ import annotations

import errno
import platform
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

import prometheus_client
import trio
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sockguard.config.runtime import PathPlace, TcpPlace
from sockguard.errors import SockguardError
from sockguard.privsep import listening
from sockguard.privsep.foreign import Disposer
from sockguard.privsep.listening import Bound
from sockguard.server.http_service import HttpService, Request, Response, error_response
from sockguard.server.operator import Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FRESH_SECONDS: Final = 1.0
"""How long one text is given out: whoever can read metrics could else keep the daemon busy writing them."""
MODE: Final = 0o666
"""Of a metrics socket with a path: its readers are those of a port on 127.0.0.1. Its folder can narrow that."""

_BACKLOG: Final = 16
_DECISION_BUCKETS: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0)
_CONNECT_BUCKETS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)


class NullMetrics:
    """What can be counted, and counts nothing: for metrics = "". Times in seconds; rule None: there is none."""

    def admitted(self, proxy: str, rule: str | None) -> None:
        """A connection was admitted, by that rule."""

    def would_deny(self, proxy: str, rule: str | None) -> None:
        """A permissive proxy let through what that rule would have denied."""

    def denied(self, proxy: str, cause: str, rule: str | None) -> None:
        """A connection was denied; the cause is that of its audit event."""

    def requested(self, proxy: str, verdict: str, rule: str | None) -> None:
        """A request was told of: denied, would_deny or allowed, by that rule."""

    def closed(self, proxy: str, outcome: str, from_client: int | None, from_backend: int | None) -> None:
        """An admitted connection has ended. Bytes: None where they cannot be known."""

    def decided(self, proxy: str, seconds: float) -> None:
        """How long it took from accept to the verdict."""

    def connected(self, proxy: str, seconds: float) -> None:
        """How long it took to connect to the backend."""

    def reloaded(self, ok: bool) -> None:
        """A reload was done, or refused."""

    def keep(self, rules: Mapping[str, Collection[str]]) -> None:
        """After a reload: forget what was counted for proxies and rules that there are no more."""

    def observe(self, status: Callable[[], Status]) -> None:
        """Where to ask, at each reading, for what is not counted here."""


class Metrics(NullMetrics):
    """Counts in a registry of its own."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter is told twice
        registry = self.registry = CollectorRegistry()
        self._admitted = _Children(
            Counter("sockguard_connections_admitted", "Admitted, by rule", ["proxy", "rule"], registry=registry)
        )
        self._would_deny = _Children(
            Counter("sockguard_connections_would_deny", "Denied but for enforce", ["proxy", "rule"], registry=registry)
        )
        self._denied = _Children(
            Counter("sockguard_connections_denied", "Denied, by cause", ["proxy", "cause", "rule"], registry=registry)
        )
        self._requests = _Children(
            Counter("sockguard_requests", "Told of, by verdict", ["proxy", "verdict", "rule"], registry=registry)
        )
        self._closed = _Children(
            Counter("sockguard_connections_closed", "Ended, by outcome", ["proxy", "outcome"], registry=registry)
        )
        self._bytes = _Children(
            Counter("sockguard_bytes", "Of ended connections, by sender", ["proxy", "sender"], registry=registry)
        )
        self._decided = _Children(
            Histogram(
                "sockguard_decision_seconds",
                "From accept to verdict",
                ["proxy"],
                registry=registry,
                buckets=_DECISION_BUCKETS,
            )
        )
        self._connected = _Children(
            Histogram(
                "sockguard_backend_connect_seconds",
                "Connecting to the backend",
                ["proxy"],
                registry=registry,
                buckets=_CONNECT_BUCKETS,
            )
        )
        self._reloads = _Children(Counter("sockguard_reloads", "Reloads, by result", ["result"], registry=registry))
        for result in ("done", "refused"):
            self._reloads.of(result)

    def admitted(self, proxy: str, rule: str | None) -> None:
        self._admitted.of(proxy, rule or "").inc()

    def would_deny(self, proxy: str, rule: str | None) -> None:
        self._would_deny.of(proxy, rule or "").inc()

    def denied(self, proxy: str, cause: str, rule: str | None) -> None:
        self._denied.of(proxy, cause, rule or "").inc()

    def requested(self, proxy: str, verdict: str, rule: str | None) -> None:
        self._requests.of(proxy, verdict, rule or "").inc()

    def closed(self, proxy: str, outcome: str, from_client: int | None, from_backend: int | None) -> None:
        self._closed.of(proxy, outcome).inc()
        self._bytes.of(proxy, "client").inc(from_client or 0)
        self._bytes.of(proxy, "backend").inc(from_backend or 0)

    def decided(self, proxy: str, seconds: float) -> None:
        self._decided.of(proxy).observe(seconds)

    def connected(self, proxy: str, seconds: float) -> None:
        self._connected.of(proxy).observe(seconds)

    def reloaded(self, ok: bool) -> None:
        self._reloads.of("done" if ok else "refused").inc()

    def keep(self, rules: Mapping[str, Collection[str]]) -> None:
        for by_proxy in (self._closed, self._bytes, self._decided, self._connected):
            by_proxy.keep(lambda labels: labels[0] in rules)
        for by_rule in (self._admitted, self._would_deny, self._denied, self._requests):
            by_rule.keep(lambda labels: labels[0] in rules and labels[-1] in ("", *rules[labels[0]]))

    def observe(self, status: Callable[[], Status]) -> None:
        self.registry.register(_Observed(status))

    def text(self) -> bytes:
        """All of it in Prometheus' text format, version 0.0.4."""
        return prometheus_client.generate_latest(self.registry)


class _Children:
    """A metric's children by their labels: the library's own look-up validates and locks each time."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Any] = {}

    def of(self, *labels: str) -> Any:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child

    def keep(self, wanted: Callable[[tuple[str, ...]], bool]) -> None:
        for labels in [labels for labels in self._children if not wanted(labels)]:
            del self._children[labels]
            self._metric.remove(*labels)


class _Observed(Collector):
    """What the daemon's status says, as metrics."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask a daemon that is not up yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        build = GaugeMetricFamily("sockguard_build_info", "Versions; always 1", labels=["version", "python"])
        build.add_metric([status["version"], platform.python_version()], 1)
        yield build
        for name, text, key in (
            ("sockguard_connections_open", "Open now", "connections"),
            ("sockguard_connections_limit", "max_connections", "max_connections"),
            ("sockguard_enforce", "0: the proxy is permissive", "enforce"),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["proxy"])
            for proxy in status["proxies"]:
                gauge.add_metric([proxy["name"]], proxy[key])  # type: ignore[literal-required]  # of the three above
            yield gauge
        yield GaugeMetricFamily("sockguard_relays", "Relays up", len(status["relays"]))
        yield CounterMetricFamily("sockguard_relay_restarts", "Relays replaced", status["relay_restarts"])
        audit = status["audit"]
        yield GaugeMetricFamily("sockguard_audit_queue_events", "Events not written yet", audit["queued"])
        yield GaugeMetricFamily("sockguard_audit_queue_limit_events", "Admission stops there", audit["max"])
        yield CounterMetricFamily("sockguard_audit_events", "Audit events", audit["seq"])
        yield from _lives(status)


def _lives(status: Status) -> Iterator[Metric]:
    started = _seconds(status["started"])
    last = status["last_reload"]
    yield GaugeMetricFamily("sockguard_start_time_seconds", "Unix time of the start", started)
    yield GaugeMetricFamily("sockguard_config_generation", "Generation of the rules in use", status["generation"])
    yield GaugeMetricFamily("sockguard_last_reload_success", "0: it was refused", 1 if last is None else last["ok"])
    yield GaugeMetricFamily(
        "sockguard_last_reload_timestamp_seconds",
        "Unix time of the last reload, or of the start",
        started if last is None else _seconds(last["time"]),
    )
    yield GaugeMetricFamily(
        "sockguard_separation_warnings",
        "Separations between processes that do not hold",
        len(status["separation_warnings"]),
    )


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def listen(place: TcpPlace | PathPlace) -> tuple[socket.socket, Bound | None]:
    """Bind where metrics are read. Raises SockguardError, naming [daemon] metrics and the place."""
    if isinstance(place, PathPlace):
        return listening.listen(
            listening.ListenSpec("", "path", place.path, MODE, None, None, refuse_fds=True, key="daemon.metrics"), {}
        )
    six = ":" in place.host
    sock = None
    try:
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((place.host, place.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock:
            sock.close()
        reason = error.strerror
        if error.errno == errno.EAFNOSUPPORT:
            reason = f"{reason}: systemd's unit allows IP by a drop-in, sockguard.service.d/metrics.conf.example"
        raise SockguardError(f"daemon.metrics: {place.host} port {place.port}: {reason}") from error
    return sock, None


async def serve(listener: socket.socket, metrics: Metrics, disposer: Disposer) -> None:
    """Serve GET /metrics for ever."""
    await HttpService("metrics", Reading(metrics).handle, disposer).serve(listener)


class Reading:
    """Answers GET /metrics; one text for all that ask within FRESH_SECONDS."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._text = b""
        self._made = float("-inf")

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        if request.path != "/metrics":
            return error_response(HTTPStatus.NOT_FOUND, "no such path: /metrics")
        if request.method not in ("GET", "HEAD"):
            return error_response(HTTPStatus.METHOD_NOT_ALLOWED, "/metrics takes GET, HEAD", allow="GET, HEAD")
        now = trio.current_time()
        if now - self._made >= FRESH_SECONDS:
            self._text = self._metrics.text()
            self._made = now
        return Response(HTTPStatus.OK, self._text, CONTENT_TYPE)
