"""`python -m sockguard` is the command `sockguard`."""

import sys

from sockguard.cli import main

sys.exit(main())
