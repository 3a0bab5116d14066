"""The kernel's facilities are tried, and each finding says what the lack of one costs."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable

import pytest

from sockguard.checks import kernel
from sockguard.checks.kernel import FEATURES, Feature, kernel_findings


def test_every_feature_is_reported_once_in_order() -> None:
    """One finding a facility, in the order of the table: a note when it is there, else a warning with its cost."""
    found = kernel_findings()
    assert [f.subject for f in found] == ["kernel"] * len(FEATURES)
    for feature, finding in zip(FEATURES, found, strict=True):
        assert finding.text.startswith(feature.name)
        if finding.severity == "info":
            assert finding.remedy == ""
        else:
            assert finding.severity == "warning"
            assert feature.cost in finding.text
            assert finding.remedy == feature.remedy


def test_probes_leave_nothing_open() -> None:
    """No probe leaks a descriptor."""
    gc.collect()  # what other tests have left is not closed meanwhile
    before = os.listdir("/proc/self/fd")
    kernel_findings()
    assert os.listdir("/proc/self/fd") == before


def test_what_every_supported_kernel_has() -> None:
    """Linux 5.10 has these, so a probe that misses one is wrong."""
    present = {f.text.split(":")[0] for f in kernel_findings() if f.severity == "info"}
    assert {"SO_PEERGROUPS", "pidfd_open", "memfd sealing"} <= present


@pytest.mark.parametrize("code", [errno.ENOPROTOOPT, errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_a_kernel_without(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of the kernel is a facility that is missing, or could not be tried; never an exception."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(os, "memfd_create", refuse)
    found = {f.text.split(" is missing")[0].split(" could")[0]: f for f in kernel_findings()}
    for name in ("pidfd_open", "memfd sealing"):
        assert found[name].severity == "warning"


def test_an_unknown_socket_option_is_missing() -> None:
    """An option that no kernel has is told from one that it has."""
    assert kernel._option(9999, 4) is None
    assert kernel._option(kernel.SO_PEERGROUPS, 1024) is not None


def test_cost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a missing facility is its name and its cost."""
    probe: Callable[[], str | None] = lambda: None  # noqa: E731
    monkeypatch.setattr(kernel, "FEATURES", (Feature("X", probe, "it costs", "buy one"),))
    (found,) = kernel_findings()
    assert (found.text, found.remedy) == ("X is missing: it costs", "buy one")
