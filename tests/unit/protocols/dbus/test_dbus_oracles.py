"""What we write and accept, jeepney and dbus-fast read as we do."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import jeepney.low_level  # type: ignore[import-untyped]
from dbus_fast._private.unmarshaller import Unmarshaller
from hypothesis import example, given
from hypothesis import strategies as st

from sockguard.protocols.dbus import wire
from sockguard.protocols.dbus.wire import read_message
from tests.unit.protocols.dbus.making import call_fields, message, number
from tests.unit.protocols.dbus.reading import described, headers_like, verdict

names = st.sampled_from(["a.b", "org.example.Service", "org.freedesktop.DBus", "A_9.b_", "a." + "b" * 253])
unique = st.sampled_from([":1.2", ":1.42", ":a-b.9"])
paths = st.sampled_from(["/", "/a", "/org/example/Thing", "/" + "a" * 500])
members = st.sampled_from(["Do", "_", "GetNameOwner", "a" * 255])
serials = st.integers(1, 0xFFFFFFFF)
contents = st.sampled_from([("", b""), ("s", b"\2\0\0\0hi\0"), ("u", b"\1\0\0\0"), ("ay", b"\1\0\0\0x")])


@st.composite
def built(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A message by our own writer, and what it was made from."""
    kind = draw(st.integers(1, 4))
    signature, body = draw(contents)
    common: dict[str, Any] = {"serial": draw(serials), "body_length": len(body), "signature": signature, "kind": kind}
    if kind in (1, 4):
        interface = draw(names) if kind == 4 else draw(st.none() | names)
        made: dict[str, Any] = {
            "path": draw(paths),
            "interface": interface,
            "member": draw(members),
            "destination": draw(st.none() | unique),
        }
        if kind == 1:
            flags = draw(st.integers(0, 7))
            data = wire.method_call(
                common["serial"], made["path"], interface, made["member"], made["destination"], signature, body, flags
            )
            return data, common | made | {"flags": flags}
        made["sender"] = draw(st.none() | unique)
        data = wire.signal(
            common["serial"], made["path"], interface or "", made["member"], signature, body, made["sender"],
            made["destination"],
        )  # fmt: skip
        return data, common | made
    reply: dict[str, Any] = {"reply_serial": draw(serials), "destination": draw(st.none() | unique)}
    reply["sender"] = draw(st.none() | names)
    if kind == 2:
        data = wire.method_return(
            common["serial"], reply["reply_serial"], reply["destination"], reply["sender"], signature, body
        )
        return data, common | reply
    name, said = draw(names), draw(st.text(max_size=20))
    data = wire.error(common["serial"], reply["reply_serial"], name, said, reply["destination"], reply["sender"])
    length = len(said.encode("utf-8", "replace")) + 5
    return data, common | reply | {"error_name": name, "signature": "s", "body_length": length}


@given(built())
def test_what_is_written_is_read(made: tuple[bytes, dict[str, Any]]) -> None:
    """Builders and reader agree on every field."""
    data, expected = made
    read = described(read_message(data))
    assert {key: read[key] for key in expected} == expected


def by_jeepney(data: bytes) -> dict[str, Any]:
    """The header as jeepney reads it."""
    parser = jeepney.low_level.Parser()
    parser.add_data(data)
    header = parser.get_next_message().header
    fields = {field.name: value for field, value in header.fields.items()}
    return {
        "kind": header.message_type.value, "serial": header.serial, "flags": header.flags.value,
        "path": fields.get("path"), "interface": fields.get("interface"), "member": fields.get("member"),
        "error_name": fields.get("error_name"), "destination": fields.get("destination"),
        "sender": fields.get("sender"), "signature": fields.get("signature") or "",
        "reply_serial": fields.get("reply_serial", 0), "unix_fds": fields.get("unix_fds", 0),
    }  # fmt: skip


def by_dbus_fast(data: bytes) -> dict[str, Any]:
    """The header as dbus-fast reads it."""
    read = Unmarshaller(BytesIO(data)).unmarshall()  # type: ignore[arg-type]  # any readable will do
    assert read is not None
    return {
        "kind": read.message_type.value, "serial": read.serial, "flags": read.flags.value, "path": read.path,
        "interface": read.interface, "member": read.member, "error_name": read.error_name,
        "destination": read.destination, "sender": read.sender, "signature": read.signature or "",
        "reply_serial": read.reply_serial or 0,
    }  # fmt: skip


@given(built())
@example((message(1, [*call_fields(">"), number(9, 0, ">")], ">"), {}))
def test_others_read_alike(made: tuple[bytes, dict[str, Any]]) -> None:
    """What we accept, jeepney and dbus-fast read as we do."""
    ours = described(read_message(made[0]))
    for theirs in (by_jeepney(made[0]), by_dbus_fast(made[0])):
        assert {key: ours[key] for key in theirs} == theirs


@given(headers_like(extras=False))
def test_jeepney_reads_alike_what_we_accept_of_odd_ones(data: bytes) -> None:
    """Fields in any order and on any type of message, in both byte orders."""
    ours = verdict(data)
    if isinstance(ours, dict):
        theirs = by_jeepney(data)
        assert {key: ours[key] for key in theirs} == theirs
