"""Ready-made rules for programs that are commonly let at Docker's socket. Data, and nothing else.

Each holds what the program asks for in its ordinary use, and nothing that it would only ask for with a switch of its
own set: read off the source of Traefik, Homepage, Dozzle, Diun, autoheal and Watchtower, and off what Docker's client
sends; portainer-readonly and podman:readonly are the reading part of the API (Docker Engine API 1.41, libpod API 4).
Paths are without a version: the presets want ``strip_prefix = "docker-version"``.

What reads does not read everything. None of the reading presets (READING) has a container's files (export, archive,
attach/ws), an image's (images/{name}/get), a secret, a config, the key of the swarm or the tokens to join it (/swarm).
Most have a container's environment, which often holds passwords: it is part of ``/containers/{id}/json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sockguard.protocols.base import Json


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset: what it is for, and its entries as a rule's ``http`` would have them."""

    description: str
    entries: tuple[str | dict[str, Json], ...]


_HELLO: Final = ("GET,HEAD /_ping", "GET /version")
"""What every client library begins with: the daemon is there, and which version it speaks."""

_PULL: Final[dict[str, Json]] = {
    "methods": ["POST"],
    "path": "/images/create",
    "query": ["fromImage", "tag", "platform"],
}
"""Pulling an image from a registry; fromSrc would make one of anything."""

# Members of HostConfig that give a container the host, another container or their data. "set" means set to anything.
_HOST: Final = (
    "Privileged",
    # The file system: host paths, volumes of others, and volumes that are made of host paths (a driver's options).
    "Binds",
    "Mounts",
    "VolumesFrom",
    "VolumeDriver",
    # Namespaces: the host's, or another container's ("container:x", podman's "ns:/proc/1/ns/net").
    "PidMode",
    "IpcMode",
    "UTSMode",
    "UsernsMode",
    "CgroupnsMode",
    "Cgroup",
    "NetworkMode=host",
    "NetworkMode=*:*",
    # Devices, capabilities, and what confines a container. An empty MaskedPaths is not none: it unmasks /proc.
    "Devices",
    "DeviceRequests",
    "DeviceCgroupRules",
    "CapAdd",
    "Capabilities",
    "SecurityOpt",
    "MaskedPaths",
    "MaskedPaths=[]",
    "ReadonlyPaths",
    "ReadonlyPaths=[]",
    "CgroupParent",
    "Runtime",
    "Sysctls",
    "Annotations",
    "Links",
    # Files and sockets of the host: podman writes a log to its "path", dockerd to a syslog-address; podman removes a
    # container's ContainerIDFile with it. Log drivers are many, some of them plugins: podman's passthrough gives the
    # container the descriptors of podman's own service, others write to the host's log.
    "LogConfig/Config",
    "LogConfig/Type",
    "ContainerIDFile",
    # To podman, its own service's groups.
    "GroupAdd/*=keep-groups",
)

# Until version 24 dockerd takes the members of HostConfig beside it, too (runconfig, ContainerConfigWrapper). Podman
# reads "/host:/container" as a key of Volumes.
_NO_HOST: Final[list[Json]] = [
    *(f"/HostConfig/{member}" for member in _HOST),
    *(f"/{member}" for member in _HOST),
    "/Volumes",
    "/NetworkingConfig/EndpointsConfig/host=*",
]

PRESETS: Final[Mapping[str, Preset]] = {
    "docker:ping": Preset(
        "is the daemon there: nothing else",
        ("GET,HEAD /_ping",),
    ),
    "docker:traefik": Preset(
        "Traefik's docker and swarm providers: routes from the labels of containers and services",
        (
            *_HELLO,
            "GET /events",
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /networks",
            "GET /services",
            "GET /tasks",
            "GET /nodes/{id}",
        ),
    ),
    "docker:homepage": Preset(
        "Homepage: a dashboard of containers, their state and load; services and tasks of a swarm",
        (
            *_HELLO,
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /containers/{id}/stats",
            "GET /services",
            "GET /services/{id}",
            "GET /tasks",
        ),
    ),
    "docker:dozzle": Preset(
        "Dozzle: logs and load of containers; without its actions and its shell",
        (
            *_HELLO,
            "GET /info",
            "GET /events",
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /containers/{id}/logs",
            "GET /containers/{id}/stats",
        ),
    ),
    "docker:diun": Preset(
        "Diun: tells of new images for what runs",
        (
            *_HELLO,
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /images/{name...}/json",
            "GET /services",
        ),
    ),
    "docker:autoheal": Preset(
        "autoheal: restarts containers that are unhealthy",
        (
            "GET /containers/json",
            {"methods": ["POST"], "path": "/containers/{id}/restart", "query": ["t"]},
        ),
    ),
    "docker:watchtower": Preset(
        "Watchtower: replaces containers by ones of a newer image; whoever may do that is root on the host. Without "
        "its lifecycle hooks (exec)",
        (
            *_HELLO,
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /images/{name...}/json",
            _PULL,
            "DELETE /images/{name...}",
            "POST /containers/create",
            "POST /containers/{id}/start",
            "POST /containers/{id}/kill",
            "POST /containers/{id}/rename",
            "DELETE /containers/{id}",
            "POST /networks/{id}/connect",
            "POST /networks/{id}/disconnect",
        ),
    ),
    "docker:portainer-readonly": Preset(
        "Portainer, to look at: containers, images, networks, volumes, swarm; no change, no console, no files",
        (
            *_HELLO,
            "GET /info",
            "GET /events",
            "GET /system/df",
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /containers/{id}/logs",
            "GET /containers/{id}/stats",
            "GET /containers/{id}/top",
            "GET /images/json",
            "GET /images/{name...}/json",
            "GET /images/{name...}/history",
            "GET /networks",
            "GET /networks/{id}",
            "GET /volumes",
            "GET /volumes/{name}",
            "GET /plugins",
            "GET /nodes",
            "GET /nodes/{id}",
            "GET /services",
            "GET /services/{id}",
            "GET /services/{id}/logs",
            "GET /tasks",
            "GET /tasks/{id}",
            "GET /tasks/{id}/logs",
        ),
    ),
    "docker:ci-runner": Preset(
        "a job's docker client: pull, run, exec, remove; no container with anything of the host, with volumes but the "
        "image's own, or with privileges. It may enter every container that is there: for a daemon of such jobs only",
        (
            *_HELLO,
            "GET /info",
            "GET /containers/json",
            "GET /containers/{id}/json",
            "GET /containers/{id}/logs",
            "GET /containers/{id}/stats",
            "GET /containers/{id}/top",
            {"methods": ["POST"], "path": "/containers/create", "body": {"forbid": _NO_HOST}},
            # dockerd before version 25 takes a HostConfig here when it is asked under a version before 1.24.
            {"methods": ["POST"], "path": "/containers/{id}/start", "body": {"forbid": _NO_HOST}},
            "POST /containers/{id}/stop",
            "POST /containers/{id}/kill",
            "POST /containers/{id}/wait",
            "POST /containers/{id}/resize",
            {"methods": ["POST"], "path": "/containers/{id}/attach", "upgrade": ["tcp"]},
            "DELETE /containers/{id}",
            {"methods": ["POST"], "path": "/containers/{id}/exec", "body": {"forbid": ["/Privileged"]}},
            {"methods": ["POST"], "path": "/exec/{id}/start", "upgrade": ["tcp"]},
            "POST /exec/{id}/resize",
            "GET /exec/{id}/json",
            "GET /images/json",
            "GET /images/{name...}/json",
            _PULL,
            "GET /networks",
            "GET /networks/{id}",
        ),
    ),
    "podman:readonly": Preset(
        "Podman's own API (libpod), to look at: containers, pods, images, networks, volumes",
        (
            "GET,HEAD /_ping",
            "GET,HEAD /libpod/_ping",
            "GET /version",
            "GET /libpod/version",
            "GET /libpod/info",
            "GET /libpod/events",
            "GET /libpod/system/df",
            "GET /libpod/containers/json",
            "GET /libpod/containers/stats",
            "GET /libpod/containers/{id}/json",
            "GET /libpod/containers/{id}/exists",
            "GET /libpod/containers/{id}/logs",
            "GET /libpod/containers/{id}/stats",
            "GET /libpod/containers/{id}/top",
            "GET /libpod/images/json",
            "GET /libpod/images/{name...}/json",
            "GET /libpod/images/{name...}/exists",
            "GET /libpod/images/{name...}/history",
            "GET /libpod/images/{name...}/tree",
            "GET /libpod/networks/json",
            "GET /libpod/networks/{id}/json",
            "GET /libpod/networks/{id}/exists",
            "GET /libpod/pods/json",
            "GET /libpod/pods/stats",
            "GET /libpod/pods/{id}/json",
            "GET /libpod/pods/{id}/exists",
            "GET /libpod/pods/{id}/top",
            "GET /libpod/volumes/json",
            "GET /libpod/volumes/{name}/json",
            "GET /libpod/volumes/{name}/exists",
        ),
    ),
}
"""By the name that ``presets`` takes."""

READING: Final = frozenset(PRESETS) - {"docker:autoheal", "docker:watchtower", "docker:ci-runner"}
"""Those that change nothing."""
