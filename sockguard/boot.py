"""Where sockguard's own child processes begin: `python -I -S boot.py ROLE ...`, run as a file.

Imports the role's code first and gives up rights second (main does it as its first act): the code may lie where
only root can read, and nothing from outside has been read until then. A relay is started with -I -S, so that only
the standard library and what lies beside this package is in its reach: no folder of the environment or of a user.
"""

from __future__ import annotations

import codecs
import os
import sys


def main() -> int:
    # Python imports a codec when it is first asked for, and by then the interpreter may be out of reach.
    for codec in ("ascii", "latin-1", "unicode_escape", "idna"):
        codecs.lookup(codec)
    role, *arguments = sys.argv[1:]
    if role not in ("relay", "control"):
        print(f"sockguard: no such role: {role}", file=sys.stderr)
        return 2
    from sockguard.carriers import master, pool
    from sockguard.privsep import spawn

    # Before the role's own code, that it need not share its memory; and while there is one thread.
    carriers = master.start(pool.SLOTS if role == "relay" else 0, spawn.parse_account(arguments[0]))
    if role == "relay":
        from sockguard.relay.process import main as relay

        return relay(arguments, carriers)
    from sockguard.server.process import main as control

    return control(arguments, carriers)


def run() -> None:
    """Find what is beside this file, go by ``main``, and end this process."""
    # Behind the standard library, so that nothing beside this package can stand in for it; before what is installed,
    # so that no other copy of sockguard can stand in for this one.
    installed = (i for i, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages")))
    sys.path.insert(next(installed, len(sys.path)), os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from sockguard.privsep.leaving import leave  # now: a relay in its cage can open no file

    try:
        status = main()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    leave(status)


if __name__ == "__main__":
    run()
