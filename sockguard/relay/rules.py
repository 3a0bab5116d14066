"""What a relay knows of the configuration: the proxies' options, and its peers' reduced rules, compiled when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sockguard.errors import ChannelError
from sockguard.privsep.messages import Row, check_row
from sockguard.protocols.base import RequestRules
from sockguard.protocols.registry import rules_of
from sockguard.relay.options import GenerationContent, Options

NO_RULES: Final = -1
"""In place of a set: for a connection to which none was assigned."""


class Rules:
    """One generation, and the sets of rules that were told since. Peers with the same rules share one compiled set.

    ``proxies`` by their index within the generation.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.tell_allowed = False
        self.proxies: list[Options] = []
        self._by_name: dict[str, Options] = {}
        self._sets: list[tuple[int, tuple[int, ...]]] = []
        self._compiled: dict[int, RequestRules] = {}
        self._shared: dict[str, dict[str, object]] = {}

    def renew(self, generation: int, content: GenerationContent) -> None:
        """Go by another generation. What a proxy's connections share stays, as they do."""
        self.generation = generation
        self.tell_allowed = content.log_allowed
        self.proxies = content.proxies
        self._by_name = {of_proxy.name: of_proxy for of_proxy in self.proxies}
        self._sets = list(content.sets)
        self._compiled.clear()
        self._shared = {name: shared for name, shared in self._shared.items() if name in self._by_name}

    def options_of(self, before: Options) -> Options:
        """The options of the same proxy as they are now; as before for one that is there no more."""
        return self._by_name.get(before.name, before)

    def proxy(self, index: int) -> Options:
        """The options of a proxy of this generation. Raises ChannelError when it has none of that index."""
        if not 0 <= index < len(self.proxies):
            raise ChannelError("a proxy that was not told")
        return self.proxies[index]

    def add_sets(self, rows: Sequence[Row]) -> None:
        """Take in rows of (set, proxy, "0,3,4"). Raises ChannelError when they do not follow what is known."""
        for row in rows:
            number, proxy, listed = check_row(row, int, int, str)
            if number != len(self._sets):
                raise ChannelError("a set of rules out of its turn")
            known = len(self.proxy(int(proxy)).rules)
            try:
                indexes = tuple(map(int, str(listed).split(","))) if listed else ()
            except ValueError:
                raise ChannelError("a set of rules that is none") from None
            if not all(-known <= index < known for index in indexes):
                raise ChannelError("a set of rules that its proxy does not have")
            self._sets.append((int(proxy), indexes))

    def of(self, number: int, options: Options) -> RequestRules:
        """The compiled set, for a connection of that proxy; -1: no rule at all, which allows nothing.

        Raises ChannelError for one that is not known, or is another proxy's.
        """
        if number == NO_RULES:
            return rules_of(options.protocol).compile_rules((), options.options)
        if not 0 <= number < len(self._sets):
            raise ChannelError("a set of rules that was not told")
        proxy, indexes = self._sets[number]
        of_proxy = self.proxies[proxy]
        if of_proxy.name != options.name:
            raise ChannelError("a set of rules of another proxy")
        compiled = self._compiled.get(number)
        if compiled is None:
            rules = [
                of_proxy.rules[index] if index >= 0 else replace(of_proxy.rules[~index], uncertain=True)
                for index in indexes
            ]
            compiled = self._compiled[number] = rules_of(of_proxy.protocol).compile_rules(rules, of_proxy.options)
        return compiled

    def shared(self, options: Options) -> dict[str, object]:
        """What the connections of that proxy share in this relay."""
        return self._shared.setdefault(options.name, {})
