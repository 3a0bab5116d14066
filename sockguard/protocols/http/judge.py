"""What judges HTTP requests: a peer's reduced rules, indexed by path. Pure.

- Every reading of the path must be allowed, each by some allow; a deny matches if any reading does. So with the method,
  where the query names another one to run the request by.
- A deny is about its methods and paths only, so it matches with any query, body and Upgrade. It also matches what known
  services take for the same (readings.py): another case, a slash or a suffix at the end, a method in lower case, HEAD.
- An allow without ``upgrade`` lets no request through that asks for one. ``upgrade`` is a permission beside the path's:
  such an allow lets the request through without Upgrade too (it is then a plain request, which is less), and with it
  if every protocol asked for is named, since the service picks among them.
- h2c has to be named: no allow of everything lets it through, as what follows is a tunnel that nobody judges.
- An allow with ``body`` is judged twice: ``judge`` says what the head allows, ``judge_body`` has the last word.
- With ``strip_prefix`` one version is taken off: "/v1.43/" or "/v4.6.1/". A deny also looks behind whatever services
  take for a version (dockerd routes "/v1.43./", podman "/v4-x/"), and at the path as it came. Without it a version is
  a segment like any other, and a deny that does not have it can be escaped by one.
- Values of ``params`` are what stands in the path. A service may know one thing by several names (Docker: a name, an
  id, the beginning of an id), so they are sure in an allow, and can be escaped in a deny.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, TypeAlias, cast

from sockguard.protocols.base import Json, RequestRule, RequestVerdict
from sockguard.protocols.http import json_body
from sockguard.protocols.http.known import Known
from sockguard.protocols.http.patterns import Index, Name, Segment, is_glob, parse_path, value_matcher
from sockguard.protocols.http.readings import fold, fold_path, other_methods, same_methods, stems
from sockguard.protocols.http.request import Request, with_upgrade

DOCKER_VERSION: Final = "docker-version"
"""The one value of ``strip_prefix``."""
H2C: Final = "h2c"
ANY_METHOD: Final = "*"
NO_RULE: Final = "no rule allows it"

_VERSION: Final = re.compile(r"^/v[0-9]+\.[0-9]+(?:\.[0-9]+)?(?=/)")
# moby: "/v{version:[0-9.]+}"; podman: "/v{version:[0-9][0-9A-Za-z.-]*}".
_ANY_VERSION: Final = re.compile(r"^/[vV][0-9.][0-9A-Za-z.-]*(?=/)")
_VERSION_BEGINS: Final = "/v"
_ATTACH: Final = re.compile(r"(?:/libpod)?/containers/[^/]+/attach")

Check: TypeAlias = tuple[slice, Callable[[str], bool]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of one rule. None: not asked.

    order   place of its rule among the peer's: the first that decides is the one named
    checks  conditions on named segments: where in the path, and what must hold
    literal its path ends in a segment that stands for itself
    """

    rule: str
    order: int
    checks: tuple[Check, ...] = ()
    query: frozenset[str] | None = None
    upgrade: frozenset[str] = frozenset()
    body: json_body.Conditions | None = None
    literal: bool = False

    def is_for(self, path: Sequence[str]) -> bool:
        return all(matches("/".join(path[where])) for where, matches in self.checks)

    def unmet(self, request: Request) -> str | None:
        """Say what the request's head does not meet, besides the path; None when it meets all."""
        if request.upgrade and not self.upgrade.issuperset(request.upgrade):
            return "not with this Upgrade"
        if self.query is not None:
            if not self.query.issuperset(key for key, _ in request.query):
                return f"the query has other keys than {', '.join(sorted(self.query)) or 'none'}"
            if request.has_body and "form" in (request.content_type or "").lower():
                return "its body is a form, whose keys services read before those of the query"
        if self.body is not None and request.has_body and not json_body.is_json(request.content_type):
            return "the body's Content-Type is not application/json"
        return None


class HttpRules:
    """A peer's rules, compiled. Frozen, shared, and safe to ask anything of any number of times.

    known: for whoever reads heads to keep what these rules say of them.
    """

    __slots__ = (
        "_allow_all",
        "_allows",
        "_denies",
        "_deny_all",
        "_folded_denies",
        "_h2c",
        "_looks_into_bodies",
        "_strip",
        "_uncertain",
        "known",
    )

    def __init__(self, rules: Sequence[RequestRule], *, strip: bool) -> None:
        self.known: Known[Any] = Known()
        self._strip = strip
        self._deny_all = next((rule.name for rule in rules if rule.deny and rule.what is None), None)
        self._allow_all = next((rule.name for rule in rules if not rule.deny and rule.what is None), None)
        self._denies, self._folded_denies, self._allows = _Table(), _Table(folded=True), _Table()
        self._h2c = self._looks_into_bodies = False
        self._uncertain = {rule.name: rule.verdict() for rule in rules if rule.uncertain}
        # Those that no permissive proxy lets through come first, and so decide.
        for order, rule in enumerate(sorted(rules, key=lambda rule: not rule.uncertain)):
            table = self._denies if rule.deny else self._allows
            for one in cast("list[dict[str, Any]]", rule.what or ()):
                entry = table.add(rule.name, order, one)
                if rule.deny:
                    self._folded_denies.add(rule.name, order, one)
                self._h2c |= H2C in entry.upgrade
                self._looks_into_bodies |= entry.body is not None

    def judge(self, request: Request, /) -> RequestVerdict:
        """Judge a request by its head. Where rules look into bodies, the body is taken to be as they want it."""
        denied = self._denied(request)
        if denied is not None:
            return denied
        verdict = self._allowed(request, _as_wanted)
        if verdict.allowed and self._rests_on_body(request):
            return verdict._replace(reason=f"{verdict.reason}, if its body has nothing that is forbidden")
        return verdict

    def wants_body(self, request: Request) -> bool:
        """Tell whether the verdict rests on the body: ``judge`` allows the request, and ``judge_body`` has the say."""
        return (
            self._rests_on_body(request)
            and self._denied(request) is None
            and self._allowed(request, _as_wanted).allowed
        )

    def _rests_on_body(self, request: Request) -> bool:
        """Tell whether no allow lets the request through without a look into its body."""
        return self._looks_into_bodies and request.has_body and not self._allowed(request, lambda entry: "").allowed

    def judge_body(self, request: Request, body: bytes | bytearray | memoryview) -> RequestVerdict:
        """Judge a request with its whole body, without transfer or content coding."""
        if not request.has_body and not body:
            return self.judge(request)
        denied = self._denied(request)
        if denied is not None:
            return denied
        try:
            value = json_body.parse(body)
        except json_body.Unreadable as unreadable:
            why = str(unreadable)
            return self._allowed(request, lambda entry: why)
        return self._allowed(request, lambda entry: entry.body.fault(value) if entry.body else None)

    def meant(self, request: Request) -> Request:
        """What a request comes to, where that is more than it asks for: to an engine the body of an attach is the
        beginning of the container's standard input, with or without Upgrade.
        """
        if self._strip and request.has_body and any(_ATTACH.fullmatch(without_version(path)) for path in request.paths):
            return with_upgrade(request)
        return request

    def allows_h2c(self, request: Request) -> bool:
        """Tell whether a request that asks for h2c may have it. If not, that is taken off it and the rest is judged."""
        return self._h2c and H2C in request.upgrade and self.judge(request).allowed

    def _denied(self, request: Request) -> RequestVerdict | None:
        if self._deny_all is not None:
            return RequestVerdict(False, self._deny_all, f"denied by {self._deny_all}")
        if self._denies.empty:
            return None
        paths: Collection[str] = request.paths
        if self._strip:
            paths = {behind for path in paths for behind in _behind_versions(path)}
        methods = same_methods(request.method)
        if request.query:
            methods = methods.union(*map(same_methods, other_methods(request.query)))
        found = [entry for path in paths for entry in self._folded_denies.find_folded(methods, path)]
        if any("%" in path for path in paths):  # a glob may mean the escapes themselves
            found += [entry for path in paths for entry in self._denies.find(methods, path)]
        if not found:
            return None
        first = min(found, key=_order)
        return self._uncertain.get(first.rule) or RequestVerdict(False, first.rule, f"denied by {first.rule}")

    def _allowed(self, request: Request, body: Callable[[Entry], str | None]) -> RequestVerdict:
        """Find an allow for each reading. ``body`` says what is wrong with it for an entry that looks into it."""
        if self._allow_all is not None and H2C not in request.upgrade:
            return RequestVerdict(True, self._allow_all, f"allowed by {self._allow_all}")
        names = []
        methods = (request.method, *other_methods(request.query)) if request.query else (request.method,)
        for method, path in product(methods, request.paths):
            missed = ""
            for entry in self._allows.find({method}, without_version(path) if self._strip else path):
                why = entry.unmet(request)
                if why is None and entry.body is not None:
                    why = body(entry)
                if why is None:
                    names.append(entry.rule)
                    break
                missed = missed or f": {entry.rule} would, but {why}"
            else:
                return RequestVerdict(False, None, NO_RULE + missed)
        return RequestVerdict(True, names[0], f"allowed by {names[0]}")


class _Table:
    """Entries by path and method. folded: by what services take for the same."""

    __slots__ = ("_folded", "_index", "_longest", "empty")

    def __init__(self, *, folded: bool = False) -> None:
        self._index: Index[tuple[frozenset[str], Entry]] = Index()
        self._folded = folded
        self._longest = 0
        self.empty = True

    def add(self, rule: str, order: int, one: dict[str, Any]) -> Entry:
        """Add an entry as ``read_what`` made it."""
        segments = parse_path(one["path"])
        params: dict[str, list[str]] = one.get("params", {})
        if self._folded:
            segments = tuple(fold(one) if isinstance(one, str) else one for one in segments if one)
            params = {name: [fold(value) for value in values] for name, values in params.items()}
        literal = segments[-1] if segments and isinstance(segments[-1], str) else ""
        self._longest = max(self._longest, len(literal))
        entry = Entry(
            rule,
            order,
            checks=tuple(_checks(segments, params)),
            query=frozenset(one["query"]) if "query" in one else None,
            upgrade=frozenset(one.get("upgrade", ())),
            body=json_body.Conditions(one["body"]["forbid"]) if "body" in one else None,
            literal=bool(literal),
        )
        for path in _paths(segments, params):
            self._index.add(path, (frozenset(one["methods"]), entry))
        self.empty = False
        return entry

    def find(self, methods: Set[str], path: str) -> list[Entry]:
        """Entries for one reading of a path and any of these methods, in the order of their rules."""
        return self._find(methods, path[1:].split("/"))

    def find_folded(self, methods: Set[str], path: str) -> list[Entry]:
        """The same for all that is taken for that path."""
        segments = fold_path(path)
        found = self._find(methods, segments)
        if segments and "." in segments[-1]:
            for stem in stems(segments[-1], self._longest):
                found += [entry for entry in self._find(methods, [*segments[:-1], stem]) if entry.literal]
        return found

    def _find(self, methods: Set[str], segments: Sequence[str]) -> list[Entry]:
        found = [
            entry
            for named, entry in self._index.find(segments)
            if (not named.isdisjoint(methods) or ANY_METHOD in named) and (not entry.checks or entry.is_for(segments))
        ]
        if len(found) > 1:
            found.sort(key=_order)
        return found


def compile_rules(rules: Sequence[RequestRule], options: Mapping[str, Json]) -> HttpRules:
    """Make what judges from a peer's reduced rules; ``options`` as ``read_options`` made them."""
    return HttpRules(rules, strip=options.get("strip_prefix") == DOCKER_VERSION)


def without_version(path: str) -> str:
    """Take one version off a path, as rules are matched with ``strip_prefix``."""
    return _VERSION.sub("", path) if path.startswith(_VERSION_BEGINS) else path


def _behind_versions(path: str) -> tuple[str, ...]:
    """A path as it came, and without what is a version here, or to any service."""
    if path[:2] not in ("/v", "/V"):
        return (path,)
    return path, _VERSION.sub("", path), _ANY_VERSION.sub("", path)


def _as_wanted(entry: Entry) -> None:
    """The body is taken to be as the entry wants it."""


def _order(entry: Entry) -> int:
    return entry.order


def _checks(segments: Sequence[Segment], params: Mapping[str, Iterable[str]]) -> Iterator[Check]:
    many = next((at for at, one in enumerate(segments) if isinstance(one, Name) and one.many), len(segments))
    for at, segment in enumerate(segments):
        if isinstance(segment, Name) and segment.name in params:
            # What stands behind {name...} is counted from the end.
            start = at if at <= many else at - len(segments)
            stop = at + 1 if at < many else at + 1 - len(segments)
            yield slice(start, stop or None), value_matcher(params[segment.name])


def _paths(segments: tuple[Segment, ...], params: Mapping[str, Sequence[str]]) -> Iterator[tuple[Segment, ...]]:
    """The paths to index an entry by: one for each value of its first name with values, if those are exact, so that
    many are found as fast as one. The checks hold all the same.
    """
    at = next((at for at, one in enumerate(segments) if isinstance(one, Name) and one.name in params), None)
    if at is None or any(is_glob(value) for value in params[cast("Name", segments[at]).name]):
        yield segments
        return
    for value in params[cast("Name", segments[at]).name]:
        yield (*segments[:at], *value.split("/"), *segments[at + 1 :])
