"""Writes docs/agents/matrix.md from the results of ``make test-agents``, or of ``agents check ID --json``.

``.venv/bin/python scripts/agents_matrix.py [FOLDER]``, by default build/agents-matrix.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.testing.agents import SCENARIOS, Report
from sandbox_agent.testing.agents.check import FINAL

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/agents/matrix.md"
HEAD = """# What each agent does

The results of [`sandbox-agent agents check`](../test-agents.md#check-an-agent) with real agents, in the
versions that the catalogue installs, each with a scripted model in an empty home folder. If a cell has two
results, the first is that of the SDK over `/v1/acp`, and the second that of a
[server session](../server-sessions.md).
`make test-agents` fails when a result changes, in either direction. This page is written by
`scripts/agents_matrix.py`.

"""


def page(reports: Sequence[Report]) -> str:
    """Return the page for these reports, in the catalogue's order."""
    order = list(CATALOGUE)
    reports = sorted(reports, key=lambda report: order.index(report.agent))
    names = [f"{CATALOGUE[report.agent].title} {report.version}" for report in reports]
    lines = [f"| scenario | {' | '.join(names)} |", f"|---|{'---|' * len(reports)}"]
    titles = {name: scenario.title for name, scenario in SCENARIOS.items()} | FINAL
    lines += [f"| `{name}` | {' | '.join(_cell(report, name) for report in reports)} |" for name in titles]
    lines += ["", "## The scenarios", "", "| scenario | what it shows |", "|---|---|"]
    lines += [f"| `{name}` | {title[0].upper()}{title[1:].rstrip('.')}. |" for name, title in titles.items()]
    lines += ["", "## What an agent does not do", ""]
    for report in reports:
        reasons: dict[str, list[str]] = {}
        for result in report.results:
            if result.outcome != "ok" and result.reason:
                scenarios = reasons.setdefault(result.reason, [])
                scenarios += [] if result.scenario in scenarios else [result.scenario]
        lines += [
            f"* {CATALOGUE[report.agent].title}, {', '.join(f'`{name}`' for name in scenarios)}: {reason}"
            for reason, scenarios in reasons.items()
        ]
    newest = max(report.date for report in reports)
    lines += ["", f"Run on {newest}, {reports[0].system}.", ""]
    return HEAD + "\n".join(lines)


def _cell(report: Report, scenario: str) -> str:
    outcomes = [result.outcome for result in report.results if result.scenario == scenario]
    return outcomes[0] if len(set(outcomes)) == 1 else " / ".join(outcomes)


def main(folder: Path) -> None:
    """Write the page."""
    reports = [msgspec.json.decode(path.read_bytes(), type=Report) for path in sorted(folder.glob("*.json"))]
    if not reports:
        sys.exit(f"{folder} has no results: run make test-agents first")
    if strange := [report.agent for report in reports if not report.is_expected]:
        sys.exit(f"not written: the results of {', '.join(strange)} are not those of the profiles")
    PAGE.write_text(page(reports), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build/agents-matrix")
