"""sockguard schema: JSON on standard output."""

from __future__ import annotations

import argparse
import json

import pytest
import tomli

from sockguard.commands import schema
from sockguard.config.model import json_schema
from sockguard.protocols.http.rules import presets_listing


def test_it_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """What an editor gets is the model's schema, and 0."""
    parser = argparse.ArgumentParser()
    schema.add_parser(parser.add_subparsers())
    args = parser.parse_args(["schema"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def presets(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = argparse.ArgumentParser()
    schema.add_parser(parser.add_subparsers())
    args = parser.parse_args(["schema", "--presets", *arguments])
    assert args.run(args) == 0
    return capsys.readouterr().out


def test_presets_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Every preset, as its name, what it is for, and its entries."""
    assert json.loads(presets(capsys, "--json")) == presets_listing()


def test_presets_for_people_are_toml(capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown under each name can be pasted into a rule and means what the preset means."""
    shown = {}
    for part in presets(capsys).split("\n\n"):
        name, about, rest = part.split("\n", 2)
        assert about.startswith("  ")
        shown[name] = tomli.loads(rest[rest.index("http = [") :])["http"]
    assert shown == {preset["name"]: preset["http"] for preset in presets_listing()}
