"""Headers made byte by byte, well and badly: our own writer and those of libraries make only good ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def text(code: int, letter: str, value: bytes, endian: str = "<") -> bytes:
    """A header field that holds a string, an object path ("o") or a signature ("g")."""
    size = bytes((len(value),)) if letter == "g" else struct.pack(f"{endian}I", len(value))
    return bytes((code, 1)) + letter.encode() + b"\0" + size + value + b"\0"


def number(code: int, value: int, endian: str = "<") -> bytes:
    """A header field that holds a u32."""
    return bytes((code, 1)) + b"u\0" + struct.pack(f"{endian}I", value)


def variant(code: int, signature: bytes, value: bytes) -> bytes:
    """A header field of any type; value: as it stands behind the signature, padding included."""
    return bytes((code, len(signature))) + signature + b"\0" + value


def message(
    kind: int,
    fields: Sequence[bytes],
    endian: str = "<",
    *,
    flags: int = 0,
    version: int = 1,
    serial: int = 7,
    body: bytes = b"",
    body_length: int | None = None,
    array: int | None = None,
    pad: bytes = b"\0",
) -> bytes:
    """A message with those fields, each padded with ``pad``. body_length, array: said instead of the true ones."""
    joined = b""
    for field in fields:
        joined += pad * (-len(joined) & 7) + field
    start = struct.pack(
        f"{endian}cBBBIII",
        b"l" if endian == "<" else b"B",
        kind,
        flags,
        version,
        len(body) if body_length is None else body_length,
        serial,
        len(joined) if array is None else array,
    )
    return start + joined + pad * (-len(joined) & 7) + body


def call_fields(endian: str = "<") -> list[bytes]:
    """What a call must have, and a destination."""
    return [
        text(1, "o", b"/org/example/Thing", endian),
        text(3, "s", b"Do", endian),
        text(6, "s", b"org.example.Service", endian),
    ]
