"""``python -m benchmarks.evaluation``: sessions in parallel, as examples/evaluation runs them.

Each agent takes the seconds that its prompt says, so the whole should take as long as the slowest one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.table import Row, show
from sandbox_agent import SandboxAgent, local

EXAMPLE = Path(__file__).parents[1] / "examples/evaluation/evaluate.py"
SESSIONS, SLOWEST, ROUNDS, BAR = 16, 5.0, 3, 1.2


def example() -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("evaluate", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def run_round(module: Any) -> float:
    """Return how long the evaluation takes, relative to the slowest agent."""
    seconds = [SLOWEST * (number + 1) / SESSIONS for number in range(SESSIONS)]
    tasks = [module.Task(f"{each:g} s", f"sleep {each}", "slept") for each in seconds]
    finished: list[Any] = []
    async with SandboxAgent.start(sandbox=local(log="silent")) as sdk:
        begin = time.perf_counter()
        results = await module.evaluate(sdk, "mock", tasks, finished.append)
        took = time.perf_counter() - begin
        await sdk.destroy_sandbox()
    assert all(result.passed for result in results), results
    assert len(finished) == SESSIONS
    return took / SLOWEST


def main() -> int:
    """Print the row, and return 1 if the bar is not met."""
    module = example()
    ratio = statistics.median(asyncio.run(run_round(module)) for _ in range(ROUNDS))
    work = f"{SESSIONS} evaluation sessions in parallel, the slowest agent takes {SLOWEST:g} s"
    row = show(Row(work, f"{ratio * SLOWEST:.2f} s", "", f"{ratio:.2f}x", f"<= {BAR:g}x", ratio <= BAR))
    return 0 if row.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
