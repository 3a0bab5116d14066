"""Metrics: what is counted is told, in as many series as the file makes, and no oftener written than bounded."""

from __future__ import annotations

import inspect
import json
import re
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from sockguard.config.runtime import PathPlace, TcpPlace
from sockguard.errors import SockguardError
from sockguard.server import metrics
from sockguard.server.http_service import Request
from sockguard.server.metrics import FRESH_SECONDS, Metrics, NullMetrics, Reading
from sockguard.server.operator import Status
from tests.support.operator import MemoryDisposer, status

DASHBOARD = Path(__file__).resolve().parents[3] / "packaging/grafana/sockguard.json"

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parsed(text: bytes) -> Samples:
    """Samples by name and labels, as Prometheus' own parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
def busy() -> Metrics:
    """Each thing has happened once or twice, and the daemon's status is there."""
    made = Metrics()
    made.observe(status)
    made.admitted("docker", "operators")
    made.admitted("docker", "operators")
    made.admitted("docker", None)
    made.would_deny("docker", "docker.deny[0]")
    made.denied("docker", "rules", "docker.deny[0]")
    made.denied("docker", "limit", None)
    made.requested("docker", "denied", "docker.deny[0]")
    made.requested("docker", "would_deny", None)
    made.requested("docker", "allowed", "operators")
    made.closed("docker", "closed", 100, 2000)
    made.closed("docker", "relay_lost", None, None)
    made.decided("docker", 0.0002)
    made.connected("docker", 0.2)
    made.reloaded(False)
    return made


def test_what_is_counted(busy: Metrics) -> None:
    """Each count has its labels; a rule that is not there is an empty one; unknown bytes add nothing."""
    found = parsed(busy.text())
    proxy = ("proxy", "docker")
    assert found["sockguard_connections_admitted_total"] == {
        (proxy, ("rule", "operators")): 2,
        (proxy, ("rule", "")): 1,
    }
    assert found["sockguard_connections_would_deny_total"] == {(proxy, ("rule", "docker.deny[0]")): 1}
    assert found["sockguard_connections_denied_total"] == {
        (("cause", "rules"), proxy, ("rule", "docker.deny[0]")): 1,
        (("cause", "limit"), proxy, ("rule", "")): 1,
    }
    assert found["sockguard_requests_total"] == {
        (proxy, ("rule", "docker.deny[0]"), ("verdict", "denied")): 1,
        (proxy, ("rule", ""), ("verdict", "would_deny")): 1,
        (proxy, ("rule", "operators"), ("verdict", "allowed")): 1,
    }
    assert found["sockguard_connections_closed_total"] == {
        (("outcome", "closed"), proxy): 1,
        (("outcome", "relay_lost"), proxy): 1,
    }
    assert found["sockguard_bytes_total"] == {(proxy, ("sender", "client")): 100, (proxy, ("sender", "backend")): 2000}
    assert found["sockguard_decision_seconds_bucket"][(("le", "0.00025"), proxy)] == 1
    assert found["sockguard_decision_seconds_bucket"][(("le", "0.0001"), proxy)] == 0
    assert found["sockguard_backend_connect_seconds_sum"] == {(proxy,): 0.2}
    assert found["sockguard_reloads_total"] == {(("result", "done"),): 0, (("result", "refused"),): 1}
    assert not [name for name in found if name.endswith("_created")]


def test_what_is_observed(busy: Metrics) -> None:
    """What the daemon's status says is asked for at each reading."""
    now = status()
    made = Metrics()
    made.observe(lambda: now)
    found = parsed(made.text())
    assert found["sockguard_connections_open"] == {(("proxy", "docker"),): 3}
    assert found["sockguard_enforce"] == {(("proxy", "docker"),): 1}
    assert found["sockguard_relays"] == {(): 1}
    assert found["sockguard_audit_events_total"] == {(): 254}
    assert found["sockguard_last_reload_success"] == {(): 1}
    assert found["sockguard_last_reload_timestamp_seconds"] == {(): 1772362800}
    now["last_reload"] = {"time": "2026-03-01T12:00:00Z", "ok": False, "errors": ["x"]}
    now["relays"] = []
    found = parsed(made.text())
    assert (found["sockguard_last_reload_success"], found["sockguard_relays"]) == ({(): 0}, {(): 0})
    now["last_reload"] = None
    assert parsed(made.text())["sockguard_last_reload_success"] == {(): 1}


def test_a_name_is_a_label_and_no_more() -> None:
    """Whatever a rule is called, it makes one line."""
    made = Metrics()
    made.admitted("p", 'x"} 1\nsockguard_relays 99\n# \\')
    assert list(parsed(made.text())["sockguard_connections_admitted_total"].values()) == [1]
    assert "sockguard_relays" not in parsed(made.text())


def test_what_a_reload_forgets(busy: Metrics) -> None:
    """Proxies and rules that the file has no more are forgotten; the others' counts go on."""
    busy.admitted("old", "gone")
    busy.closed("old", "closed", 1, 1)
    busy.admitted("docker", "gone")
    busy.requested("docker", "denied", "gone")
    busy.requested("old", "denied", None)
    busy.keep({"docker": ["operators"]})
    busy.admitted("docker", "operators")
    found = parsed(busy.text())
    proxy = ("proxy", "docker")
    assert found["sockguard_connections_admitted_total"] == {
        (proxy, ("rule", "operators")): 3,
        (proxy, ("rule", "")): 1,
    }
    assert found["sockguard_connections_denied_total"] == {(("cause", "limit"), proxy, ("rule", "")): 1}
    assert set(found["sockguard_requests_total"]) == {
        (proxy, ("rule", ""), ("verdict", "would_deny")),
        (proxy, ("rule", "operators"), ("verdict", "allowed")),
    }
    assert b'"old"' not in busy.text()


def test_both_have_the_same_methods() -> None:
    """NullMetrics stands wherever Metrics does."""
    for name, method in inspect.getmembers(NullMetrics, inspect.isfunction):
        assert inspect.signature(method) == inspect.signature(getattr(Metrics, name)), name
    extra = {name for name in vars(Metrics) if not name.startswith("_")} - set(vars(NullMetrics))
    assert extra == {"text"}


def test_the_dashboard_names_metrics_that_there_are(busy: Metrics) -> None:
    """Every metric and label in the Grafana dashboard is one of ours, and every panel has something to show."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = parsed(busy.text())
    panels = [panel for panel in dashboard["panels"] if panel["targets"]]
    assert len(panels) == len(dashboard["panels"])
    assert len({panel["id"] for panel in panels}) == len(panels)
    text = [target["expr"] for panel in panels for target in panel["targets"]]
    text += [variable["query"] for variable in dashboard["templating"]["list"]]
    named = {name for expression in text for name in re.findall(r"sockguard_\w+", expression)}
    assert named <= set(found), named - set(found)
    labels = {label for by in found.values() for key in by for label, _ in key} | {"instance"}
    for expression in text:
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert set(group.split(", ")) <= labels, expression


# ── serving ──


async def get(stream: trio.SocketStream, target: str = "/metrics") -> bytes:
    answer = b""
    async with stream:
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async for data in stream:
            answer += data
    return answer


async def test_over_tcp(busy: Metrics) -> None:
    """A scrape of 127.0.0.1, as Prometheus makes it; other paths are not there."""
    with socket.socket() as held:
        # Bound, and not listening: who sets SO_REUSEADDR, as metrics.listen does, can have the port, and nobody else.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        listener, bound = metrics.listen(TcpPlace("127.0.0.1", port))
    assert bound is None
    with listener:
        with pytest.raises(
            SockguardError, match=rf"^daemon\.metrics: 127\.0\.0\.1 port {port}: Address already in use$"
        ):
            metrics.listen(TcpPlace("127.0.0.1", port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metrics.serve, listener, busy, MemoryDisposer())
            head, _, body = (await get(await trio.open_tcp_stream("127.0.0.1", port))).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"Content-Type: text/plain; version=0.0.4" in head
            assert parsed(body)["sockguard_relays"] == {(): 1}
            assert b" 404 " in await get(await trio.open_tcp_stream("127.0.0.1", port), "/status")
            nursery.cancel_scope.cancel()


async def test_over_a_path(busy: Metrics, folder: Path) -> None:
    """A socket path serves the same, to whoever may reach it."""
    path = folder / "metrics.sock"
    listener, bound = metrics.listen(PathPlace(str(path)))
    assert bound is not None
    assert stat.S_IMODE(path.stat().st_mode) == metrics.MODE
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metrics.serve, listener, busy, MemoryDisposer())
            assert b"sockguard_relays 1.0" in await get(await trio.open_unix_socket(str(path)))
            nursery.cancel_scope.cancel()
    bound.remove()


async def test_it_is_not_written_more_often_than_bounded(busy: Metrics, autojump_clock: trio.testing.MockClock) -> None:
    """However often it is asked for, the text is made once in FRESH_SECONDS; then it is a new one."""
    made = 0

    def count() -> Status:
        nonlocal made
        made += 1
        return status()

    counted = Metrics()
    counted.observe(count)
    reading = Reading(counted)
    for _ in range(100):
        assert (await reading.handle(Request("GET", "/metrics"))).status == 200
    assert made == 1
    await trio.sleep(FRESH_SECONDS)
    await reading.handle(Request("GET", "/metrics"))
    assert made == 2
    assert (await reading.handle(Request("POST", "/metrics"))).status == 405
