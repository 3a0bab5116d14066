"""What tests of the checks share: a folder that others can get to, which pytest's own are not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder below a sticky one, that anyone may search and only its owner write."""
    with tempfile.TemporaryDirectory(prefix="sockguard-test-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder
