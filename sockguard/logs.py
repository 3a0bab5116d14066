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
    renderer: Any
    if use_console(form, sys.stderr.fileno()):
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    else:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def use_console(form: str, fd: int) -> bool:
    """Is ``fd`` to be written for a person?"""
    return form == "console" or (form == "auto" and os.isatty(fd))
