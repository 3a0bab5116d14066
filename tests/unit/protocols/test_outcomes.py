"""What inspectors say of a connection's end is what control takes from a relay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sockguard import relay
from sockguard.privsep.outcomes import OUTCOMES
from sockguard.protocols.registry import PROTOCOLS, inspector_of


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_outcome_of_an_inspector_is_on_the_list(protocol: str) -> None:
    """One that is not would end the relay that says it."""
    assert inspector_of(protocol).OUTCOMES <= OUTCOMES


def test_what_a_relay_says_itself() -> None:
    """Control takes another word for a lie, and with it the relay for one that was taken over."""
    said = set()
    for path in Path(relay.__file__).parent.glob("*.py"):
        said |= set(re.findall(r'(?:\.end|\.finish|link_ended)\((?:number, .*?)?"([a-z_]+)"', path.read_text()))
    assert "fds_stuck" in said
    assert said <= OUTCOMES
