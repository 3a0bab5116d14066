"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Final

DEFAULT_CONFIG: Final = "/etc/sockguard/sockguard.toml"


def add_config(parser: argparse.ArgumentParser, *, top: bool = False) -> None:
    """``--config FILE``, before the command or behind it; the default at the top only, or it would undo the first."""
    default = DEFAULT_CONFIG if top else argparse.SUPPRESS
    parser.add_argument("--config", metavar="FILE", default=default, help=f"default: {DEFAULT_CONFIG}")
