"""What inspectors say of a connection's end is what control takes from a relay."""

from __future__ import annotations

import pytest

from sockguard.privsep.outcomes import OUTCOMES
from sockguard.protocols.registry import PROTOCOLS, inspector_of


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_outcome_of_an_inspector_is_on_the_list(protocol: str) -> None:
    """One that is not would end the relay that says it."""
    assert inspector_of(protocol).OUTCOMES <= OUTCOMES
