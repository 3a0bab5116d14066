"""Every parser that is fuzzed, by name. A protocol adds the table of its own file: one line."""

from __future__ import annotations

from typing import Final

from tests.fuzz import dbus, http
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    **dbus.TARGETS,
    **http.TARGETS,
}
