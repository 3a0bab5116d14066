"""Names of users and groups to numbers, by the one interface that the configuration has to the account database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sockguard.config.values import Bad
from sockguard.words import did_you_mean, quoted


class AccountsLike(Protocol):
    """What is asked of the account database; sockguard.identity.accounts.Accounts is one."""

    def uid_of(self, name: str, /) -> int | None: ...
    def gid_of(self, name: str, /) -> int | None: ...
    def name_of(self, uid: int, /) -> str | None: ...
    def primary_of(self, uid: int, /) -> tuple[int, frozenset[int]] | None: ...
    def close_user_names(self) -> list[str]: ...
    def close_group_names(self) -> list[str]: ...


def user_id(accounts: AccountsLike, value: str | int) -> int:
    """The uid of a name; a number is its own. Raises Bad when there is no such user."""
    return _find("user", value, accounts.uid_of, accounts.close_user_names)


def group_id(accounts: AccountsLike, value: str | int) -> int:
    """The gid of a name; a number is its own. Raises Bad when there is no such group."""
    return _find("group", value, accounts.gid_of, accounts.close_group_names)


def _find(what: str, value: str | int, find: Callable[[str], int | None], candidates: Callable[[], list[str]]) -> int:
    if isinstance(value, int):
        return value
    found = find(value)
    if found is None:
        raise Bad(f"unknown {what} {quoted(value)}{did_you_mean(value, candidates())}")
    return found
