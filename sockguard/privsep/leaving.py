"""How sockguard's processes end: without the interpreter's own end.

That would close one by one what peers have made, and could wait for each. In a process that exits, the kernel closes
all of it and waits for no SO_LINGER.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process; what was written to standard output and error is written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it was closed, or there is none
            stream.flush()
    os._exit(status)
