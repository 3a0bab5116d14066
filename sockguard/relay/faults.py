"""A fault in words that need no file: within the cage the lines of source cannot be read."""

from __future__ import annotations

import traceback


def place_of(error: Exception) -> str:
    """What was raised, and the last places on the way there, the innermost first."""
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [f"{code.co_filename.rpartition('/')[2]}:{line} in {code.co_name}" for code, line in reversed(codes[-3:])]
    return f"{type(error).__name__}: {str(error)[:200]}, at {', '.join(places)}"
