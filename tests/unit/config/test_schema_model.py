"""The model's own schema, held against the example and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import tomli

from sockguard.config.available import Protocol
from sockguard.config.model import json_schema
from sockguard.protocols.registry import PROTOCOLS, rules_of

EXAMPLE = tomli.loads((Path(__file__).parents[3] / "example.toml").read_text())


def test_every_key_has_a_description() -> None:
    """An editor can say what each key is for."""
    for name, table in json_schema()["$defs"].items():
        for key, what in table["properties"].items():
            assert what.get("description"), f"{name}.{key}"


def test_it_is_for_toml() -> None:
    """No null, no titles made up from names, and every table is closed."""
    made = json_schema()
    assert "null" not in str(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(table["additionalProperties"] is False for table in [made, *made["$defs"].values()])
    bounds = made["$defs"]["ProxyTable"]["properties"]["max_connections"]
    assert (bounds["minimum"], bounds["maximum"]) == (1, 1_000_000)


def test_the_example_has_every_key() -> None:
    """example.toml is complete, but for tables of options of which there are none."""
    tables = json_schema()["$defs"]
    proxies = list(EXAMPLE["proxy"].values())
    used: dict[str, list[dict[str, Any]]] = {
        "DaemonTable": [EXAMPLE["daemon"]],
        "LogTable": [EXAMPLE["log"]],
        "ProxyTable": proxies,
        "RuleTable": [rule for proxy in proxies for rule in proxy["allow"] + proxy.get("deny", [])],
        "ExpectTable": [expect for proxy in proxies for expect in proxy.get("expect", [])],
    }
    for name, found in used.items():
        keys = {key for key, schema in tables[name]["properties"].items() if schema.get("properties") != {}}
        assert keys == set().union(*found), name


def test_every_protocol_is_there() -> None:
    """What a proxy may speak is what is inspected, and the two that are not; its keys are in the schema as it says."""
    assert set(get_args(Protocol)) == {"stream", "seqpacket", *PROTOCOLS}
    tables = json_schema()["$defs"]
    for name, entry in PROTOCOLS.items():
        schema: Any = rules_of(name).schema
        assert set(schema["what"]) == set(entry.what)
        assert tables["ProxyTable"]["properties"][entry.options] == schema["options"]
        for key in entry.what:
            assert tables["RuleTable"]["properties"][key] == schema["what"][key]
