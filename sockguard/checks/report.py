"""All findings about this machine, in one order, and how they are shown. Looks at nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from sockguard.checks.kernel import kernel_findings
from sockguard.checks.members import local_members
from sockguard.checks.privileges import own_ids, privilege_findings, this_process
from sockguard.checks.reach import backend_findings
from sockguard.config.settings import Config
from sockguard.errors import EXIT_OK, EXIT_WORLD
from sockguard.policy.lint import Finding, rule_findings

_WORDS: Final[tuple[tuple[Literal["error", "warning", "info"], str], ...]] = (
    ("error", "error"),
    ("warning", "warning"),
    ("info", "note"),
)
"""How findings of each severity are counted, the worst first."""


def system_findings(config: Config) -> list[Finding]:
    """Look at the kernel, privileges, then each proxy in the file's order. Raises OSError without /proc."""
    process = this_process()
    guards, guard_gids = own_ids(process)
    members_of = local_members()
    now = datetime.now(UTC)
    found = [*kernel_findings(), *privilege_findings(config, process)]
    for proxy in config.proxies.values():
        found += backend_findings(proxy, guards, guard_gids, members_of=members_of)
        found += rule_findings(
            proxy.name, proxy.rules, now, enforce=proxy.enforce, protocol=proxy.protocol, options=proxy.options
        )
    return found


def ways_around(config: Config) -> list[Finding]:
    """Say how others can reach a proxy's backend without passing sockguard: the errors of backend_findings.

    Empty where there is no /proc to say who is looking.
    """
    try:
        guards, guard_gids = own_ids(this_process())
    except OSError:
        return []
    members_of = local_members()
    return [
        finding
        for proxy in config.proxies.values()
        for finding in backend_findings(proxy, guards, guard_gids, members_of=members_of)
        if finding.severity == "error"
    ]


def exit_status(findings: Sequence[Finding]) -> int:
    """EXIT_WORLD when a finding is an error, else EXIT_OK."""
    return EXIT_WORLD if any(finding.severity == "error" for finding in findings) else EXIT_OK


def render(findings: Sequence[Finding]) -> str:
    """Return the findings as text for people, the last line a count; no newline at the end."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<8} {finding.subject}: {finding.text}")
        if finding.remedy:
            lines.append(f"         remedy: {finding.remedy}")
    counts = Counter(finding.severity for finding in findings)
    words = [f"{number} {word if number == 1 else word + 's'}" for key, word in _WORDS if (number := counts[key])]
    return "\n".join([*lines, ", ".join(words) or "nothing found"])


def to_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return the findings as plain data for json.dumps: objects with severity, subject, text, remedy."""
    return [
        {"severity": one.severity, "subject": one.subject, "text": one.text, "remedy": one.remedy} for one in findings
    ]
