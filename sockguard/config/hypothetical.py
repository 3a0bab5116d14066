"""A peer that is only supposed: for expectations in the file, and for ``explain``. Asks the account database only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sockguard.config import values
from sockguard.config.lookup import AccountsLike, group_id, user_id
from sockguard.config.values import Bad
from sockguard.identity.peer import OVERFLOW_ID, Peer, Unknown

NOT_GIVEN: Final = Unknown("not given")


def hypothetical_peer(
    accounts: AccountsLike,
    *,
    user: str | int | None = None,
    uid: int | None = None,
    gid: str | int | None = None,
    groups: Sequence[str | int] | None = None,
    executable: str | None = None,
    unit: str | None = None,
    label: str | None = None,
) -> Peer:
    """The peer with these facts; every other is Unknown("not given").

    user        an account (by number too): gid and groups are those that a login would have, unless given
    uid         instead of user; without ``gid`` the gid is the overflow id, which means unknown
    groups      supplementary groups; the gid is always one more
    executable  an absolute path
    unit        a unit's name, taken to be in /system.slice, or a whole cgroup path from "/"

    Raises ValueError in plain words: an unknown name, a uid without an account as ``user``, neither or both of
    ``user`` and ``uid``, a value that no peer can have.
    """
    if (user is None) == (uid is None):
        raise Bad("needs either user or uid")
    if user is not None:
        uid = user_id(accounts, user)
        account = accounts.primary_of(uid)
        if account is None:
            raise Bad(f"uid {uid} has no account; give uid, gid and groups instead of user")
    else:
        account = None
    assert uid is not None  # noqa: S101  one of both was given
    number = _gid(accounts, gid, account)
    return Peer(
        uid=values.identifier(uid),
        gid=number,
        groups=_groups(accounts, groups, number, account),
        user=user if isinstance(user, str) else accounts.name_of(uid),
        executable=NOT_GIVEN if executable is None else values.program(executable),
        cgroup=NOT_GIVEN if unit is None else values.cgroup(unit),
        label=NOT_GIVEN if label is None else values.text(label, longest=values.MAX_PATH),
    )


_Account = tuple[int, frozenset[int]] | None


def _gid(accounts: AccountsLike, gid: str | int | None, account: _Account) -> int:
    if gid is not None:
        return values.identifier(group_id(accounts, gid))
    return account[0] if account else OVERFLOW_ID


def _groups(
    accounts: AccountsLike, groups: Sequence[str | int] | None, gid: int, account: _Account
) -> frozenset[int] | Unknown:
    if groups is not None:
        return frozenset([gid, *(values.identifier(group_id(accounts, group)) for group in groups)])
    if account is None:
        return NOT_GIVEN
    own, every = account
    return (every - {own}) | {gid}
