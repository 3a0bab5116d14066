"""The systems that these tests boot: this machine's own, and Debian 13 with its own Python and packages."""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.debian13 import DEBIAN_13
from tests.support.nspawn import OWN, System

_SYSTEMS: Final = {"own": OWN, "debian-13": DEBIAN_13}


@pytest.fixture(scope="session", params=_SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    made: System = _SYSTEMS[request.param]
    made.files()
    return made
