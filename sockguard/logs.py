"""The daemon's own log lines, by structlog, on standard error. Audit events are not log lines: see audit.py."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final, Literal

import structlog

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

log: Final[Any] = structlog.get_logger()


def set_up(level: str, form: Literal["auto", "console", "json"]) -> None:
    """Set structlog up for this process. "auto": console on a terminal, else JSON."""
    renderers: list[Any]
    if use_console(form, sys.stderr.fileno()):
        plain = structlog.dev.plain_traceback  # they come formatted
        renderers = [
            _printable,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),
        ]
    else:
        renderers = [structlog.processors.JSONRenderer(ensure_ascii=True)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # a reload may set it up anew
    )


def _printable(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Text may be a relay's: a terminal must not take it for commands. Only a traceback keeps its lines."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            lines = value.split("\n") if key == "exception" else [value]
            event[key] = "\n".join(line if line.isprintable() else repr(line)[1:-1] for line in lines)
    return event


def use_console(form: str, fd: int) -> bool:
    """Is ``fd`` to be written for a person?"""
    return form == "console" or (form == "auto" and os.isatty(fd))
