"""Rules and verdicts: pure functions from plain data to plain data. No socket, no clock, no file."""
