"""The TOML that comes with sockguard is TOML 1.0: Debian 13's tomli takes no later one, though newer ones do."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

REPO: Final = Path(__file__).parents[3]
FILES: Final = [REPO / "example.toml", *(REPO / "systemd").rglob("*.toml")]
PAGES: Final = [REPO / "README.md", REPO / "CHANGELOG.md", *(REPO / "systemd").rglob("*.md")]
BLOCK: Final = re.compile(r"^( *)```toml\n(.*?)^ *```", re.M | re.S)


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files(file: Path) -> None:
    tomllib.loads(file.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_in_texts(page: Path) -> None:
    for indent, text in BLOCK.findall(page.read_text()):
        tomllib.loads(re.sub(f"^{indent}", "", text, flags=re.M))


def test_there_are_some() -> None:
    assert len(FILES) > 1
    assert any(BLOCK.search(page.read_text()) for page in PAGES)
