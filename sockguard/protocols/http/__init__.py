"""HTTP/1.1: a strict reader, rules by method and path, and what stands between client and service."""
