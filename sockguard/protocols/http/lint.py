"""HTTP rules that do not do what they seem to, or more than they seem to. Pure, and only for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, cast

from sockguard.protocols.base import Json
from sockguard.protocols.http.judge import ANY_METHOD, DOCKER_VERSION, H2C, without_version

_CREATE: Final = "/containers/create"
_DOCKER: Final = frozenset(("containers", "exec", "libpod"))
"""First segments of paths that only Docker's and Podman's APIs have."""
_START: Final = re.compile(r"/containers/\{[^/]*\}/start")


def warnings(
    what: Sequence[Json] | None, options: Mapping[str, Json] = MappingProxyType({}), *, deny: bool = False
) -> list[str]:
    """Say what is odd about a rule's *what* as ``read_what`` made it, one sentence each without a final stop."""
    strip = options.get("strip_prefix") == DOCKER_VERSION
    entries = cast("Sequence[dict[str, Any]]", what or ())
    creates = any(entry["path"] == _CREATE and "body" in entry for entry in entries)
    found = []
    if docker := None if strip else next((e["path"] for e in entries if e["path"].split("/")[1] in _DOCKER), None):
        found.append(
            f"{docker} matches no request with a version in front, which clients of Docker and Podman send "
            f"('/v1.43{docker}'){' to escape it' if deny else ''}: set strip_prefix = {DOCKER_VERSION!r}"
        )
    for entry in entries:
        path: str = entry["path"]
        posts = not deny and not {"POST", ANY_METHOD}.isdisjoint(entry["methods"])
        unseen = strip and posts and "body" not in entry
        if H2C in entry.get("upgrade", ()):
            found.append(
                f"{path} may upgrade to h2c: what follows is a tunnel that nobody judges; behind it BuildKit builds "
                f"whatever the client asks for"
            )
        if strip and not deny and without_version(path) != path:  # a deny also looks at the path as it came
            found.append(f"{path} never matches: strip_prefix takes the version off a request before rules are asked")
        if unseen and path in (_CREATE, f"/libpod{_CREATE}"):
            found.append(f"{path} has no condition on its body: whoever may create any container is root on the host")
        if unseen and creates and _START.fullmatch(path):
            found.append(
                f"{path} has no condition on its body: dockerd before version 25, asked under a version before 1.24, "
                f"takes there what is forbidden in {_CREATE}; give it the same body"
            )
    return found
