"""What status shows is what is in force."""

from __future__ import annotations

from typing import cast

from sockguard.identity.accounts import Accounts
from sockguard.server.guards import Guards
from sockguard.server.overview import Overview
from tests.unit.server.conftest import Control, Doors, allow, config, proxy


def test_users_have_the_names_of_the_last_reload() -> None:
    """An account that has come since the start is named once a reload has read of it."""
    web = proxy("web", allow("all"))
    made = Control(config(web))
    doors = cast(Guards, Doors(made.admissions))
    overview = Overview("/etc/sockguard/sockguard.toml", [], doors, made.pool, made.connections, made.record)
    made.admissions["web"].limits.take(424242)
    made.admissions["web"].renew(web, Accounts([("newcomer", 424242, 1)]))
    (shown,) = overview.status()["proxies"]
    assert shown["users"] == [{"uid": 424242, "user": "newcomer", "connections": 1}]
