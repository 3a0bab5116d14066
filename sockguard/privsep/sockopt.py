"""Socket options that Python's socket module has no name for (asm-generic/socket.h)."""

from __future__ import annotations

from typing import Final

SO_PASSSEC: Final = 34
SO_PASSPIDFD: Final = 76
SO_PASSRIGHTS: Final = 83
"""Since Linux 6.16: at 0, a sender that passes an fd gets EPERM. Of a listening socket, already before accept."""
