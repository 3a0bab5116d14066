"""What the tests share: the real daemon as a process, clients as processes of other users."""
