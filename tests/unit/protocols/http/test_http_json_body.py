"""Bodies: what counts as set, what is refused because two readers could differ, and what conditions may say."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockguard.protocols.base import Bad
from sockguard.protocols.http.json_body import MAX_DEPTH, MAX_VALUES, Conditions, Unreadable, is_json, parse


def denied(body: str | bytes, *conditions: str) -> bool:
    """Whether a body is refused under these conditions, for whatever reason."""
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    try:
        return Conditions(conditions).fault(parse(raw)) is not None
    except Unreadable:
        return True


@pytest.mark.parametrize("value", ["null", "false", "0", "0.0", "-0", '""', "[]", "{}"])
def test_what_clients_send_for_nothing_is_not_set(value: str) -> None:
    """Docker's own client sends every member of HostConfig."""
    assert not denied(f'{{"HostConfig": {{"X": {value}}}}}', "/HostConfig/X")


@pytest.mark.parametrize("value", ["true", "1", "-1", "0.5", '"x"', '"false"', "[null]", '{"a": null}', "[[]]"])
def test_anything_else_is_set(value: str) -> None:
    assert denied(f'{{"HostConfig": {{"X": {value}}}}}', "/HostConfig/X")


def test_what_is_absent_is_not_set() -> None:
    for body in ("{}", "null", '{"HostConfig": null}', '{"HostConfig": {}}', '{"Y": {"X": 1}}'):
        assert not denied(body, "/HostConfig/X", "/HostConfig/X/Y", "/HostConfig/*/Z")


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        ("/X=true", "true", True),
        ("/X=true", "false", False),
        ("/X=true", "1", False),
        ("/X=true", '"true"', False),
        ("/X=1", "1", True),
        ("/X=1", "1.0", True),
        ("/X=1", "true", False),
        ("/X=0", "false", False),
        ("/X=null", "null", True),
        ("/X=[]", "[]", True),
        ("/X=[]", "null", False),
        ("/X=[]", "{}", False),
        ("/X={}", "{}", True),
        ("/X=host", '"host"', True),
        ("/X=host", '"Host"', False),
        ("/X=host", '"hosts"', False),
        ('/X="host"', '"host"', True),
        ('/X="a*"', '"a*"', True),
        ('/X="a*"', '"ab"', False),
        ("/X=container:*", '"container:x"', True),
        ("/X=ns:*", '"ns:/proc/1/ns/net"', True),
        ("/X=ns:*", '"ns:\\nx"', True),
        ("/X=a?c", '"a/c"', True),
        ("/X=*", "1", True),
        ("/X=*", "null", True),
        ("/X=*", "{}", True),
        ("/X=*", '""', True),
        ("/X/a=*", '{"a": {}}', True),
        ("/X/a=*", '{"a": null, "b": 1}', True),
        ("/X/a=*", '{"A": {}}', True),
        ("/X/a=*", '{"b": 1}', False),
        ("/X/a=*", "{}", False),
        ("/X/a=*", "null", False),
        ("/X/*/a=*", '{"b": {"a": null}}', True),
        ("/X=?*", "1", False),
        ("/X=a=b", '"a=b"', True),
    ],
)
def test_a_value_is_compared_as_json_or_as_text(condition: str, value: str, expected: bool) -> None:
    assert denied(f'{{"X": {value}}}', condition) is expected


@pytest.mark.parametrize(
    ("condition", "body", "expected"),
    [
        ("/M/*/Type=bind", '{"M": [{"Type": "volume"}, {"Type": "bind"}]}', True),
        ("/M/*/Type=bind", '{"M": [{"Type": "volume"}]}', False),
        ("/M/*/Type=bind", '{"M": {"a": {"Type": "bind"}}}', True),
        ("/M/*", '{"M": [null, ""]}', False),
        ("/M/*", '{"M": [null, "x"]}', True),
        ("/M/1", '{"M": [0, 1]}', True),
        ("/M/1", '{"M": [1, 0]}', False),
        ("/M/1", '{"M": {"1": 1}}', True),
        ("/M/2", '{"M": [1]}', False),
        ("/a~1b/c~0d", '{"a/b": {"c~d": 1}}', True),
        ("/~01", '{"~1": 1}', True),
        ("/*/X", '{"a": {"X": 1}}', True),
    ],
)
def test_pointers_go_into_arrays_and_objects(condition: str, body: str, expected: bool) -> None:
    """RFC 6901, with "*" for every one."""
    assert denied(body, condition) is expected


@pytest.mark.parametrize(
    "body", ['{"H": [1]}', '{"H": "x"}', '{"H": 1}', '{"H": false}', '{"H": ""}', "[]", '"x"', "1"]
)
def test_what_cannot_have_the_member_is_refused_not_passed_over(body: str) -> None:
    """No reader of ours says what a service makes of it."""
    assert denied(body, "/H/X")


@pytest.mark.parametrize(
    "key", ["hostconfig", "HOSTCONFIG", "Ho\\u0073tConfig ", "Ho\u017ftConfig", "HostConfi\\u0047", "\\u0068ostConfig"]
)
def test_a_key_that_differs_only_in_case_is_refused(key: str) -> None:
    """Go's encoding/json takes it for the same, by Unicode's folding; the fourth has a long s."""
    if key.endswith(" "):
        assert not denied(f'{{"{key}": {{"Binds": ["/:/h"]}}}}', "/HostConfig/Binds")
        return
    assert denied(f'{{"{key}": {{"Binds": ["/:/h"]}}}}', "/HostConfig/Binds")
    assert denied(f'{{"HostConfig": {{}}, "{key}": {{}}}}', "/HostConfig/Binds")


def test_case_is_folded_at_every_step_of_the_way() -> None:
    assert denied('{"HostConfig": {"binds": null}}', "/HostConfig/Binds")
    assert denied('{"M": [{"type": "x"}]}', "/M/*/Type=bind")
    assert denied('{"Net\u212aey": 1}', "/NetKey")  # KELVIN SIGN
    assert not denied('{"hostconfig": 1}', "/Other")
    assert not denied('{"Labels": {"a": 1, "A": 2}}', "/HostConfig/Binds")


def test_folding_knows_all_that_go_folds_with_ascii_letters() -> None:
    """Go's unicode.SimpleFold: beside the two cases only U+017F and U+212A belong to an ASCII letter."""
    for code in range(sys.maxunicode + 1):
        folded = chr(code).casefold()
        if len(folded) == 1 and folded.isascii() and folded.isalpha():
            assert code < 128 or code in (0x17F, 0x212A)
    for letter, other in (("s", "\u017f"), ("k", "\u212a"), ("K", "\u212a"), ("S", "\u017f")):
        assert denied(json.dumps({other: 1}), f"/{letter}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 2}}',
        b'{"a": 1, "\\u0061": 2}',
        b'[{"deep": [{"a": 1, "a": 2}]}]',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1} {}',
        b'{"a": 1}x',
        b'{"a": 1}\x00',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": +1}',
        b'{"a": .5}',
        b'{"a": 0x1}',
        b'{"a": 1} // x',
        b'{"a": "\n"}',
        b'{"a": "\xff"}',
        b'{"a": "\xc0\xaf"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"\\uDFFF": 1}',
        b'{"a": "\\udc00\\ud800"}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_bodies_that_readers_may_understand_differently_are_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(body)


def test_what_is_only_unusual_is_read() -> None:
    assert parse(b' {"a": 123456789012345678901234567890, "b": "\\ud83d\\ude00", "c": "\xc3\xa9"}\r\n') == {
        "a": 123456789012345678901234567890,
        "b": "\U0001f600",
        "c": "é",
    }
    assert parse(b'["\\\\ud800"]') == ["\\ud800"]
    assert parse(memoryview(bytearray(b"[]"))) == []


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_has_a_bound(opening: str, closing: str) -> None:
    parse((opening * MAX_DEPTH + "1" + closing * MAX_DEPTH).encode())
    with pytest.raises(Unreadable):
        parse((opening * (MAX_DEPTH + 1) + "1" + closing * (MAX_DEPTH + 1)).encode())
    with pytest.raises(Unreadable):
        parse(opening.encode() * 100_000)


def test_the_number_of_values_has_a_bound() -> None:
    """Reading them takes time in which no other connection of the relay is served."""
    parse(b"[" + b"0," * (MAX_VALUES - 1) + b"0]")
    for body in (b"[" + b"0," * MAX_VALUES + b"0]", b"[" + b"[]," * MAX_VALUES + b"0]"):
        with pytest.raises(Unreadable, match="more than"):
            parse(body)


def test_brackets_in_strings_and_side_by_side_are_no_depth() -> None:
    parse(json.dumps(["[" * 1000, '\\"[' * 100, *[[] for _ in range(1000)]]).encode())
    parse(b'["\\\\", ' + b"[], " * 100 + b'"' + b"]" * 100 + b'"]')


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 500_000,
        b"[" * 1_000_000,
        b'{"' * 300_000,
        b'["' * 300_000,
        b"\\" * 1_000_000,
        b'"\\' * 300_000,
        b"[]" * 65 + b'"' + b'\\"' * 500_000,
    ],
)
def test_no_body_takes_more_than_time_by_its_length(body: bytes) -> None:
    """Quadratic time would run into the test's own time limit."""
    with pytest.raises(Unreadable):
        parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abAB", max_size=2), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_what_is_passed_has_nothing_forbidden(value: object) -> None:
    """Reference: Go's reading, in which the last key counts whatever its case, and absent members are zero."""
    if denied(json.dumps(value), "/a/b"):
        return
    inner: object = value
    for step in "ab":
        if inner is None:
            return
        assert isinstance(inner, dict)
        assert not any(key != step and key.lower() == step for key in inner)
        inner = inner.get(step)
    assert not inner


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON", True),
        ("application/json; charset=utf-8", True),
        ('application/json;charset="UTF-8"', True),
        ("application/json;", True),
        ("application/json; charset=utf-16", False),
        ("application/json; charset=utf-7; charset=utf-8", False),
        ("application/jsonp", False),
        ("application/json, text/plain", False),
        ("text/plain; application/json", False),
        ("text/json", False),
        ("", False),
        (None, False),
    ],
)
def test_content_types(content_type: str | None, expected: bool) -> None:
    assert is_json(content_type) is expected


@pytest.mark.parametrize(
    "condition",
    ["", "X", "HostConfig/Binds", "#/X", "=x", "/", "/a//b", "/a/", "/a~", "/a~2", "/a/-", "/X=", "/X=[1]",
     '/X={"a":1}', '/X="', "/X=[", "/" + "a" * 2000],
)  # fmt: skip
def test_conditions_that_say_nothing_are_refused(condition: str) -> None:
    with pytest.raises(Bad):
        Conditions([condition])


def test_the_reason_names_the_condition_and_nothing_of_the_body() -> None:
    fault = Conditions(["/A/*/B"]).fault(parse(b'{"A": {"secret": {"B": 1}}}'))
    assert fault == "the body has /A/*/B"
    fault = Conditions(["/A/*/B"]).fault(parse(b'{"A": {"secret": {"b": "secret"}}}'))
    assert fault is not None
    assert "secret" not in fault
