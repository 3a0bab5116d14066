"""Ending without the interpreter's own end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

REPO: Final = Path(__file__).resolve().parents[3]
CODE: Final = """
import atexit, os, sys
from sockguard.privsep.leaving import leave

class Slow:
    def __del__(self):
        os.write(2, b"closed one by one")

kept = Slow()
atexit.register(lambda: os.write(2, b"at exit"))
sys.stdout.write("said")
{}
leave(7)
"""


@pytest.mark.parametrize(
    ("before", "out"),
    [
        ("", "said"),
        ("sys.stdout.close()", "said"),
        ("sys.stdout.flush(); sys.stdout = None", "said"),
        ("os.close(1)", ""),
    ],
)
def test_leave(before: str, out: str) -> None:
    """Nothing of the process is taken apart first; what was written is written, whatever has become of the streams."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPO,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, out, "")
