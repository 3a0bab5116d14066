"""Signatures, and values of header fields that nobody knows yet."""

from __future__ import annotations

import struct

import pytest
from jeepney.low_level import parse_signature  # type: ignore[import-untyped]

from sockguard.protocols.dbus.signature import Malformed, skip_variant, valid_signature


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"s",
        b"a{sv}",
        b"(ii)",
        b"a(sa{sv}ay)",
        b"aas",
        b"v",
        b"a" * 32 + b"y",
        b"(" * 32 + b"y" + b")" * 32,
        b"y" * 255,
    ],
)  # fmt: skip
def test_valid(signature: bytes) -> None:
    """Whatever is made of complete types, to the depth that the specification allows; jeepney reads them too."""
    assert valid_signature(signature)
    try:
        rest = list(signature.decode())
        while rest:
            parse_signature(rest)
    except (ValueError, IndexError) as error:
        pytest.fail(f"jeepney: {error}")


@pytest.mark.parametrize(
    "signature",
    [
        b"a", b"aa", b"()", b"(", b")", b"(i", b"i)", b"{sv}", b"a{s}", b"a{sss}", b"a{vs}", b"a{(s)s}", b"a{s", b"a{}",
        b"(a)", b"z", b"r", b"e", b"s\0", b"\xe9", b"a" * 33 + b"y", b"(" * 33 + b"y" + b")" * 33, b"y" * 256,
        b"a{asv}", b"(i}", b"a{sv)",
    ],
)  # fmt: skip
def test_not_valid(signature: bytes) -> None:
    """CVE-2022-42010: brackets that do not match; besides dict entries outside arrays, nothing inside, too deep."""
    assert not valid_signature(signature)


def variant(signature: bytes, value: bytes, endian: str = "<") -> int:
    """Where the variant ends, in a buffer that goes on behind it."""
    data = bytes((len(signature),)) + signature + b"\0" + value
    return len(data) - skip_variant(data + b"\xff" * 16, 0, len(data), endian)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_values_that_are_walked_over(endian: str) -> None:
    """Every type, in both byte orders; what is walked over ends where its last byte is."""
    u32 = struct.Struct(f"{endian}I").pack
    assert variant(b"y", b"\7", endian) == 0
    assert variant(b"b", b"\0" + u32(1), endian) == 0  # at 3: padded to 4
    assert variant(b"t", bytes(5 + 8), endian) == 0
    assert variant(b"s", b"\0" + u32(2) + b"hi\0", endian) == 0
    assert variant(b"o", b"\0" + u32(2) + b"/a\0", endian) == 0
    assert variant(b"g", b"\2ai\0", endian) == 0
    assert variant(b"v", b"\1y\0\7", endian) == 0
    assert variant(b"ay", u32(3) + b"abc", endian) == 0
    assert variant(b"at", u32(8) + bytes(8), endian) == 0
    assert variant(b"as", u32(7) + u32(2) + b"hi\0", endian) == 0
    assert variant(b"(yu)", bytes(2) + b"\1" + bytes(3) + u32(5), endian) == 0
    assert variant(b"a{yu}", bytes(1) + u32(0) + bytes(4), endian) == 0
    assert variant(b"a{yu}", bytes(1) + u32(8) + bytes(4) + b"\1" + bytes(3) + u32(5), endian) == 0


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        (b"", b"\7"),
        (b"yy", b"\7\7"),
        (b"b", b"\0\2\0\0\0"),
        (b"b", b"\1\1\0\0\0"),
        (b"u", b"\0\1\0\0"),
        (b"s", b"\0\2\0\0\0hi"),
        (b"s", b"\0\2\0\0\0h\0\0"),
        (b"s", b"\0\2\0\0\0\xc3\x28\0"),
        (b"s", b"\0\xff\xff\xff\xffhi\0"),
        (b"o", b"\0\2\0\0\0//\0"),
        (b"g", b"\2a(\0"),
        (b"g", b"\2ai"),
        (b"v", b"\2yy\0\7"),
        (b"au", b"\3\0\0\0\1\2\3"),
        (b"au", b"\xff\xff\xff\xff\1\2\3\4"),
        (b"as", b"\6\0\0\0\2\0\0\0hi\0"),
        (b"at", b"\0\0\0\1\0\0\0\0"),
        (b"(y", b"\0\0\0\0\1"),
    ],
)
def test_values_that_are_malformed(signature: bytes, value: bytes) -> None:
    """CVE-2022-42011: an array whose size does not fit its items; CVE-2022-42012 and others: what a walk could miss."""
    with pytest.raises(Malformed):
        variant(signature, value)


def test_depth_is_bounded() -> None:
    """Variants in variants: 64 at most, however short they are, and never a RecursionError."""
    assert variant(b"v", b"\1v\0" * 62 + b"\1y\0\7") == 0
    with pytest.raises(Malformed, match="nested"):
        variant(b"v", b"\1v\0" * 63 + b"\1y\0\7")
    with pytest.raises(Malformed, match="nested"):
        variant(b"v", b"\1v\0" * 5000 + b"\1y\0\7")
