"""What `sockguard check --system` looks at, beyond the file: this machine.

Looks and reports, never changes anything. A finding is a value; only a fault of ours raises. Imports neither trio nor
structlog nor prometheus-client.
"""
