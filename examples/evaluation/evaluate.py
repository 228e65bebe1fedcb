"""Evaluate an agent over a data set: sessions in parallel, a progress bar, and a table of the results.

python evaluate.py              # the agent mock, which needs no key
AGENT=claude python evaluate.py my-tasks.jsonl
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sandbox_agent import SandboxAgent, SandboxAgentError, local

PARALLEL = 16
# How long an agent may work on a task, in seconds.
TIMEOUT = 600.0


@dataclass
class Task:
    """A prompt, and a text that a good answer contains."""

    id: str
    prompt: str
    expected: str


@dataclass
class Result:
    """What has become of a task."""

    task: Task
    answer: str
    seconds: float
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and self.task.expected.lower() in self.answer.lower()


def read_tasks(file: Path) -> list[Task]:
    return [Task(**json.loads(line)) for line in file.read_text().splitlines() if line.strip()]


async def run_task(sdk: SandboxAgent, agent: str, task: Task) -> Result:
    """Run a task in a session of its own."""
    begin, answer, error = time.monotonic(), "", ""
    try:
        async with asyncio.timeout(TIMEOUT):
            async with await sdk.create_session(agent=agent, permission_policy="allow_once") as session:
                answer = await session.ask(task.prompt)
    except (SandboxAgentError, TimeoutError) as problem:
        error = str(problem) or "it took too long"
    return Result(task, answer, time.monotonic() - begin, error)


async def evaluate(
    sdk: SandboxAgent, agent: str, tasks: Sequence[Task], on_result: Callable[[Result], object]
) -> list[Result]:
    """Run all tasks, ``PARALLEL`` at a time, and return their results in the order of the tasks."""
    slots = asyncio.Semaphore(PARALLEL)

    async def run(task: Task) -> Result:
        async with slots:
            result = await run_task(sdk, agent, task)
        on_result(result)
        return result

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(run(task)) for task in tasks]
    return [each.result() for each in running]


async def main(file: Path) -> None:
    agent, tasks, console = os.environ.get("AGENT", "mock"), read_tasks(file), Console()
    async with SandboxAgent.start(sandbox=local(log="silent"), persist="sqlite:evaluation.db") as sdk:
        with Progress(console=console) as progress:
            bar = progress.add_task(agent, total=len(tasks))
            results = await evaluate(sdk, agent, tasks, lambda _: progress.advance(bar))
        await sdk.destroy_sandbox()
    table = Table("task", "passed", "seconds", "answer")
    for result in results:
        mark = "yes" if result.passed else "no"
        # An answer may have what rich takes for its markup.
        answer = (result.error or result.answer).replace("[", r"\[").replace("\n", " ")[:60]
        table.add_row(result.task.id, mark, f"{result.seconds:.1f}", answer)
    console.print(table)
    console.print(f"{sum(result.passed for result in results)} of {len(results)} passed")


if __name__ == "__main__":
    default = Path(__file__).with_name("tasks.jsonl")
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
