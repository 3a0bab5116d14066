"""sockguard schema: JSON on standard output."""

from __future__ import annotations

import argparse
import json

import pytest

from sockguard.commands import schema
from sockguard.config.model import json_schema


def test_it_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """What an editor gets is the model's schema, and 0."""
    parser = argparse.ArgumentParser()
    schema.add_parser(parser.add_subparsers())
    args = parser.parse_args(["schema"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
