"""The indexed verdict held against a plain reading of the same rules, one entry after another."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import RequestRule
from sockguard.protocols.dbus.patterns import glob, path_glob
from sockguard.protocols.dbus.rules import Call, Own, Receive, Request, compile_rules, describe, parse_request

NAMES = ["org.freedesktop.DBus", "org.freedesktop.DBusX", "org.a.A", "org.a.A.B", "org.a.AB", "com.c"]
PATTERNS = [*NAMES, "org.*", "org.a.*", "org.a.A.*", "org.freedesktop.*", "org.freedesktop.DBus.*", "*"]
INTERFACES = [None, "x.y", "x.y.z", "x.yz", "org.freedesktop.DBus.Debug.Stats", "org.freedesktop.DBus.Monitoring"]
MEMBERS = ["M", "Get", "GetAll", "BecomeMonitor", "GetStats"]
PATHS = [None, "/", "/a", "/a/b", "/a/b/c", "/ab"]


def some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3)


NARROWING = {
    "path": some(["/", "/a", "/a/*", "/a/**", "/*/b", "/**"]),
    "interface": some(["x.y", "x.y.*", "org.freedesktop.DBus.*"]),
    "member": some(["M", "Get", "Get*", "*e*"]),
}
CALLS = st.fixed_dictionaries({}, optional=NARROWING)
ENTRIES = st.one_of(
    st.builds(lambda names, more: {"destination": names, **more}, some(PATTERNS), CALLS),
    st.builds(lambda names, more: {"receive": names, **more}, some(PATTERNS), CALLS),
    st.builds(lambda names: {"own": names}, some(PATTERNS)),
)
DENY_ENTRIES = ENTRIES | CALLS.filter(bool)
RULES = st.one_of(
    st.builds(RequestRule, st.just("allow"), st.just(False), st.none() | st.lists(ENTRIES, min_size=1, max_size=4)),
    st.builds(RequestRule, st.just("deny"), st.just(True), st.lists(DENY_ENTRIES, min_size=1, max_size=2)),
)
SETS = st.frozensets(st.sampled_from(NAMES), max_size=2)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Call, SETS, st.sampled_from(PATHS), st.sampled_from(INTERFACES), st.sampled_from(MEMBERS)),
    st.builds(Receive, SETS, st.sampled_from(PATHS), st.sampled_from(INTERFACES), st.sampled_from(MEMBERS)),
    st.builds(Own, st.sampled_from(NAMES)),
)


def named(pattern: str, name: str) -> bool:
    if pattern == "*":
        return True
    labels = pattern.split(".")
    return name.split(".")[: len(labels) - 1] == labels[:-1] if labels[-1] == "*" else name == pattern


def starred(pattern: str, text: str) -> bool:
    """By trying every length for the first star."""
    if "*" not in pattern:
        return pattern == text
    first, rest = pattern.split("*", 1)
    return text.startswith(first) and any(starred(rest, text[at:]) for at in range(len(first), len(text) + 1))


def on_path(pattern: str, path: str) -> bool:
    want, have = (pattern[1:] or None), (path[1:] or None)
    wanted, given = (want.split("/") if want else []), (have.split("/") if have else [])
    if wanted and wanted[-1] == "**":
        return len(given) >= len(wanted) - 1 and all(map(starred, wanted[:-1], given))
    return len(given) == len(wanted) and all(map(starred, wanted, given))


def matches(entry: Any, request: Request, *, deny: bool) -> bool:
    if isinstance(request, Own):
        return any(named(pattern, request.name) for pattern in entry.get("own", []))
    names, key = (request.destinations, "destination") if isinstance(request, Call) else (request.senders, "receive")
    if "member" in entry and not any(starred(pattern, request.member) for pattern in entry["member"]):
        return False
    if "interface" in entry:
        interface = request.interface
        if not (deny if interface is None else any(named(pattern, interface) for pattern in entry["interface"])):
            return False
    if "path" in entry:
        path = None if deny and isinstance(request, Call) and "org.freedesktop.DBus" in names else request.path
        if not (deny if path is None else any(on_path(pattern, path) for pattern in entry["path"])):
            return False
    if key not in entry:
        return deny and key == "destination" and not entry.keys() & {"own", "receive"}
    if deny:
        return "*" in entry[key] or any(named(pattern, name) for pattern in entry[key] for name in names)
    if isinstance(request, Call) and "org.freedesktop.DBus" in names and powerful(request):
        return "org.freedesktop.DBus" in entry[key]
    return any(named(pattern, name) for pattern in entry[key] for name in names)


def powerful(call: Call) -> bool:
    interface = call.interface or ""
    return (
        call.member == "BecomeMonitor"
        or interface.startswith(("org.freedesktop.DBus.Debug.", "org.freedesktop.DBus.Monitoring"))
        or (call.interface is None and call.member in ("M", "GetStats"))
    )


@given(st.lists(RULES, max_size=5), REQUESTS)
def test_the_index_changes_no_verdict(rules: list[RequestRule], request: Request) -> None:
    """The verdict, and the rule that is named, are those of reading every entry in turn."""
    rules = [RequestRule(f"{rule.name}{number}", rule.deny, rule.what) for number, rule in enumerate(rules)]
    wanted = None
    for deny in (True, False):
        if wanted is None and not deny and to_monitor(request):
            wanted = next((rule for rule in rules if rule.deny and hears(rule)), None)
        for rule in rules:
            entries: Any = rule.what
            fits = entries is None or any(matches(entry, request, deny=deny) for entry in entries)
            if wanted is None and rule.deny is deny and fits:
                wanted = rule
    found = compile_rules(rules, {}).judge(request)
    allowed = for_everyone(request) if wanted is None else not wanted.deny
    assert (found.allowed, found.rule) == (allowed, wanted and wanted.name)


def hears(rule: RequestRule) -> bool:
    entries: Any = rule.what or []
    return any("receive" in one for one in entries)


def to_monitor(request: Request) -> bool:
    """A call of the bus that shows everything: denied by whatever may not be received."""
    return (
        isinstance(request, Call)
        and "org.freedesktop.DBus" in request.destinations
        and request.member == "BecomeMonitor"
    )


def for_everyone(request: Request) -> bool:
    """Of the members here the bus itself answers these to everyone, and only by an interface that has them."""
    return (
        isinstance(request, Call)
        and "org.freedesktop.DBus" in request.destinations
        and request.member in ("Get", "GetAll")
        and request.interface is None
    )


@given(st.lists(RULES, max_size=5), REQUESTS.filter(lambda request: not for_everyone(request)))
def test_what_is_allowed_is_seen_and_followed(rules: list[RequestRule], request: Request) -> None:
    """Some name of a request that is allowed is visible; and a verdict rests on no name that is not followed."""
    compiled = compile_rules(rules, {})
    names = [request.name] if isinstance(request, Own) else []
    if isinstance(request, Call | Receive):
        names = sorted(request.destinations if isinstance(request, Call) else request.senders)
        kept = frozenset(filter(compiled.names_of_interest, names))
        less: Request
        if isinstance(request, Call):
            less = Call(kept, request.path, request.interface, request.member)
        else:
            less = Receive(kept, request.path, request.interface, request.member)
        assert compiled.judge(less) == compiled.judge(request)
    if compiled.judge(request).allowed:
        assert not names or any(map(compiled.visible, names))
        if isinstance(request, Call):
            assert not names or any(map(compiled.callable, names))


@given(REQUESTS.filter(lambda request: not isinstance(request, Receive) or request.interface is not None))
def test_text_and_request(request: Request) -> None:
    """What is described is read again as a request with the same verdict text; names of one owner become one."""
    text = describe(request)
    again = parse_request(text, {})
    assert describe(again) == text
    if isinstance(request, Own) or len(request.destinations if isinstance(request, Call) else request.senders) < 2:
        assert again == request


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_stars(pattern: str, text: str) -> None:
    """Taking the earliest place for each part finds what trying all places finds."""
    made = glob(pattern)
    assert (made == text if isinstance(made, str) else made.matches(text)) is starred(pattern, text)


def test_patterns_take_linear_time() -> None:
    """A pattern of many stars on a long text that nearly matches: the calls made are few (no back-tracking)."""
    made = glob("*a" * 100 + "b")
    assert not isinstance(made, str)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        assert not made.matches("a" * 5000 + "c")
        assert not made.matches("a" * 50 + "b")
    finally:
        sys.setprofile(None)
    assert calls < 1000
    deep = path_glob("/" + "*a*/" * 50 + "**")
    assert not isinstance(deep, str)
    assert not deep.matches("/b" * 200)


def test_what_the_bus_answers_to_everyone_and_what_it_does_not() -> None:
    """As explain says it: the same verdict as that of the relay."""
    rules = compile_rules(
        [RequestRule("no", True, [{"destination": ["org.freedesktop.DBus"], "member": ["GetId"]}])], {}
    )
    for text, allowed in {
        "call org.freedesktop.DBus / org.freedesktop.DBus.ListNames": True,
        "call org.freedesktop.DBus / ListNames": True,
        "call org.freedesktop.DBus / org.freedesktop.DBus.GetId": False,
        "call org.freedesktop.DBus / org.example.ListNames": False,
        "call org.freedesktop.DBus / BecomeMonitor": False,
        "call org.freedesktop.DBus / org.freedesktop.DBus.ReloadConfig": False,
        "call org.example.App / org.freedesktop.DBus.ListNames": False,
    }.items():
        assert rules.judge(parse_request(text, {})).allowed is allowed, text
