"""One generation of the configuration as relays get it, and the telling: all at once, then what comes to it later.

What is told later goes the same way in its turn, so a relay knows a set of rules before anything that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Final

from sockguard.config.settings import Config, Proxy
from sockguard.logs import log
from sockguard.policy.requests import request_rules
from sockguard.privsep import memfd
from sockguard.privsep.messages import Assign, Close, Row, in_packets
from sockguard.privsep.messages import Generation as GenerationMessage
from sockguard.privsep.messages import RuleSets as RuleSetsMessage
from sockguard.protocols.registry import PROTOCOLS
from sockguard.server.connections import Connection
from sockguard.server.relay import Relay
from sockguard.server.rule_sets import RuleSets

OUT_OF_SETS: Final = "out_of_rule_sets"
"""The outcome of a connection whose requests could not be judged, because its rules cannot be told to a relay."""


class Generation:
    """Proxies and sets of rules by the numbers that they have in this generation.

    number      counts from 1
    rule_names  of each proxy that is inspected: what a relay may name as the rule that decided on a request
    protocols   those that are inspected: what a relay must be able to read
    """

    def __init__(self, number: int, config: Config) -> None:
        self.number = number
        self.sets = RuleSets()
        self.rule_names = {
            proxy.name: frozenset(rule.name for rule in proxy.rules)
            for proxy in config.proxies.values()
            if proxy.protocol in PROTOCOLS
        }
        self.protocols = frozenset(proxy.protocol for proxy in config.proxies.values()) & PROTOCOLS.keys()
        self._indexes = {name: index for index, name in enumerate(config.proxies)}
        self._log_allowed = json.dumps(config.log.requests == "all")
        self._proxies = json.dumps([_told(proxy) for proxy in config.proxies.values()])

    def index_of(self, connection: Connection) -> int:
        """The index of its proxy. Raises KeyError if that is not in this generation."""
        return self._indexes[connection.admission.proxy.name]

    def set_of(self, connection: Connection) -> int | str:
        """The set of rules for a connection's requests; or, said for people, why it can have none."""
        if connection.admission.proxy.name not in self.rule_names:
            return 0
        return self.sets.number_of(self.index_of(connection), connection.rules)

    def tell(self, relay: Relay) -> None:
        """Have a relay go by this generation from now on, its live connections too."""
        assigned = self._sets_of(relay, relay.held.values())
        content = self._content(assigned)
        relay.told_sets = len(self.sets)
        relay.rule_names[self.number] = self.rule_names
        relay.send(GenerationMessage(self.number), [memfd.write("sockguard-rules", content)])

    def tell_sets(self, relay: Relay) -> None:
        """Tell a relay of this generation the sets that have come since it was last told."""
        for message in in_packets(RuleSetsMessage, self.sets.rows(relay.told_sets)):
            relay.send(message)
        relay.told_sets = len(self.sets)

    def assign(self, relay: Relay, connections: Iterable[Connection]) -> None:
        """Have those of the connections that the relay holds go by the rules that they have now."""
        assigned = self._sets_of(relay, [c for c in connections if c.number in relay.held])
        self.tell_sets(relay)
        for message in in_packets(Assign, assigned):
            relay.send(message)

    def _sets_of(self, relay: Relay, connections: Iterable[Connection]) -> list[Row]:
        """Rows of (connection, set) for those that are inspected and not being closed; one without a set is closed."""
        rows: list[Row] = []
        without: list[Row] = []
        why = ""
        for connection in connections:
            if connection.ending or connection.admission.proxy.name not in self.rule_names:
                continue
            number = self.set_of(connection)
            if isinstance(number, int):
                rows.append((connection.number, number))
                continue
            why = number
            connection.ending = OUT_OF_SETS
            without.append((connection.number, OUT_OF_SETS))
        if without:
            log.error("connections are closed: their rules cannot be told to a relay", count=len(without), reason=why)
        for message in in_packets(Close, without):
            relay.send(message)
        return rows

    def _content(self, assigned: list[Row]) -> bytes:
        connections, sets = json.dumps(assigned), json.dumps(self.sets.content())
        return (
            f'{{"log_allowed":{self._log_allowed},"proxies":{self._proxies},"sets":{sets},"connections":{connections}}}'
        ).encode("ascii")


def _told(proxy: Proxy) -> dict[str, object]:
    inspected = proxy.protocol in PROTOCOLS
    rules = request_rules(proxy.rules, range(len(proxy.rules))) if inspected else []
    return {
        "name": proxy.name,
        "protocol": proxy.protocol,
        "fds": proxy.fds,
        "sender": proxy.sender,
        "idle_timeout": proxy.idle_timeout,
        "enforce": proxy.enforce,
        "options": dict(proxy.options),
        "backend_uid": None if proxy.identity == "client" else os.geteuid(),
        "rules": [[rule.name, rule.deny, rule.what] for rule in rules],
    }
