"""Who is at the other end of a connection: what the kernel says, and what /proc and the account database add."""
