"""One parser under atheris: ``python -m tests.fuzz.guided NAME [libFuzzer options] [FOLDER]``."""

from __future__ import annotations

import importlib
import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]


def main() -> None:
    """Never returns: libFuzzer exits, with 0 when nothing was found."""
    with atheris.instrument_imports(include=["sockguard.protocols"]):
        targets = importlib.import_module("tests.fuzz.targets")
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
