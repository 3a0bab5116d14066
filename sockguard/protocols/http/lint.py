"""HTTP rules that do not do what they seem to, or more than they seem to. Pure, and only for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from sockguard.protocols.base import Json
from sockguard.protocols.http.judge import ANY_METHOD, DOCKER_VERSION, H2C, without_version
from sockguard.protocols.http.patterns import Index, Name, parse_path

_CREATE: Final = "/containers/create"
_DOCKER: Final = frozenset(("containers", "exec", "libpod"))
"""First segments of paths that only Docker's and Podman's APIs have."""
_TWICE: Final = frozenset(("containers", "exec", "images", "networks", "volumes", "secrets"))
"""First segments of Docker's paths that podman also has below /libpod."""
_START: Final = re.compile(r"/containers/\{[^/]*\}/start")


def _takes_in(path: str, literal: str) -> bool:
    index: Index[None] = Index()
    index.add(parse_path(path), None)
    return bool(index.find(literal[1:].split("/")))


def _beside(
    denied: Sequence[Mapping[str, Any]], allows: Sequence[tuple[str, Sequence[Json] | None]]
) -> Iterator[tuple[str, str]]:
    """Paths that are denied, each with an allow that takes it in but for the spelling of some segment. Of an allow with
    ``params`` that is not certain.
    """
    for entry in denied:
        others = list(_other_spellings(entry))
        for name, what in allows:
            if others and (what is None or any(_takes_in_one(one, entry["methods"], others) for one in what)):
                yield entry["path"], name


def _other_spellings(entry: Mapping[str, Any]) -> Iterator[str]:
    """The path with one of its segments written otherwise, one that the entry has words for."""
    segments = parse_path(entry["path"])
    plain = ["x" if isinstance(one, Name) else one for one in segments]
    for at, one in enumerate(segments):
        if one and (isinstance(one, str) or one.name in entry.get("params", {})):
            yield "/".join(["", *plain[:at], f"{plain[at]}~", *plain[at + 1 :]])


def _takes_in_one(allowed: Json, methods: Sequence[str], paths: Sequence[str]) -> bool:
    one = cast("dict[str, Any]", allowed)
    common = ANY_METHOD in methods or ANY_METHOD in one["methods"] or not set(methods).isdisjoint(one["methods"])
    return common and "params" not in one and any(_takes_in(one["path"], path) for path in paths)


class Warned(NamedTuple):
    """One sentence, and what to do about it, each without a final stop."""

    text: str
    remedy: str


def warnings(
    what: Sequence[Json] | None,
    options: Mapping[str, Json] = MappingProxyType({}),
    *,
    deny: bool = False,
    allows: Sequence[tuple[str, Sequence[Json] | None]] = (),
) -> list[Warned]:
    """Say what is odd about a rule's *what* as ``read_what`` made it.

    allows: of a deny, name and *what* of the allows that peers may have whom it is about.
    """
    strip = options.get("strip_prefix") == DOCKER_VERSION
    entries = cast("Sequence[dict[str, Any]]", what or ())
    found = []
    if docker := None if strip else next((e["path"] for e in entries if e["path"].split("/")[1] in _DOCKER), None):
        text = (
            f"{docker} matches no request with a version in front, which clients of Docker and Podman send "
            f"('/v1.43{docker}'){' to escape it' if deny else ''}"
        )
        found.append(Warned(text, f'set strip_prefix = "{DOCKER_VERSION}" in the proxy\'s table http'))
    paths = [entry["path"] for entry in entries]
    if deny and strip and (once := [p for p in paths if p.split("/")[1] in _TWICE and f"/libpod{p}" not in paths]):
        text = f"{once[0]} does not match /libpod{once[0]}, which to podman is much the same"
        found.append(Warned(text, f"deny /libpod{once[0]} as well, unless the service is dockerd"))
    if deny and (beside := next(_beside(entries, allows), None)):
        path, name = beside
        text = (
            f"denies {path} beside the allow {name!r}, which takes in other spellings of that path: whoever finds one "
            f"that the service takes for the same, and sockguard does not know of, passes"
        )
        found.append(Warned(text, "allow by path what is wanted, so that all else is denied; see the README on denies"))
    creates = any(entry["path"] == _CREATE and "body" in entry for entry in entries)
    for entry in entries:
        found += [] if deny else _of_allowed(entry, strip, creates)
    return found


def _of_allowed(entry: Mapping[str, Any], strip: bool, creates: bool) -> Iterator[Warned]:
    path: str = entry["path"]
    if H2C in entry.get("upgrade", ()):
        yield Warned(
            f"{path} may upgrade to h2c: what follows is a tunnel that nobody judges; behind it BuildKit builds "
            f"whatever the client asks for",
            "leave h2c out, unless whoever the rule is for may do all that the service can do",
        )
    if strip and without_version(path) != path:  # a deny also looks at the path as it came
        yield Warned(
            f"{path} never matches: strip_prefix takes the version off a request before rules are asked",
            f"write {without_version(path)}",
        )
    if not strip or {"POST", ANY_METHOD}.isdisjoint(entry["methods"]) or "body" in entry:
        return
    if "params" not in entry and (taken := [one for one in (_CREATE, f"/libpod{_CREATE}") if _takes_in(path, one)]):
        which = path if path == taken[0] else f"{path}, which takes in {taken[0]},"
        yield Warned(
            f"{which} has no condition on its body: whoever may create any container is root on the host",
            "give it body = { forbid = [...] } as docker:ci-runner has it (sockguard schema --presets)",
        )
    if creates and _START.fullmatch(path):
        yield Warned(
            f"{path} has no condition on its body: dockerd before version 25, asked under a version before 1.24, "
            f"takes there what is forbidden in {_CREATE}",
            "give it the same body",
        )
