"""How a connection can end by a relay's word. What its inspectors say is among these; a test holds it."""

from __future__ import annotations

from typing import Final

OUTCOMES: Final = frozenset(
    {"closed", "client_reset", "backend_reset", "idle_timeout", "fds_refused", "fds_stuck", "out_of_files", "failed"}
    | {"sender_changed", "urgent_refused", "record_too_large"}
    | {"malformed", "backend_malformed", "auth_failed", "auth_refused", "timeout", "limit", "upgrade_refused"}
    | {"revoked", "closed_by_operator", "drain_timeout", "stopped", "out_of_rule_sets"}
)
"""The last line is control's own word, said back by the relay that was told to close.

malformed, backend_malformed  the client, or the service, broke the protocol
fds_stuck                     carriers do not come back from closing what this user has passed
auth_failed                   the client did not authenticate as who it is
auth_refused                  the service refused sockguard's own authentication
timeout, limit                a time limit, or a bound, of the protocol's own
upgrade_refused               a change to a protocol that nobody inspects
out_of_rule_sets              there are more different sets of rules than relays keep (server/rule_sets.py)

Besides these, control says "relay_lost", "identity_refused" and "backend_..." of itself.
"""
