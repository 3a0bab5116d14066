"""What known services make of a request besides what it says. Pure text.

Two kinds. Some services read another path or method than the one that is written: those readings are judged like the
request itself, and an allow must hold for each of them. Others take two paths or methods for the same: a deny that
names one of them is about the other, too, while an allow stays exact.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

_PARAMETERS: Final = re.compile(r";[^/]*")
_OTHER_END: Final = re.compile(r"%(?:3F|23|00)")
_END: Final = re.compile(r"[?#\x00]")
_SAFE: Final = "/!$&'()*+,;=:@~"  # besides letters, digits, "_", "." and "-": what stands in a path as it is (RFC 3986)
_ROUNDS: Final = 2
"""How many times more than once a path is decoded: a server and a framework behind it may each do so."""

_OVERRIDES: Final = frozenset({"_method", "x-http-method-override"})
_KEPT: Final = re.compile(r"%(?=2F|2A|3F|25)")
"""Escapes that folding leaves alone: of "/", so that a segment stays one; of "*" and "?", which globs have; of "%"."""


def other_paths(path: str) -> Iterator[str]:
    """Say as what else a path may be read, if it has "%" or ";". ``path``: as Request.paths has them.

    - Parameters (";...") are no part of a path to servlet containers (Tomcat, Jetty, Spring), which cut them off each
      segment, and to others (old Jetty, Python's urlparse at the end), which cut off all that follows.
    - A "?", "#" or NUL that is escaped ends the path where the decoded path is parsed again (Apache's mod_rewrite).
    - Where a path is decoded again and again, by a server and the framework behind it, "%252e%252e" is "..".
    """
    found = dict.fromkeys((path, *_decoded(path))) if "%" in path else {path: None}
    for one in list(found):
        end = _OTHER_END.search(one)
        if end is not None:
            found[one[: end.start()] or "/"] = None
    for one in list(found):
        if ";" in one:
            found[_normal(_PARAMETERS.sub("", one))] = None
            found[_normal(one.partition(";")[0])] = None
    del found[path]
    yield from found


def _decoded(path: str) -> Iterator[str]:
    text = unquote(path, errors="replace")
    for _ in range(_ROUNDS):
        if "%" not in text:
            return
        text = unquote(text, errors="replace")
        yield _normal(quote(_END.split(text, maxsplit=1)[0].replace("\\", "/"), safe=_SAFE))


def _normal(path: str) -> str:
    """Without empty segments, "." and ".."; with a slash at the end only where there was one."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


def other_methods(query: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Say by which methods a request may be run instead of its own: those that the key ``_method`` of its query names.

    So WordPress, Symfony, Jersey and Express's method-override have it; others look there for what they also take from
    a field. PHP has "." and " " for "_", too.
    """
    return tuple(
        dict.fromkeys(
            value.strip().upper()
            for key, value in query
            if value and key.strip().lower().replace(".", "_").replace(" ", "_").partition("[")[0] in _OVERRIDES
        )
    )


@lru_cache(64)
def same_methods(method: str) -> frozenset[str]:
    """Say for which methods a method may be taken: in upper case (werkzeug, Django), and HEAD for GET (all do)."""
    upper = method.upper()
    return frozenset((method, upper, "GET" if upper == "HEAD" else upper))


def fold(text: str) -> str:
    """Bring paths, and values of params, that some service takes for the same into one form: without case, escapes,
    and differences of Unicode's compatibility forms.
    """
    if "%" not in text:
        return text.lower()
    decoded = unicodedata.normalize("NFKC", unquote(_KEPT.sub("%25", text), errors="replace"))
    # Upper case first: that of a dotless i is I. A dot above is what is left of the capital I that has one.
    return unicodedata.normalize("NFKC", decoded.upper().casefold()).replace("\u0307", "")


def fold_path(path: str) -> list[str]:
    """Fold a path into segments. A slash at the end counts for nothing (Express, Django, Flask, Spring), nor does
    white space around a segment.
    """
    segments = fold(path).split("/")[1:]
    if "%" in path:
        segments = [segment.strip() for segment in segments]
    return [segment for segment in segments if segment] if "" in segments else segments


def stems(segment: str, longest: int) -> Iterator[str]:
    """Say what may be left of a path's last segment without a suffix, which asks for a format (Rails, Spring).

    Only what is no longer than ``longest``.
    """
    at = segment.find(".", 1)
    while 0 < at <= longest:
        yield segment[:at]
        at = segment.find(".", at + 1)
