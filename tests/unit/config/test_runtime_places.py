"""Where the control socket and the metrics are, worked out from the file and the environment alone."""

from __future__ import annotations

import pytest

from sockguard.config import runtime
from sockguard.config.runtime import PathPlace, TcpPlace, control_path, metrics_place
from sockguard.config.values import Bad
from sockguard.errors import SockguardError

USER = {"XDG_RUNTIME_DIR": "/run/user/1000"}
SYSTEMD = {"RUNTIME_DIRECTORY": "/run/guard:/run/other"}


@pytest.mark.parametrize(
    ("configured", "environ", "euid", "path"),
    [
        (None, {}, 0, "/run/sockguard/control.sock"),
        (None, USER, 0, "/run/sockguard/control.sock"),
        (None, USER, 1000, "/run/user/1000/sockguard/control.sock"),
        (None, SYSTEMD, 0, "/run/guard/control.sock"),
        (None, {**USER, **SYSTEMD}, 1000, "/run/guard/control.sock"),
        (None, {"RUNTIME_DIRECTORY": "relative"}, 0, "/run/sockguard/control.sock"),
        ("/x/y", {**USER, **SYSTEMD}, 0, "/x/y"),
        ("/x/y", {}, 1000, "/x/y"),
        ("", SYSTEMD, 0, None),
    ],
)
def test_the_control_socket(configured: str | None, environ: dict[str, str], euid: int, path: str | None) -> None:
    """The file's word, else systemd's folder, else root's, else the user's own; "" is none."""
    assert control_path(configured, environ, euid) == path


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}])
def test_no_place(environ: dict[str, str]) -> None:
    """An ordinary user without a runtime folder is told what to set."""
    with pytest.raises(SockguardError, match="XDG_RUNTIME_DIR"):
        control_path(None, environ, 1000)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9469", TcpPlace("127.0.0.1", 9469)),
        ("[::1]:9469", TcpPlace("::1", 9469)),
        ("0.0.0.0:65535", TcpPlace("0.0.0.0", 65535)),
        ("/run/x/metrics.sock", PathPlace("/run/x/metrics.sock")),
    ],
)
def test_metrics(text: str, place: TcpPlace | PathPlace) -> None:
    """An address and a port, or a path."""
    assert metrics_place(text) == place
    assert runtime.metrics(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "9469",
        "localhost:9469",
        ":9469",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:x",
        "127.0.0.1:+1",
        "::1:9469",
        "[127.0.0.1]:9469",
        "[::1:9469",
        "1.2.3:4",
        "run/x",
        "@x",
        "/run/",
        "/" + "x" * 200,
        9469,
        "a\nb:1",
    ],
)
def test_no_metrics(text: object) -> None:
    """What is no such place is refused in plain words."""
    with pytest.raises(Bad):
        runtime.metrics(text)


@pytest.mark.parametrize("text", ["x", "@x", "/x/", "/" + "x" * 200, 1, True, None])
def test_no_control(text: object) -> None:
    """The control socket has an absolute path that fits, or is ""; an abstract one would have no permissions."""
    with pytest.raises(Bad):
        runtime.control(text)
    assert runtime.control("") == runtime.metrics("") == ""
    assert runtime.control("/x/y") == "/x/y"
