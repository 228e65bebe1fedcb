"""``python -m benchmarks.compare BASELINE``: this checkout against another one, in turn on the same machine.

Each round measures both, and the order changes every round. A row's figure is the median of the ratios of all
rounds (above 1: this checkout is better). The result is written to ``benchmarks/COMPARISON.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "COMPARISON.md"
Round = dict[str, tuple[str, float]]


def measure(checkout: Path) -> Round:
    """Return a round's figures of a checkout, run by this interpreter."""
    paths = os.pathsep.join((str(checkout / "src"), str(checkout)))
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("round.py"))]
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=900,
    )
    return json.loads(done.stdout)


def bar(row: str) -> float:
    """Return the least ratio of a row."""
    return 0.90 if "append batches" in row else 0.95


def table(baseline: list[Round], current: list[Round]) -> tuple[list[str], bool]:
    """Return the table's lines, and whether every row meets its bar."""
    lines = [
        "| row | baseline | this | ratio | lowest and highest | bar | met |",
        "|---|---|---|---|---|---|---|",
    ]
    passed = True
    for row, (direction, _) in current[0].items():
        pairs = [(before[row][1], after[row][1]) for before, after in zip(baseline, current, strict=True)]
        ratios = sorted(after / before if direction == "rate" else before / after for before, after in pairs)
        ratio = statistics.median(ratios)
        met = ratio >= bar(row)
        passed = passed and met
        before, after = (statistics.median(values) for values in zip(*pairs, strict=True))
        lines.append(
            f"| {row} | {before:.6g} | {after:.6g} | {ratio:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} "
            f"| {bar(row):.2f} | {'yes' if met else 'no'} |"
        )
    return lines, passed


def main() -> int:
    """Run the rounds; the exit code is 1 when a row misses its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("baseline", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each (default: 7)")
    parser.add_argument("--no-write", action="store_true", help="leave COMPARISON.md as it is")
    options = parser.parse_args()
    baseline: Path = options.baseline.resolve()
    rounds: dict[Path, list[Round]] = {baseline: [], ROOT: []}
    for number in range(options.rounds):
        for checkout in (baseline, ROOT) if number % 2 == 0 else (ROOT, baseline):
            rounds[checkout].append(measure(checkout))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    lines, passed = table(rounds[baseline], rounds[ROOT])
    print("\n".join(lines))
    if not options.no_write:
        commits = [
            subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True, check=True
            ).stdout.strip()
            for path in (baseline, ROOT)
        ]
        about = (
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {options.rounds} alternating rounds of "
            f"{commits[0]} (baseline) and {commits[1]} (this). A ratio above 1 means that this checkout is "
            "better. Rates are events per second, costs are seconds or bytes. Made by "
            "`python -m benchmarks.compare`."
        )
        RESULTS.write_text("\n".join(["# Comparison", "", about, "", *lines, ""]))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
