"""The ``dbus`` key as it is read, and requests judged by it: by example, from what a person writes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tomli

from sockguard.protocols.base import Bad, RequestRule, RequestVerdict
from sockguard.protocols.dbus.rules import (
    Call,
    DbusRules,
    Own,
    compile_rules,
    describe,
    parse_request,
    read_options,
    read_what,
    suggest_what,
)

LOGIN1 = "org.freedesktop.login1"
REBOOT = "call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager.Reboot"


def rule(text: str, name: str = "a", *, deny: bool = False) -> RequestRule:
    """A rule from the text of its ``dbus`` array's inside; "" for a rule without *what*."""
    if not text:
        return RequestRule(name, deny, None)
    return RequestRule(name, deny, read_what("dbus", tomli.loads(f"dbus = [{text}]")["dbus"], deny=deny))


def rules(*allows: str, deny: tuple[str, ...] = ()) -> DbusRules:
    """Allows a0, a1, … and denies d0, d1, …"""
    return compile_rules(
        [
            *(rule(text, f"a{number}") for number, text in enumerate(allows)),
            *(rule(text, f"d{number}", deny=True) for number, text in enumerate(deny)),
        ],
        {},
    )


def verdict(request: str, *allows: str, deny: tuple[str, ...] = ()) -> RequestVerdict:
    return rules(*allows, deny=deny).judge(parse_request(request, {}))


def allowed(request: str, *allows: str, deny: tuple[str, ...] = ()) -> bool:
    return verdict(request, *allows, deny=deny).allowed


def test_what_a_verdict_says() -> None:
    """The rule that decided, the first of the file; or that there is none."""
    entry = '{ destination = "org.freedesktop.login1" }'
    assert verdict(REBOOT, entry, entry)[:3] == (True, "a0", "allowed by a0")
    assert verdict(REBOOT, "", entry)[:3] == (True, "a0", "allowed by a0")
    assert verdict(REBOOT, entry, "", deny=(entry, ""))[:3] == (False, "d1", "denied by d1")
    assert verdict(REBOOT, entry, deny=(entry, entry))[:3] == (False, "d0", "denied by d0")
    assert verdict(REBOOT, '{ destination = "org.example" }')[:3] == (False, None, "no allow rule matches")
    patterns = [f"{{ destination = '{name}' }}" for name in ("*", "org.*", "org.freedesktop.*", LOGIN1)]
    narrowed = "{ destination = 'org.freedesktop.login1', member = 'Reboot' }"
    for one, other in itertools.permutations([*patterns, narrowed, narrowed.replace("Reboot", "Re*")], 2):
        assert verdict(REBOOT, one, other).rule == "a0"
        assert verdict(REBOOT, "", deny=(one, other)).rule == "d0"
    assert verdict(REBOOT)[:3] == (False, None, "no allow rule matches")


@pytest.mark.parametrize(
    ("entry", "request_text", "result"),
    [
        ('destination = "org.example.A"', "call org.example.A / x.y.M", True),
        ('destination = "org.example.A"', "call org.example.AB / x.y.M", False),
        ('destination = "org.example.A"', "call org.example.A.B / x.y.M", False),
        ('destination = "org.example.*"', "call org.example.A / x.y.M", True),
        ('destination = "org.example.*"', "call org.example.A.B.C / x.y.M", True),
        ('destination = "org.example.*"', "call org.example / x.y.M", True),
        ('destination = "org.example.*"', "call org.exampleX / x.y.M", False),
        ('destination = "org.example.*"', "call org.exampleX.A / x.y.M", False),
        ('destination = "org.*"', "call org.example / x.y.M", True),
        ('destination = "org.*"', "call com.org.example / x.y.M", False),
        ('destination = "*"', "call com.example / x.y.M", True),
        ('destination = "*"', "call :1.5 / x.y.M", False),
        ('destination = ["org.a.A", "org.b.*"]', "call org.b.B / x.y.M", True),
        ('destination = "org.a.A"', "own org.a.A", False),
        ('destination = "org.a.A"', "receive org.a.A x.y.M", False),
        ('own = "org.a.A"', "own org.a.A", True),
        ('own = "org.a.A"', "own org.a.A.B", False),
        ('own = "org.a.A"', "own org.a", False),
        ('own = "org.a.A"', "call org.a.A / x.y.M", False),
        ('own = "org.a.A.*"', "own org.a.A.B", True),
        ('own = "org.a.A.*"', "own org.a.A", True),
        ('own = "org.a.A.*"', "own org.a.AB", False),
        ('own = "*"', "own org.a.AB", True),
        ('receive = "org.a.A"', "receive org.a.A x.y.M", True),
        ('receive = "org.a.A", member = "M"', "receive org.a.A /p x.y.M", True),
        ('receive = "org.a.A", member = "N"', "receive org.a.A /p x.y.M", False),
        ('receive = "org.a.A", path = "/p"', "receive org.a.A /p x.y.M", True),
        ('receive = "org.a.A", path = "/p"', "receive org.a.A x.y.M", False),
        ('receive = "org.a.A"', "call org.a.A / x.y.M", False),
    ],
)
def test_names(entry: str, request_text: str, result: bool) -> None:
    """A name means itself, ``NAME.*`` itself and what is below it; each key is about its own kind of request."""
    assert allowed(request_text, f"{{ {entry} }}") is result


@pytest.mark.parametrize(
    ("pattern", "path", "result"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", False),
        ("/a", "/ab", False),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a", False),
        ("/a/*", "/a/b/c", False),
        ("/a/b*", "/a/b", True),
        ("/a/b*", "/a/bc", True),
        ("/a/b*", "/a/bc/d", False),
        ("/a/*b/c", "/a/xb/c", True),
        ("/a/*b/c", "/a/x/b/c", False),
        ("/a/**", "/a", True),
        ("/a/**", "/a/b/c/d", True),
        ("/a/**", "/ab", False),
        ("/a/*/**", "/a", False),
        ("/a/*/**", "/a/b", True),
        ("/a/*/**", "/a/b/c", True),
        ("/*", "/", False),
        ("/*", "/a", True),
        ("/**", "/", True),
        ("/**", "/a/b", True),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
def test_paths(pattern: str, path: str, result: bool) -> None:
    """A star stays within a segment, and is one; two as the last segment are any depth, none included."""
    assert allowed(f"call o.A {path} x.y.M", f'{{ destination = "o.A", path = "{pattern}" }}') is result


@pytest.mark.parametrize(
    ("narrowing", "what", "result"),
    [
        ('interface = "x.y"', "x.y.M", True),
        ('interface = "x.y"', "x.y.z.M", False),
        ('interface = "x.y.*"', "x.y.M", True),
        ('interface = "x.y.*"', "x.y.z.M", True),
        ('interface = "x.y.*"', "x.yz.M", False),
        ('interface = ["a.b", "x.y"]', "x.y.M", True),
        ('member = "Get"', "x.y.Get", True),
        ('member = "Get"', "x.y.GetAll", False),
        ('member = "Get*"', "x.y.GetAll", True),
        ('member = "Get*"', "x.y.Get", True),
        ('member = "*All"', "x.y.GetAll", True),
        ('member = "G*t*l"', "x.y.GetAll", True),
        ('member = "Get*tAll"', "x.y.GetAll", False),
        ('member = "*x*"', "x.y.GetAll", False),
        ('member = "*ll*l"', "x.y.GetAll", False),
        ('member = "Ge*et*"', "x.y.GetAll", False),
        ('member = ["A", "B*"]', "x.y.Bc", True),
        ('interface = "x.y", member = "M"', "x.y.N", False),
        ('interface = "x.y", member = "M"', "x.z.M", False),
    ],
)
def test_interfaces_and_members(narrowing: str, what: str, result: bool) -> None:
    """All keys of an entry must match, any value of a list will do."""
    assert allowed(f"call o.A / {what}", f'{{ destination = "o.A", {narrowing} }}') is result


def test_two_entries_do_not_add_up() -> None:
    """The destination of one entry and the member of another are no permission."""
    entries = '{ destination = "o.A", member = "M" }, { destination = "o.B", member = "N" }'
    assert allowed("call o.A / x.y.M", entries)
    assert not allowed("call o.A / x.y.N", entries)


def test_an_interface_cannot_be_escaped_by_leaving_it_out() -> None:
    """Neither an allow for one interface nor a deny of one: the service would take the call as either."""
    manager = '{ destination = "o.A", interface = "x.y.Manager" }'
    assert not allowed("call o.A / Reboot", manager)
    assert not allowed("call o.A / Reboot", "", deny=(manager,))
    assert not allowed("call o.A / Reboot", "", deny=('{ interface = "x.y.Manager", member = "Reboot" }',))
    assert allowed("call o.A / Reboot", "", deny=('{ interface = "x.y.Manager", member = "Halt" }',))
    assert allowed("call o.A / Reboot", '{ destination = "o.A", member = "Reboot" }')


def test_a_path_that_is_not_known() -> None:
    """The same for a path: no allow by path, every deny by path."""
    assert not allowed("call o.A - x.y.M", '{ destination = "o.A", path = "/**" }')
    assert not allowed("call o.A - x.y.M", "", deny=('{ destination = "o.A", path = "/z" }',))


@pytest.mark.parametrize(
    ("deny", "denied"),
    [
        ('{ destination = "o.A" }', {"call o.A /p x.y.M", "call o.A /p M"}),
        ('{ path = "/p" }', {"call o.A /p x.y.M", "call o.A /p M", "call :1.5 /p x.y.M"}),
        ('{ member = "N" }', {"call o.B /q x.y.N"}),
        ('{ destination = "*" }', {"call o.A /p x.y.M", "call o.A /p M", "call o.B /q x.y.N", "call :1.5 /p x.y.M"}),
        ('{ own = "o.A.*" }', {"own o.A", "own o.A.B"}),
        ('{ own = "o.A" }', {"own o.A"}),
        ('{ receive = "*" }', {"receive o.A x.y.M"}),
    ],
)
def test_denies(deny: str, denied: set[str]) -> None:
    """A deny beats the rule that allows everything, and takes no more than it says."""
    every = [
        "call o.A /p x.y.M",
        "call o.A /p M",
        "call o.B /q x.y.N",
        "call :1.5 /p x.y.M",
        "own o.A",
        "own o.A.B",
        "own o.AB",
        "receive o.A x.y.M",
    ]
    assert {request for request in every if not allowed(request, "", deny=(deny,))} == denied


def test_a_destination_is_whoever_owns_the_name() -> None:
    """Of several names of one owner, one that is allowed allows, and one that is denied denies."""
    call = Call(frozenset({"o.A", "o.B"}), "/", "x.y", "M")
    assert rules('{ destination = "o.B" }').judge(call).allowed
    assert not rules("", deny=('{ destination = "o.B" }',)).judge(call).allowed
    assert not rules('{ destination = "o.A" }', deny=('{ destination = "o.B" }',)).judge(call).allowed


PRIVILEGED = [
    "org.freedesktop.DBus.Monitoring.BecomeMonitor",
    "org.freedesktop.DBus.Monitoring.AnythingNew",
    "org.freedesktop.DBus.Debug.Stats.GetStats",
    "org.freedesktop.DBus.Verbose.EnableVerbose",
    "org.freedesktop.DBus.UpdateActivationEnvironment",
    "org.freedesktop.DBus.ReloadConfig",
    "x.y.BecomeMonitor",
    "BecomeMonitor",
    "ReloadConfig",
    "GetStats",
    "EnableVerbose",
    "NotKnownToAnybody",
]


@pytest.mark.parametrize("what", PRIVILEGED)
@pytest.mark.parametrize(
    ("entry", "result"),
    [
        ('destination = "*"', False),
        ('destination = "org.*"', False),
        ('destination = "org.freedesktop.DBus.*"', False),
        ('destination = ["*", "org.freedesktop.DBusX"]', False),
        ('destination = "org.freedesktop.DBus"', True),
        ('destination = ["org.*", "org.freedesktop.DBus"]', True),
    ],
)
def test_the_bus_s_own_powers_need_its_name(what: str, entry: str, result: bool) -> None:
    """A pattern of names never lets a peer monitor the bus or change it, with or without an interface."""
    assert allowed(f"call org.freedesktop.DBus / {what}", f"{{ {entry} }}") is result


def test_other_powers_of_the_bus() -> None:
    """What is not privileged is within patterns; a rule without *what* is everything; a deny needs no exact name."""
    for what in ("org.freedesktop.DBus.ListNames", "ListNames", "org.freedesktop.DBus.Peer.Ping", "Ping"):
        assert allowed(f"call org.freedesktop.DBus / {what}", '{ destination = "org.*" }')
    assert allowed("call org.example.Debug / BecomeMonitor", '{ destination = "org.*" }')
    for what in PRIVILEGED:
        request = f"call org.freedesktop.DBus / {what}"
        assert allowed(request, "")
        assert not allowed(request, "", deny=('{ destination = "org.*" }',))
    both = Call(frozenset({"org.freedesktop.DBus", "org.example.A"}), "/", None, "BecomeMonitor")
    assert not rules('{ destination = "org.example.A" }').judge(both).allowed


@pytest.mark.parametrize(
    ("allows", "denies", "seen"),
    [
        (["{ destination = 'o.A' }"], [], {"o.A"}),
        (["{ own = 'o.A' }"], [], {"o.A"}),
        (["{ receive = 'o.A', member = 'X' }"], [], {"o.A"}),
        (["{ destination = 'o.A.*', member = 'X' }"], [], {"o.A", "o.A.B"}),
        ([""], [], {"o.A", "o.A.B", "o.AB"}),
        ([], [], set()),
        (["", "{ own = 'o.A' }"], [""], set()),
        (["{ destination = 'o.A.*' }"], ["{ destination = 'o.A' }"], {"o.A.B"}),
        (["{ destination = 'o.A.*' }"], ["{ destination = 'o.A', member = 'X' }"], {"o.A", "o.A.B"}),
        (["{ destination = 'o.A.*' }"], ["{ destination = '*', path = '/**' }"], {"o.A", "o.A.B"}),
        (["{ destination = 'o.A.*' }"], ["{ own = '*' }"], {"o.A", "o.A.B"}),
        (["{ own = 'o.A' }"], ["{ destination = '*' }"], {"o.A"}),
        ([""], ["{ destination = '*' }", "{ own = '*' }"], {"o.A", "o.A.B", "o.AB"}),
        ([""], ["{ destination = '*' }", "{ own = '*' }", "{ receive = 'o.A.*' }"], {"o.AB"}),
    ],
)
def test_what_is_seen(allows: list[str], denies: list[str], seen: set[str]) -> None:
    """A name is seen if something about it is allowed that no deny takes as a whole."""
    found = rules(*allows, deny=tuple(denies))
    assert {name for name in ("o.A", "o.A.B", "o.AB") if found.visible(name)} == seen


def test_names_to_follow() -> None:
    """Whose ownership a verdict can depend on: names of calls and signals, in allows and denies; not of owning."""
    found = rules("{ destination = ['o.A', 'o.B.*'] }, { own = 'o.C' }", deny=("{ receive = 'o.D' }, { path = '/' }",))
    assert found.followed() == ("o.A", "o.B.*", "o.D")
    names = ("o.A", "o.A.B", "o.B", "o.B.C", "o.C", "o.D", "o.DD")
    assert [name for name in names if found.names_of_interest(name)] == ["o.A", "o.B", "o.B.C", "o.D"]
    assert rules("{ destination = ['o.A', '*'] }").followed() == ("*",)
    assert rules("").followed() == ()
    assert not rules("").names_of_interest("o.A")


def test_everything() -> None:
    """Only a rule without *what*, and no deny at all, makes looking needless."""
    assert rules("").everything
    assert rules("{ own = 'o.A' }", "").everything
    assert not rules("{ own = 'o.A' }").everything
    assert not rules("{ destination = '*' }, { own = '*' }, { receive = '*' }").everything
    assert not rules("", deny=("{ own = 'o.A' }",)).everything
    assert not rules().everything


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("membr = 'x', destination = 'o.A'", [((0, "membr"), "unknown key; did you mean 'member'?")]),
        ("destinaton = 'o.A'", [((0, "destinaton"), "unknown key; did you mean 'destination'?")]),
        ("", [((0,), "needs destination, own or receive")]),
        ("member = 'M'", [((0,), "needs destination, own or receive")]),
        ("destination = 'o.A', own = 'o.A'", [((0,), "has destination and own: give one of them, and another entry")]),
        ("own = 'o.A', member = 'M'", [((0, "member"), "goes with destination or receive")]),
        ("destination = ':1.5'", [((0, "destination"), "':1.5' is a unique name, which says nothing of who has it")]),
        (
            "destination = ['o.A', 'x']",
            [((0, "destination", 1), "must be a well-known name such as 'org.example.App'")],
        ),
        ("destination = 'o.*.A'", [((0, "destination"), "must be a well-known name")]),
        ("destination = 'o.A*'", [((0, "destination"), "must be a well-known name")]),
        ("destination = '.*'", [((0, "destination"), "must be a well-known name")]),
        ("destination = ''", [((0, "destination"), "must be a well-known name")]),
        ("destination = []", [((0, "destination"), "an empty list matches nothing")]),
        ("destination = 5", [((0, "destination"), "must be a string or an array of strings, not an integer")]),
        ("destination = [5]", [((0, "destination", 0), "must be a string, not an integer")]),
        ("own = 'o'", [((0, "own"), "must be a well-known name")]),
        ("receive = 'o.A\\n'", [((0, "receive"), "must be a well-known name")]),
        ("destination = 'o.A', path = 'a'", [((0, "path"), "must be an object path such as '/org/example'")]),
        ("destination = 'o.A', path = '/a/'", [((0, "path"), "must be an object path")]),
        ("destination = 'o.A', path = '/a-b'", [((0, "path"), "must be an object path")]),
        ("destination = 'o.A', path = '/**/a'", [((0, "path"), "'**' can only be the last segment")]),
        ("destination = 'o.A', path = '/a**'", [((0, "path"), "'**' can only be the last segment")]),
        ("destination = 'o.A', path = '/**/**'", [((0, "path"), "'**' can only be the last segment")]),
        ("destination = 'o.A', path = '/***'", [((0, "path"), "'**' can only be the last segment")]),
        ("destination = 'o.A', interface = '*'", [((0, "interface"), "leave interface out for any")]),
        ("destination = 'o.A', interface = 'x'", [((0, "interface"), "must be an interface such as")]),
        ("destination = 'o.A', interface = 'x.*.y'", [((0, "interface"), "must be an interface such as")]),
        ("destination = 'o.A', member = 'x.M'", [((0, "member"), "must be a member's name such as 'Get'")]),
        ("destination = 'o.A', member = 'M?'", [((0, "member"), "must be a member's name such as 'Get'")]),
    ],
)
def test_mistakes(text: str, said: list[tuple[tuple[str | int, ...], str]]) -> None:
    """One mistake in an entry is one message, at the place where it is."""
    assert_mistakes(tomli.loads(f"dbus = [{{ {text.replace(chr(39), chr(34))} }}]")["dbus"], False, said)


def assert_mistakes(value: object, deny: bool, said: list[tuple[tuple[str | int, ...], str]]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        read_what("dbus", value, deny=deny)
    found: list[Any] = list(caught.value.exceptions)
    assert all(isinstance(bad, Bad) for bad in found)
    assert [bad.path for bad in found] == [path for path, _ in said]
    for bad, (_, text) in zip(found, said, strict=True):
        assert str(bad).startswith(text)


def test_mistakes_of_the_whole() -> None:
    """All at once, whatever has been written in the place of the array or of an entry."""
    assert_mistakes("x", False, [((), "must be an array of tables, not a string")])
    assert_mistakes(
        ["x", {"own": 1}, {}],
        False,
        [
            ((0,), 'must be a table such as { destination = "org.example.App" }, not a string'),
            ((1, "own"), "must be a string or an array of strings, not an integer"),
            ((2,), "needs destination, own or receive"),
        ],
    )
    assert_mistakes([{}], True, [((0,), "needs destination, own or receive, or path, interface or member alone")])
    assert_mistakes([{"own": "o.A"}] * 1001, False, [((), "has more than 1000 entries")])
    assert_mistakes([{"own": ["o.A"] * 1001}], False, [((0, "own"), "has more than 1000 values")])


def test_options() -> None:
    """There are none: a table with any is refused."""
    assert read_options({}) == {}
    with pytest.raises(ExceptionGroup) as caught:
        read_options({"x": 1})
    (bad,) = caught.value.exceptions
    assert isinstance(bad, Bad)
    assert bad.path == ("x",)


@pytest.mark.parametrize(
    "text",
    [
        REBOOT,
        "call org.example.A / M",
        "call :1.5 / x.y.M",
        "call - - M",
        "own org.example.A",
        "receive org.example.A x.y.M",
        "receive org.example.A /p x.y.M",
        "receive - /p x.y.M",
    ],
)
def test_requests_as_text(text: str) -> None:
    """What is read is written in the same form."""
    assert describe(parse_request(text, {})) == text


def test_a_call_is_described_by_a_name() -> None:
    """By the name addressed where that is one; a unique name is shown as the name that rules know it by."""
    owner = frozenset({"o.B", "o.A"})
    assert describe(Call(owner, "/", "x.y", "M", addressed="o.B")) == "call o.B / x.y.M"
    assert describe(Call(owner, "/", "x.y", "M", addressed=":1.5")) == "call o.A / x.y.M"
    assert describe(Call(owner, "/", "x.y", "M")) == "call o.A / x.y.M"
    assert Call(owner, "/", "x.y", "M", addressed="o.B") == Call(owner, "/", "x.y", "M")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a request begins with call, own or receive, not ''"),
        ("cal o.A / x.y.M", "not 'cal'; did you mean 'call'?"),
        ("GET /", "not 'GET'"),
        ("call o.A", 'must be "call DESTINATION PATH INTERFACE.MEMBER"'),
        ("call o.A / x.y.M extra", 'must be "call DESTINATION'),
        ("call o / x.y.M", "'o' is no name of a bus"),
        ("call o.A x x.y.M", "'x' is no object path"),
        ("call o.A / x.M", "'x' is no interface"),
        ("call o.A / x.y.", "'' is no member's name"),
        ("own", 'must be "own NAME"'),
        ("own :1.5", "':1.5' is no well-known name"),
        ("own o.*", "'o.*' is no well-known name"),
        ("receive o.A", 'must be "receive SENDER'),
        ("receive o.A M", "'M' has no interface"),
    ],
)
def test_requests_that_cannot_be_meant(text: str, said: str) -> None:
    """Each is refused with what would have been right."""
    with pytest.raises(Bad) as caught:
        parse_request(text, {})
    assert said in str(caught.value)


def test_suggestions() -> None:
    """The fewest entries that allow what was seen: lists of members, and of paths on which the same were called."""
    seen = [
        "call o.A /p x.y.M", "call o.A /p x.y.N", "call o.A /q x.y.M", "call o.A /q x.y.N", "call o.A /r x.y.M",
        "call o.A /p M", "own o.C", "own o.B", "receive o.A x.y.S", "receive o.A /p x.y.S", "call :1.5 /p x.y.M",
        "junk", "own o.B",
    ]  # fmt: skip
    assert suggest_what(seen) == [
        {"destination": "o.A", "path": "/p", "member": "M"},
        {"destination": "o.A", "path": "/r", "interface": "x.y", "member": "M"},
        {"destination": "o.A", "path": ["/p", "/q"], "interface": "x.y", "member": ["M", "N"]},
        {"receive": "o.A", "interface": "x.y", "member": "S"},
        {"receive": "o.A", "path": "/p", "interface": "x.y", "member": "S"},
        {"own": ["o.B", "o.C"]},
    ]
    found = compile_rules([RequestRule("a", False, read_what("dbus", suggest_what(seen), deny=False))], {})
    assert [text for text in seen[:-2] if not found.judge(parse_request(text, {})).allowed] == ["call :1.5 /p x.y.M"]
    for text in ("call o.A /r x.y.N", "call o.B /p x.y.M", "own o.D", "receive o.A x.y.T", "call o.A /s M"):
        assert not found.judge(parse_request(text, {})).allowed
    assert suggest_what(["call :1.5 / x.y.M"]) == []


def test_not_a_request() -> None:
    """Anything else is a fault of the caller, never an allow."""
    with pytest.raises(TypeError):
        rules("").judge("call o.A / x.y.M")


def test_many_rules_are_found_by_name() -> None:
    """Among a thousand rules each finds its own, by exact names, by those above, and by members."""
    many = [f"{{ destination = 'o.A{n}', member = 'M' }}, {{ own = 'o.B{n}.*' }}" for n in range(1000)]
    found = rules(*many, *(f"{{ destination = 'o.C', member = 'M{n}' }}" for n in range(1000)))
    assert found.judge(parse_request("call o.A999 / x.y.M", {})).rule == "a999"
    assert found.judge(Own("o.B500.X")).rule == "a500"
    assert found.judge(Own("o.B5000")).rule is None
    assert found.judge(parse_request("call o.C / x.y.M7", {})).rule == "a1007"


def test_the_bus_has_no_paths() -> None:
    """It answers on any: a deny that has one is about all, and an allow about what it says."""
    bus = "org.freedesktop.DBus"
    where = f'{{ destination = "{bus}", path = "/a", member = "ReloadConfig" }}'
    for path, result in (("/a", True), ("/b", False)):
        request = f"call {bus} {path} {bus}.ReloadConfig"
        assert allowed(request, where) == result
        assert not allowed(request, f'{{ destination = "{bus}" }}', deny=(where,))
