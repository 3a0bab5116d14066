"""Skips what this machine cannot run; in CI nothing may be skipped for want of root or of a package."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No example is timed: a busy machine is no failure. CI tries the same examples each time, so that a red run there
# can be seen again; everywhere else they are new ones each time.
settings.register_profile("sockguard", deadline=None, database=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("sockguard"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "sockguard")


def pytest_configure() -> None:
    """Open as many files as we may: a login often has 1,024, and the kernel counts fds in flight against that, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where everything has to run: {report.longrepr}"
    return report


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder that every user may pass through (tmp_path is 0700 and its paths are long)."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
