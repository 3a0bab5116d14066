"""The configuration as the daemon uses it: frozen, resolved plain data. config.load makes it from the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from sockguard.policy.rule import Rule
from sockguard.protocols.base import Json


class ListenKind(Enum):
    """Where a listening socket comes from."""

    PATH = "path"  # bound by sockguard
    ABSTRACT = "abstract"  # bound by sockguard; text is the name without "@"
    ADOPTED = "fd"  # systemd's FileDescriptorName; text is that name


@dataclass(frozen=True, slots=True)
class Listen:
    """A parsed ``listen`` value."""

    kind: ListenKind
    text: str

    def __str__(self) -> str:
        prefix = {ListenKind.PATH: "", ListenKind.ABSTRACT: "@", ListenKind.ADOPTED: "fd:"}[self.kind]
        return prefix + self.text


@dataclass(frozen=True, slots=True)
class Proxy:
    """One ``[proxy.NAME]``. Times in seconds; 0 for idle_timeout means none. owner, group: ids, None: leave as made.

    options: those of its protocol, as that protocol's ``read_options`` made them; empty for stream and seqpacket.
    """

    name: str
    listen: Listen
    backend: str
    rules: tuple[Rule, ...]
    mode: int = 0o666
    owner: int | None = None
    group: int | None = None
    protocol: str = "stream"
    identity: Literal["proxy", "client"] = "proxy"
    allow_root_identity: bool = False
    fds: Literal["forward", "refuse"] = "forward"
    sender: Literal["any", "same-user"] = "any"
    enforce: bool = True
    max_connections: int = 1024
    max_connections_per_user: int = 128
    connect_timeout: float = 5.0
    idle_timeout: float = 0.0
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Daemon:
    """The ``[daemon]`` table. relays: the number in the file, 0 for one per CPU. drain_timeout in seconds.

    control: a path, "" for none, None for the default. metrics: "ADDRESS:PORT", a path, or "" for none.
    """

    control: str | None = None
    metrics: str = ""
    relays: int = 0
    drain_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Log:
    """The ``[log]`` table."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    requests: Literal["denied", "all"] = "denied"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. proxies by name, in the order of the files."""

    daemon: Daemon
    log: Log
    proxies: dict[str, Proxy]
