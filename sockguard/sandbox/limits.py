"""Resource limits within a cage (getrlimit(2)). Lowered hard and soft: nothing raises them without CAP_SYS_RESOURCE.

Not RLIMIT_NOFILE: connections need it. Not RLIMIT_AS: what a relay holds is bounded by design, and a limit on
addresses would make an allocation fail in the midst of somebody's connection; memory as a whole is the service
manager's to limit (MemoryMax=).
"""

from __future__ import annotations

import resource
from typing import Final

from sockguard.sandbox.policy import Kind

LIMITS: Final = {
    # Counts all processes of the uid, but is asked only when this one forks. The kernel exempts uid 0.
    resource.RLIMIT_NPROC: 0,
    # A passed descriptor may be a file that the relay's uid can write. Sockets and pipes are no files.
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
}


def enter(kind: Kind = Kind.RELAY) -> int:
    """Every kernel has them. Raises OSError, or ValueError."""
    for limit, value in LIMITS.items():
        if kind is Kind.CARRIERS and limit == resource.RLIMIT_NPROC:
            continue  # the master forks
        resource.setrlimit(limit, (value, value))
    return 1
