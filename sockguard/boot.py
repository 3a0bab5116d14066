"""Where sockguard's own child processes begin: `python -I -S boot.py ROLE ...`, run as a file.

Imports the role's code first and gives up rights second (main does it as its first act): the code may lie where
only root can read, and nothing from outside has been read until then. A relay is started with -I -S, so that no
package but this one and the standard library is in its reach.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    # Behind the standard library, so that nothing beside this package can stand in for it.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    role, *arguments = sys.argv[1:]
    if role == "relay":
        from sockguard.relay.process import main as relay

        return relay(arguments)
    if role == "control":
        from sockguard.server.process import main as control

        return control(arguments)
    print(f"sockguard: no such role: {role}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
