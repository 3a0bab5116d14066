"""Which separations between sockguard's processes hold, in words for the log and for status."""

from __future__ import annotations

from dataclasses import dataclass

from sockguard.identity.peer import OVERFLOW_ID


@dataclass(frozen=True, slots=True)
class Separation:
    """monitor: is there one; control_uid, relay_uid: what the processes run as."""

    monitor: bool
    control_uid: int
    relay_uid: int

    def warnings(self) -> list[str]:
        """What does not hold, each with its remedy. Empty when everything does."""
        texts = []
        if self.control_uid == self.relay_uid:
            texts.append(
                f"no separation: control and relays run under one uid ({self.control_uid}); "
                "started as root, each has its own"
            )
        if self.monitor and self.control_uid == 0:
            texts.append(
                "control runs as root, without capabilities, because there is no user sockguard; "
                "make it: useradd --system --shell /usr/sbin/nologin sockguard"
            )
        if self.monitor and self.relay_uid == OVERFLOW_ID:
            texts.append(
                "relays run as nobody, because there is no user sockguard-relay; "
                "make it: useradd --system --shell /usr/sbin/nologin sockguard-relay"
            )
        return texts
