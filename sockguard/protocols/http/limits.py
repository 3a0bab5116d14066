"""Every bound of the HTTP reader. Times in seconds."""

from __future__ import annotations

from typing import Final

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request's or a response's head, its empty line included; of a trailer section, too."""

MAX_FIELDS: Final = 256
"""Field lines in one head: reading them stays well below a millisecond."""

MAX_LENGTH_DIGITS: Final = 18
"""Decimal digits of a Content-Length: below 2**63, the largest that services can hold."""

MAX_CHUNK_LINE: Final = 1024
"""Bytes of a chunk's first line, extensions included."""

MAX_PAIRS: Final = 1024
"""Keys in one query."""

MAX_READ_PATH: Final = 4096
"""Characters of a path with "%" or ";", which has more than one reading: all are judged in a few milliseconds."""

MAX_INTERIM: Final = 32
"""Interim responses (1xx) to one request."""

HEAD_SECONDS: Final = 30.0
"""From the first byte of a request to the end of its head; and again for a body that is judged or read away."""

MAX_JUDGED_BODY: Final = 1024 * 1024
"""Bytes of a body that rules look into."""

MAX_DRAINED: Final = 64 * 1024
"""Bytes of a denied request's body that are read away for the sake of the next request."""

MAX_KNOWN: Final = 128
MAX_KNOWN_HEAD: Final = 1024
"""Heads that are known again, for each set of rules and for each proxy's request fields and responses; and bytes of one
of them."""

MAX_MESSAGE: Final = 400
"""Characters of a reason that are shown to the client."""

LINGER_SECONDS: Final = 2.0
MAX_LINGER: Final = 1024 * 1024
"""How long, and how many bytes, a client is still heard after a last reply: were the socket closed with bytes unread,
the client would see a reset, perhaps before the reply (RFC 9112, 9.6).
"""
