"""Match rules: the specification's grammar, and a refusal wherever two buses could read another rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.dbus.match_rule import MAX_RULE, MatchRule, parse
from sockguard.protocols.dbus.signature import Malformed


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", MatchRule()),
        (" \t\r\n", MatchRule()),
        ("type='signal'", MatchRule(kind=4)),
        ("type=signal", MatchRule(kind=4)),
        ("type='method_call',", MatchRule(kind=1)),
        ("\n type \t=error, sender=:1.1", MatchRule(kind=3, sender=":1.1")),
        ("sender='a.b',interface='a.b',member='Do'", MatchRule(sender="a.b", interface="a.b", member="Do")),
        ("path='/',destination=':1.1'", MatchRule(path="/", destination=":1.1")),
        ("path_namespace='/a/b'", MatchRule(path_namespace="/a/b")),
        ("arg0='x'", MatchRule(args=((0, "", "x"),))),
        ("arg63path='/a/',arg0namespace='org'", MatchRule(args=((0, "namespace", "org"), (63, "path", "/a/")))),
        ("eavesdrop='true'", MatchRule(eavesdrop=True)),
        ("eavesdrop ='true'", MatchRule(eavesdrop=True)),
        (" eavesdrop\t\n =true", MatchRule(eavesdrop=True)),
        ("eavesdrop=tr'ue'", MatchRule(eavesdrop=True)),
        ("eavesdrop='false'", MatchRule()),
        ("arg0=", MatchRule(args=((0, "", ""),))),
        ("arg0=''", MatchRule(args=((0, "", ""),))),
        ("arg0='a,b'", MatchRule(args=((0, "", "a,b"),))),
        ("arg0=' eavesdrop=true'", MatchRule(args=((0, "", " eavesdrop=true"),))),
        (r"arg0='\'", MatchRule(args=((0, "", "\\"),))),
        (r"arg0=\'", MatchRule(args=((0, "", "'"),))),
        (r"arg0=''\''',arg1='\',arg2=\'\'", MatchRule(args=((0, "", "'"), (1, "", "\\"), (2, "", "''")))),
        ("arg0='a'b'c'", MatchRule(args=((0, "", "abc"),))),
        ("arg0= x ", MatchRule(args=((0, "", " x "),))),
    ],
)
def test_parse(text: str, rule: MatchRule) -> None:
    """CVE-2026-34080 among them: white space before "=" belongs to neither key nor value."""
    assert parse(text) == rule
    assert hash(parse(text)) == hash(rule)


@pytest.mark.parametrize(
    "text",
    [
        "type", "type=", "=", "=x", "==", ",", "type='signal',,member=a", ",type=signal", "type=='signal'", "x=y",
        "type='signal", "type='Signal'", "type='invalid'", "type= 'signal'", "type='signal' ",
        "type='signal' ,member=a",
        "Type='signal'", "ty pe='signal'", "type\0='signal'", "type='signal'\0", "type='signal';member=a",
        "eavesdrop=", "eavesdrop= true", "eavesdrop='true' ", "eavesdrop=1", "eavesdrop=TRUE", "Eavesdrop=true",
        "eavesdrop\v=true", "eavesdrop\u00a0=true", "eavesdrop=true,eavesdrop=false", "type=signal,type=signal",
        "sender=a", "sender='org..a'", "interface=a", "member=a.b", "path=a", "path=/a/",
        "path='/a',path_namespace='/a'",
        "path_namespace=/a/", "destination=a", "arg=x", "arg64=x", "arg00=x", "arg01=x", "arg0x1=x", "arg-1=x",
        "arg 1=x",
        "arg+1=x", "arg1namespace=a", "arg0namespace=.a", "arg0namespace=", "arg0pathx=x", "arg٣=x", "arg999999999=x",
        "arg0=a,arg0path=/", "arg0=a,arg0namespace=b", r"arg0=\x", "arg0=\\", r"arg0=\,eavesdrop=true", r"arg0=\\'a'",
        "arg0='", "arg0='''", "a" * MAX_RULE + "=b", "arg0='" + "é" * (MAX_RULE // 2) + "'",
        ",".join(f"arg{number}=x" for number in range(17)),
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    """Unknown, doubled, not valid, cut off; a 17th key, which dbus-daemon forgets; backslashes that buses differ on."""
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert str(caught.value).isprintable()


def matches(
    rule: str,
    *,
    kind: int = 4,
    senders: frozenset[str] = frozenset({":1.1", "org.example.Service"}),
    interface: str | None = "org.example.Thing",
    member: str | None = "Done",
    path: str | None = "/org/example/a",
    destination: str | None = None,
    args: tuple[str, ...] = ("org.example.App", "/x/y"),
) -> bool:
    return parse(rule).matches(kind, senders, interface, member, path, destination, args)


@pytest.mark.parametrize(
    "rule",
    [
        "", "type=signal", "sender=:1.1", "sender=org.example.Service", "interface=org.example.Thing", "member=Done",
        "path=/org/example/a", "path_namespace=/", "path_namespace=/org/example", "path_namespace=/org/example/a",
        "arg0=org.example.App", "arg0namespace=org", "arg0namespace=org.example.App", "arg1path=/x/y", "arg1path=/x/",
        "arg1path=/", "arg1=/x/y", "type=signal,sender=:1.1,path_namespace=/org,arg0namespace=org.example",
    ],
)  # fmt: skip
def test_matches(rule: str) -> None:
    """By the specification's table of keys."""
    assert matches(rule)


@pytest.mark.parametrize(
    "rule",
    [
        "type=error", "sender=:1.2", "interface=org.example.Other", "member=Do", "path=/org/example",
        "path_namespace=/org/ex", "path_namespace=/org/example/a/b", "destination=:1.1", "arg0=org.example",
        "arg0namespace=org.ex", "arg0namespace=org.example.App.x", "arg1path=/x", "arg1path=/x/y/", "arg2=x",
        "arg63=",
    ],
)  # fmt: skip
def test_does_not_match(rule: str) -> None:
    """An element cut in two is no namespace; an argument that is not there matches nothing."""
    assert not matches(rule)


def test_absent_fields_match_no_key() -> None:
    """A message without an interface is not one of any interface."""
    assert not matches("interface=org.example.Thing", interface=None)
    assert not matches("path_namespace=/", path=None)
    assert matches("destination=:1.9", destination=":1.9")
    assert matches("arg1path=/x/y", args=("", "/x/"))


pieces = st.sampled_from(
    ["type", "eavesdrop", "arg0", "sender", "=", "'", ",", "\\", " ", "true", "signal", "a.b", ":1.1", "\t", "x", "é"]
)


@given(st.lists(pieces, max_size=14).map("".join))
def test_any_text(text: str) -> None:
    """Only Malformed; and an eavesdrop is never missed where dbus-daemon would see it."""
    try:
        rule = parse(text)
    except Malformed:
        return
    assert rule.eavesdrop == (reference(text).get("eavesdrop") == "true")


def reference(text: str) -> dict[str, str]:
    """The tokens as dbus-daemon takes them (bus/signals.c, find_key and find_value), character by character: written
    another way than the reader under test, so that both would have to err alike.
    """
    found: dict[str, str] = {}
    at = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        start = at
        while at < len(text) and text[at] not in "= \t\r\n":
            at += 1
        key = text[start:at]
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if not key or at == len(text):
            return found
        at += 1
        value = ""
        quote = ""
        while at < len(text):
            here = text[at]
            at += 1
            if quote == "\\":
                value += here if here == "'" else "\\" + here
                quote = ""
            elif quote:
                quote, value = ("", value) if here == "'" else (quote, value + here)
            elif here in "'\\":
                quote = here
            elif here == ",":
                break
            else:
                value += here
        found[key] = value
