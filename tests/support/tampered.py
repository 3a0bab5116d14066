"""A copy of sockguard in which one process does something else: what if it is taken over, or slow?

Whatever the copy does, it does in the cage and with the rights of the real one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.daemon import REPO
from tests.support.identities import open_folder

RELAY: Final = "relay/process.py"
"""The module whose ``Loop`` a relay runs."""


@contextlib.contextmanager
def tampered(module: str, code: str) -> Iterator[Path]:
    """A folder with that copy, to be started from there: this code stands behind that of the module."""
    with open_folder() as folder:
        shutil.copytree(REPO / "sockguard", folder / "sockguard", ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "sockguard" / module).open("a") as file:
            file.write(code)
        yield folder
