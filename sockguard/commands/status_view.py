"""The daemon's status as text for a person: pure, from plain data to lines. Escapes whatever the daemon says."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from sockguard.commands.control_client import clean
from sockguard.protocols.registry import PROTOCOLS
from sockguard.server.operator import ConnectionStatus, ProxyStatus, ReloadStatus, Status

MAX_ROWS: Final = 10
"""Users, reload errors and denials that are shown; ``--json`` has the others."""

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_GAP: Final = "  "
_LEAST: Final = 8  # columns of a column that gives way

Row = Sequence[str]


def render(status: Status, previous: Status | None, seconds: float, width: int) -> str:
    """The whole status, lines ended by line breaks.

    previous   the status ``seconds`` before: counts are shown as rates then; None: as totals since the start
    width      columns; 0: as wide as it takes

    Raises KeyError or TypeError where it is of another shape than this version's.
    """
    rates = previous is not None
    if previous is not None and (previous["started"] != status["started"] or seconds <= 0):
        previous = None  # another daemon than the one before
    parts = [
        list(_head(status, width)),
        _proxies(status, previous, seconds, width, rates),
        _requests(status, previous, seconds, width, rates),
        _users(status, width),
        _relays(status, width),
        _denials(status, width),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def render_connections(rows: Sequence[ConnectionStatus], width: int) -> str:
    """Live connections, a line each."""
    cells = [
        (
            str(row["number"]),
            clean(row["proxy"]),
            clean(row["user"] or "-"),
            str(row["uid"]),
            str(row["pid"]),
            _duration(row["seconds"]),
            clean(row["state"]),
            clean(row["rule"] or "-"),
        )
        for row in rows
    ]
    titles = ("ID", "PROXY", "USER", "UID", "PID", "SINCE", "STATE", "RULE")
    return "".join(f"{line}\n" for line in table(titles, cells, width, left=(1, 2, 6, 7), gives=7))


def table(titles: Row, rows: Sequence[Row], width: int, *, left: Sequence[int], gives: int) -> list[str]:
    """Lines of aligned columns. left: those aligned to the left; gives: the one that is cut to fit ``width``."""
    grid = [titles, *rows]
    widths = [max(columns(row[i]) for row in grid) for i in range(len(titles))]
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    if width and over > 0:
        widths[gives] = max(widths[gives] - over, min(widths[gives], _LEAST))
    lines = []
    for row in grid:
        cells = [_pad(cut(cell, size), size, i in left) for i, (cell, size) in enumerate(zip(row, widths, strict=True))]
        lines.append(cut(_GAP.join(cells).rstrip(), width))
    return lines


def columns(text: str) -> int:
    """Columns of a terminal that the text takes (Unicode Standard Annex 11)."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """The text within ``width`` columns (0: whole); what is cut ends in "..."."""
    if not width or columns(text) <= width:
        return text
    end = "..." if width > len("...") else ""
    left = width - len(end)
    for index, c in enumerate(text):
        left -= columns(c)
        if left < 0:
            return text[:index] + end
    return text


def _pad(cell: str, width: int, left: bool) -> str:
    space = " " * (width - columns(cell))
    return cell + space if left else space + cell


def _wrap(text: str, width: int) -> list[str]:
    if not width:
        return [text]
    # textwrap counts a wide character as one column
    return [cut(line, width) for line in textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)]


def _head(status: Status, width: int) -> Iterator[str]:
    yield cut(f"sockguard {clean(status['version'])}, generation {status['generation']:d}", width)
    yield cut(f"started {_moment(status['started'])}, {clean(status['config'])}", width)
    if (last := status["last_reload"]) is not None:
        yield from _reload(last, width)
    for text in status["separation_warnings"]:
        yield from _wrap(f"WARNING: {clean(text)}", width)
    for proxy in status["proxies"]:
        if not proxy["enforce"]:
            text = f"PERMISSIVE: {clean(proxy['name'])}: what the rules would deny is let through"
            yield from _wrap(text, width)


def _reload(last: ReloadStatus, width: int) -> Iterator[str]:
    moment = _moment(last["time"])
    if last["ok"]:
        yield cut(f"reloaded {moment}", width)
        return
    yield cut(f"RELOAD REFUSED {moment}: the rules before it go on", width)
    for error in last["errors"][:MAX_ROWS]:
        yield cut(f"  {clean(error)}", width)
    if len(last["errors"]) > MAX_ROWS:
        yield f"  and {len(last['errors']) - MAX_ROWS} more"


def _proxies(status: Status, previous: Status | None, seconds: float, width: int, rates: bool) -> list[str]:
    before = {proxy["name"]: proxy for proxy in previous["proxies"]} if previous else {}
    unit = "/s" if rates else ""
    titles = ("PROXY", "OPEN", "MAX", *(f"{name}{unit}" for name in ("ADMITTED", "DENIED", "WOULD DENY", "BYTES")))
    rows = []
    for proxy in status["proxies"]:
        counts = _rates(proxy, before.get(proxy["name"]), seconds) if rates else _totals(proxy)
        rows.append((clean(proxy["name"]), f"{proxy['connections']:d}", f"{proxy['max_connections']:d}", *counts))
    return table(titles, rows, width, left=(0,), gives=0)


def _totals(proxy: ProxyStatus) -> Row:
    return (
        f"{proxy['admitted']:d}",
        f"{proxy['denied']:d}",
        f"{proxy['would_deny']:d}",
        _bytes(_all_bytes(proxy)),
    )


def _rates(proxy: ProxyStatus, before: ProxyStatus | None, seconds: float) -> Row:
    if before is None:
        return ("-",) * 4
    differences = (
        proxy["admitted"] - before["admitted"],
        proxy["denied"] - before["denied"],
        proxy["would_deny"] - before["would_deny"],
    )
    return (*(f"{d / seconds:.1f}" for d in differences), _bytes((_all_bytes(proxy) - _all_bytes(before)) / seconds))


def _requests(status: Status, previous: Status | None, seconds: float, width: int, rates: bool) -> list[str]:
    """Verdicts on requests, where the protocol has any: in a table of their own, apart from those on connections."""
    before = {proxy["name"]: proxy for proxy in previous["proxies"]} if previous else {}
    unit = "/s" if rates else ""
    rows = []
    for proxy in status["proxies"]:
        if proxy["protocol"] not in PROTOCOLS:
            continue
        counts = proxy["requests_denied"], proxy["requests_would_deny"]
        then = before.get(proxy["name"])
        if not rates:
            shown = [f"{count:d}" for count in counts]
        elif then is None:
            shown = ["-"] * 2
        else:
            past = then["requests_denied"], then["requests_would_deny"]
            shown = [f"{(count - old) / seconds:.1f}" for count, old in zip(counts, past, strict=True)]
        rows.append((clean(proxy["name"]), clean(proxy["protocol"]), *shown))
    titles = ("REQUESTS", "PROTOCOL", f"DENIED{unit}", f"WOULD DENY{unit}")
    return table(titles, rows, width, left=(0, 1), gives=0) if rows else []


def _all_bytes(proxy: ProxyStatus) -> int:
    return proxy["bytes_from_client"] + proxy["bytes_from_backend"]


def _users(status: Status, width: int) -> list[str]:
    found = [(user, proxy["name"]) for proxy in status["proxies"] for user in proxy["users"]]
    found.sort(key=lambda pair: -pair[0]["connections"])
    rows = [
        (clean(user["user"] or "-"), f"{user['uid']:d}", clean(proxy), f"{user['connections']:d}")
        for user, proxy in found[:MAX_ROWS]
    ]
    return table(("USER", "UID", "PROXY", "OPEN"), rows, width, left=(0, 2), gives=0) if rows else []


def _relays(status: Status, width: int) -> list[str]:
    audit = status["audit"]
    rows = [
        (f"{r['number']:d}", "-" if r["pid"] is None else f"{r['pid']:d}", f"{r['connections']:d}", clean(r["cage"]))
        for r in status["relays"]
    ]
    return [
        *table(("RELAY", "PID", "OPEN", "CAGE"), rows, width, left=(3,), gives=3),
        cut(
            f"relays replaced: {status['relay_restarts']:d}; audit events: {audit['seq']:d}, "
            f"not written yet: {audit['queued']:d} of at most {audit['max']:d}",
            width,
        ),
    ]


def _denials(status: Status, width: int) -> list[str]:
    rows = [
        (
            _moment(d["time"])[-8:],
            clean(d["proxy"]),
            f"{d['connection']:d}",
            clean(d["user"] or ("-" if d["uid"] is None else d["uid"])),
            clean(d["reason"] if d["request"] is None else f"{d['request']}: {d['reason']}"),  # names the rule
        )
        for d in status["latest_denials"][:MAX_ROWS]
    ]
    titles = ("DENIED", "PROXY", "ID", "USER", "REASON")
    return table(titles, rows, width, left=(0, 1, 3, 4), gives=4) if rows else []


def _moment(time: str) -> str:
    """``2027-01-31 12:00:00``, in UTC as all times of sockguard's are; what is no time is shown as it is."""
    try:
        return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return clean(time)


def _bytes(number: float) -> str:
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number /= 1000
        unit += 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{number:.0f} B"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
