"""Bodies of messages: where each ends, and how it goes on.

A reader is shown what comes and hands out the body's bytes; it knows nothing of where they go. A ``Transfer`` sends
them to the other side in a framing of its own, and has the loop pass on unseen what the framing has announced, all
but the last bytes: those are shown again, so that the end of a body is seen when it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sockguard.protocols.base import Effects, Source
from sockguard.protocols.http.grammar import CHUNK_LINE, BadLine, find_end, read_fields
from sockguard.protocols.http.head import CHUNKED
from sockguard.protocols.http.limits import MAX_CHUNK_LINE, MAX_HEAD

MAX_STEPS: Final = 3 * 1024
"""Of a chunked body, three for a chunk, that are read in one go, in a few ms; what is behind is left unused."""

Piece = bytes | memoryview


class BadChunk(ValueError):
    """A body that is not in chunks as RFC 9112, 7.1 has them; the text is for people."""


class LengthReader:
    """A body of so many bytes. ``done`` when all have come."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def unseen(self) -> int:
        """How many of the next bytes are plain body, and not its last."""
        return max(self._left - 1, 0)

    def passed(self, count: int) -> None:
        """``count`` of those went on unseen."""
        self._left -= count

    def read(self, data: memoryview, pieces: list[Piece]) -> int:
        """Add the body's part of ``data`` to ``pieces``; return how many bytes are used."""
        used = min(len(data), self._left)
        if used:
            self._left -= used
            pieces.append(data[:used])
        return used


class ChunkReader:
    """A body in chunks. Extensions and trailers are read and dropped. ``done`` when its last empty line has come."""

    __slots__ = ("_left", "_looked", "_step", "done")

    def __init__(self) -> None:
        self._step: Callable[[memoryview, list[Piece]], int] = self._line
        self._left = 0  # of the chunk's data
        self._looked = 0  # bytes of an incomplete line or section that have been looked at
        self.done = False

    @property
    def unseen(self) -> int:
        """How many of the next bytes are plain body."""
        return self._left

    def passed(self, count: int) -> None:
        """``count`` of those went on unseen."""
        self._left -= count
        if not self._left:
            self._step = self._end_of_chunk

    def read(self, data: memoryview, pieces: list[Piece]) -> int:
        """Add the body's bytes in ``data`` to ``pieces``; return how many bytes are used. Raises BadChunk."""
        at = 0
        for _ in range(MAX_STEPS):
            if self.done or at >= len(data):
                break
            used = self._step(data[at:], pieces)
            if not used:
                break
            at += used
        return at

    def _line(self, data: memoryview, pieces: list[Piece]) -> int:
        end = self._find(data, b"\r\n", MAX_CHUNK_LINE)
        if not end:
            return 0
        line = CHUNK_LINE.fullmatch(bytes(data[: end - 2]))
        if line is None:
            raise BadChunk("a bad chunk size")
        self._left = int(line[1], 16)
        self._step = self._data if self._left else self._trailers
        return end

    def _data(self, data: memoryview, pieces: list[Piece]) -> int:
        used = min(len(data), self._left)
        pieces.append(data[:used])
        self.passed(used)
        return used

    def _end_of_chunk(self, data: memoryview, pieces: list[Piece]) -> int:
        if bytes(data[:2]) != b"\r\n"[: len(data)]:
            raise BadChunk("a chunk longer than its size")
        if len(data) == 1:
            return 0
        self._step = self._line
        return 2

    def _trailers(self, data: memoryview, pieces: list[Piece]) -> int:
        """trailer-section = *( field-line CRLF ), and then the CRLF that ends the body."""
        if bytes(data[:2]) == b"\r\n":
            self.done = True
            return 2
        end = self._find(data, b"\r\n\r\n", MAX_HEAD)
        if not end:
            return 0
        if read_fields(bytes(data[: end - 2])) is None:
            raise BadChunk("a bad trailer section")
        self.done = True
        return end

    def _find(self, data: memoryview, mark: bytes, limit: int) -> int:
        try:
            end = find_end(data, self._looked, mark, limit)
        except BadLine as error:
            raise BadChunk(f"{error} among the chunks") from None
        self._looked = 0 if end else len(data)
        return end


def body_reader(length: int) -> LengthReader | ChunkReader:
    """Make the reader for a body of ``length`` bytes, or CHUNKED."""
    return ChunkReader() if length == CHUNKED else LengthReader(length)


class Stay:
    """A body that stays here: ``body`` if ``keep``, else read away. ``too_large``: more than ``limit`` bytes, which
    are those of the body if it is kept, and all that was read if it is not.
    """

    __slots__ = ("_keep", "_limit", "_read", "_reader", "body")

    def __init__(self, length: int, limit: int, *, keep: bool) -> None:
        self._reader = body_reader(length)
        self._limit = limit
        self._keep = keep
        self._read = 0
        self.body = bytearray()

    @property
    def done(self) -> bool:
        return self._reader.done

    @property
    def too_large(self) -> bool:
        return (len(self.body) if self._keep else self._read) > self._limit

    def read(self, data: memoryview) -> int:
        """Take what has come of the body; return how many bytes are used. Raises BadChunk."""
        pieces: list[Piece] = []
        used = self._reader.read(data, pieces)
        self._read += used
        if self._keep:
            for piece in pieces:
                self.body += piece
        return used


class Transfer:
    """One body on its way from ``source`` to ``to``, in chunks again or plain. ``done`` when all of it has gone."""

    __slots__ = ("_chunked", "_effects", "_reader", "_source", "_to")

    def __init__(self, effects: Effects, source: Source, to: Source, length: int, *, dechunked: bool = False) -> None:
        self._effects = effects
        self._source = source
        self._to = to
        self._reader = body_reader(length)
        self._chunked = length == CHUNKED and not dechunked

    @property
    def done(self) -> bool:
        return self._reader.done

    def read(self, data: memoryview, head: bytes = b"", *, alone: bool = False) -> int:
        """Send what has come of the body, behind ``head``; return how many bytes are used.

        alone: nothing may follow the body. Raises BadChunk, and has sent nothing then.
        """
        reader = self._reader
        pieces: list[Piece] = []
        used = reader.read(data, pieces)
        if alone and used < len(data) and reader.done:
            raise BadChunk("bytes behind the end of the body")
        unseen = reader.unseen
        if self._chunked:
            if pieces:
                pieces = [b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"]
            if reader.done:
                pieces.append(b"0\r\n\r\n")
            elif unseen:
                pieces.append(b"%x\r\n" % unseen)
        if head:
            pieces.insert(0, head)
        if pieces:
            self._effects.send(self._to, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if unseen:
            self._effects.passthrough(self._source, unseen)
            reader.passed(unseen)
            if self._chunked:
                self._effects.send(self._to, b"\r\n")
        return used
