"""How many connections a proxy and each of its users may have. A sub-uid counts for the user who owns it."""

from __future__ import annotations


class Limits:
    """Counts of one proxy. ``user``: who a connection counts for, the uid or the owner of a sub-uid (/etc/subuid)."""

    def __init__(self, total: int, per_user: int) -> None:
        self.total_limit = total
        self.user_limit = per_user
        self.total = 0
        self.by_user: dict[int, int] = {}

    def take(self, user: int) -> str | None:
        """Count a connection in; or say why it may not be, and count nothing."""
        if self.total >= self.total_limit:
            return f"max_connections: {self.total_limit} are open"
        count = self.by_user.get(user, 0)
        if count >= self.user_limit:
            return f"max_connections_per_user: uid {user} has {self.user_limit} open"
        self.total += 1
        self.by_user[user] = count + 1
        return None

    def refusal(self, user: int, waiting: int) -> str | None:
        """Why one more of that user may not wait to be judged, with ``waiting`` that do."""
        if self.by_user.get(user, 0) + waiting >= self.user_limit:
            return f"max_connections_per_user: uid {user} has {self.user_limit} open"
        return None

    def give_back(self, user: int) -> None:
        """Count a connection out that ``take`` counted in."""
        self.total -= 1
        left = self.by_user[user] - 1
        if left:
            self.by_user[user] = left
        else:
            del self.by_user[user]
